"""Folders of images: in folders that are classes, or with captions beside them."""

import errno
import hashlib
import json
import os
from collections.abc import Collection
from functools import cached_property
from pathlib import Path

from mmtrain.data.order.plan import even_pieces
from mmtrain.data.sample_error import SampleError
from mmtrain.data.sources.folder_listing import FolderListing, list_folder
from mmtrain.data.sources.image_paths import image_extension, read_image
from mmtrain.data.storage.hidden_names import is_hidden
from mmtrain.errors import UsageError


class ImageFolderSource:
    """A folder of folders of images, each folder a class: ImageNet's layout.

    The caption (`txt`) is the class's name with spaces for underscores; the `class` field of the
    .json is the folder's name. Images in no folder have no class, and are left out.

    Args:
        folder: the folder.
        listing: of it, where there is one.
        key: the setting that the folder came from, for messages.

    Raises:
        UsageError: there is no image.
    """

    def __init__(
        self, folder: Path, *, listing: FolderListing | None = None, key: str = "data.train"
    ) -> None:
        self.folder = folder
        listing = listing or list_folder(folder)
        self._files = [name for name in listing.images if "/" in name]
        self.classes = sorted(
            child.name for child in folder.iterdir() if child.is_dir() and not is_hidden(child.name)
        )
        if not self._files:
            raise UsageError(f"{key} = {folder}: its folders hold no images; name another one")
        self._fingerprint = _fingerprint(folder, self._files)
        self.num_samples = len(self._files)
        self.shard_sizes = even_pieces(self.num_samples)

    @property
    def fingerprint(self) -> str:
        """Of the names and sizes of all images."""
        return self._fingerprint

    def key(self, sample: int) -> str:
        """The image's path below the folder."""
        return self._files[sample]

    def place(self, sample: int) -> str:
        """The folder."""
        return str(self.folder)

    def read(self, sample: int, wanted: Collection[str] | None = None) -> dict[str, bytes]:
        """The image, the class's name as `txt` and the folder's as `class` of the `json`."""
        name = self._files[sample]
        label = name.split("/")[0]
        members = {
            "txt": label.replace("_", " ").encode(),
            "json": json.dumps({"class": label}).encode(),
        }
        extension = image_extension(name)
        if wanted is None or extension in wanted:
            members[extension] = read_image(self.folder, name)
        return {k: v for k, v in members.items() if wanted is None or k in wanted}


class CaptionFolderSource:
    """Images with what lies beside them: `a.txt` its caption, `a.json` further fields.

    So a folder is read as a tar of the same files would be, at any depth; an image is a sample.

    Args:
        listing: of the folder.
    """

    def __init__(self, listing: FolderListing) -> None:
        self.folder, self._listing = listing.folder, listing
        self.has_folders = listing.num_at_top() < len(listing.images)
        self.num_samples = len(listing.images)
        self.shard_sizes = even_pieces(self.num_samples)

    @property
    def fingerprint(self) -> str:
        """Of the names and sizes of all images, and of what their texts say."""
        return self._hash

    @cached_property
    def _hash(self) -> str:
        digest = hashlib.blake2b(digest_size=16)
        digest.update(_fingerprint(self.folder, self._listing.images).encode())
        for image in self._listing.images:
            for extension, name in sorted(self._listing.files(image).items()):
                try:
                    content = read_image(self.folder, name)
                except SampleError:  # a broken link, which is a bad sample
                    content = b""
                head = os.fsencode(f"{name} {extension} {len(content)}\n")
                digest.update(head + content)
        return digest.hexdigest()

    def key(self, sample: int) -> str:
        """The image's path below the folder."""
        return self._listing.images[sample]

    def place(self, sample: int) -> str:
        """The folder."""
        return str(self.folder)

    def read(self, sample: int, wanted: Collection[str] | None = None) -> dict[str, bytes]:
        """The image under its extension, and the files beside it under theirs.

        Raises:
            SampleError: one of them is gone.
        """
        image = self._listing.images[sample]
        names = self._listing.files(image) | {image_extension(image): image}
        return {
            extension: read_image(
                self.folder, name, what="image" if name == image else f".{extension}"
            )
            for extension, name in names.items()
            if wanted is None or extension in wanted
        }


def _fingerprint(folder: Path, names: list[str]) -> str:
    sizes = hashlib.blake2b(digest_size=16)
    for name in names:
        try:
            size = os.stat(os.path.join(folder, name)).st_size
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ELOOP):
                raise
            size = -1  # a broken link, which is a bad sample
        sizes.update(os.fsencode(f"{name} {size}\n"))  # a name may be no UTF-8
    return sizes.hexdigest()
