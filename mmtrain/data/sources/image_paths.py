"""Images that a row names by their paths."""

import errno
import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import BinaryIO

from mmtrain.data.images.decode import IMAGE_EXTENSIONS
from mmtrain.data.sample_error import SampleError
from mmtrain.errors import UsageError

_URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_NO_SUCH_FILE = (
    *(errno.ENOENT, errno.ENOTDIR, errno.ENXIO, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL),
)


def image_key_option(key: str) -> str:
    """What the setting of the images' column is called beside the data's own."""
    return "data.image_key" if key == "data.train" else "image_key"


def image_extension(name: str) -> str:
    """What an image is handed on as: by the extension that its name has, if images have it."""
    extension = PurePath(name).suffix.lower().removeprefix(".")
    return extension if extension in IMAGE_EXTENSIONS else "image"


def refuse_no_paths(values: Sequence[object], told: str) -> None:
    """Look at some of a column.

    Args:
        values: of its rows.
        told: names the column.

    Raises:
        UsageError: all of them are lists, or addresses.
    """
    if values and all(isinstance(value, list) for value in values):
        raise UsageError(f"{told} holds lists of images; write a row for each image")
    if values and all(isinstance(value, str) and _URL.match(value) for value in values):
        raise UsageError(
            f"{told} holds URLs, which are not fetched; fetch them first, such as with img2dataset"
        )


def read_image(folder: Path, name: object, *, what: str = "image") -> bytes:
    """An image's file, or one beside it.

    Args:
        folder: from where a relative path counts.
        name: what the row has in the images' column.
        what: it is, for the reason.

    Raises:
        SampleError: there is none, or it is no file.
        OSError: it cannot be read just now.
    """
    if isinstance(name, list):
        raise SampleError(f"a list of {len(name)} images in a row; a row is one image")
    if not isinstance(name, str) or not name:
        raise SampleError("no image path")
    if _URL.match(name):
        raise SampleError("image is a URL, which is not fetched", detail=name)
    path = os.path.abspath(folder / name)
    try:
        with open_at_once(path) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise SampleError(f"{what} is no file but a pipe or device", detail=path)
            return file.read()
    except IsADirectoryError as error:
        raise SampleError(f"{what} is a folder", detail=path) from error
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_SUCH_FILE:
            raise
        raise SampleError(f"{what} missing", detail=f"looked for at {path}") from error


def open_at_once(path: str | Path) -> BinaryIO:
    """Open to read; of a pipe that nobody writes to, too, which would be waited for without end."""
    return open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))
