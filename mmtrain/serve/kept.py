"""The images that a page shows: read from what was sent, kept for a while, shown again."""

import io
import secrets
import sys
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from PIL import Image

from mmtrain.data.images.decode import MAX_IMAGE_PIXELS
from mmtrain.data.sample_error import SampleError
from mmtrain.errors import UsageError
from mmtrain.serve.guard import Refusal

MAX_SHOWN_SIDE = 768
_MAX_IMAGES_KEPT = 16

ReadT = TypeVar("ReadT")


@dataclass(frozen=True, kw_only=True)
class SeenImage(Generic[ReadT]):
    """An image that the page shows, and what the model made of it."""

    read: ReadT
    """What the model needs, to be asked about it."""
    picture: bytes
    """The image as WebP, at most MAX_SHOWN_SIDE pixels wide and high."""
    region: tuple[float, float, float, float]
    """Left, top, width and height of what the model sees, as parts of the image's own."""


class KeptImages(Generic[ReadT]):
    """The images that were asked about last, by names that nobody guesses."""

    def __init__(self) -> None:
        self._images: OrderedDict[str, SeenImage[ReadT]] = OrderedDict()

    def add(
        self, image: Image.Image, read: ReadT, *, region: tuple[float, float, float, float]
    ) -> dict[str, Any]:
        """Keep one, forgetting the one that was not asked about for longest; what the page needs to
        show it and to ask about it."""
        name = secrets.token_urlsafe(12)
        self._images[name] = SeenImage(read=read, picture=_shown(image), region=region)
        while len(self._images) > _MAX_IMAGES_KEPT:
            self._images.popitem(last=False)
        return {"image": name, "width": image.width, "height": image.height, "region": region}

    def __getitem__(self, name: str) -> SeenImage[ReadT]:
        if name not in self._images:
            raise Refusal("that image is not kept here any more; drop it again", status=404)
        self._images.move_to_end(name)
        return self._images[name]


def _shown(image: Image.Image) -> bytes:
    """An image for the page."""
    image = image.copy()
    image.thumbnail((MAX_SHOWN_SIDE, MAX_SHOWN_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=90)
    return buffer.getvalue()


@contextmanager
def refusing(what: str) -> Iterator[None]:
    """Turn what is wrong with an input into a refusal; a file's path stays on the terminal."""
    try:
        yield
    except SampleError as error:
        limit = f" (at most {MAX_IMAGE_PIXELS // 1_000_000} million pixels)"
        more = limit if str(error) == "image too large" else ""
        raise Refusal(f"{what} cannot be used: {error}{more}") from error
    except (OSError, UsageError) as error:
        print(f"mmtrain: {what}: {error}", file=sys.stderr)
        raise Refusal(f"{what} cannot be used; the server's terminal tells why") from error
