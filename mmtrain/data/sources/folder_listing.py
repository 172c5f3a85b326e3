"""What lies in a folder: images, what lies beside them under the same name, and tables."""

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from mmtrain.data.images.decode import has_image_magic, has_image_name
from mmtrain.data.sources.image_paths import open_at_once
from mmtrain.data.sources.table import TABLE_SUFFIXES
from mmtrain.data.storage.hidden_names import is_hidden

TEXTS = ("txt", "json")
"""What holds a caption beside an image."""
METADATA = "metadata"
"""The name of a table of captions in Hugging Face's ImageFolder."""

_TABLES = tuple(suffix for suffix in TABLE_SUFFIXES if suffix != ".json")
_CAPTION_WORDS = ("caption", METADATA, "annotation")
_NO_IMAGES = frozenset(
    (
        *("txt", "json", "jsonl", "ndjson", "csv", "tsv", "cls", "parquet", "arrow", "tar"),
        *("index", "md", "html", "xml", "yaml", "yml", "toml", "npy", "npz", "pt", "pth", "pkl"),
        *("zip", "gz", "log", "py", "sh", "db", "safetensors", "feather"),
    )
)
"""Files that are not looked into for an image."""
_NO_FILE = (errno.ENOENT, errno.ELOOP, errno.ENXIO)


@dataclass(frozen=True, kw_only=True)
class FolderListing:
    """Paths inside a folder, with slashes; hidden ones count nowhere."""

    folder: Path
    """The folder."""
    images: list[str] = field(default_factory=list)
    """Sorted by their folders' names, then by their own."""
    beside: dict[str, dict[str, str]] = field(default_factory=dict)
    """By a path without its extension: the other files of the name, by extension."""
    tables: list[str] = field(default_factory=list)
    """At the top, or called metadata: what may hold captions."""
    parquet: list[str] = field(default_factory=list)
    """Parquet files."""

    def files(self, image: str) -> dict[str, str]:
        """What lies beside an image, `a.txt` or `a.jpg.txt` beside `a.jpg`, by extension."""
        return self.beside.get(_stem(image), {}) | self.beside.get(image, {})

    def of_kinds(self, *extensions: str) -> list[str]:
        """Files beside the images that have one of the extensions."""
        kinds = self.beside.values()
        return sorted(each[name] for each in kinds for name in extensions if name in each)

    def num_captioned(self) -> int:
        """Images with a text beside them."""
        if not self.beside:
            return 0
        return sum(any(kind in self.files(image) for kind in TEXTS) for image in self.images)

    def num_at_top(self) -> int:
        """Images in no folder of the folder."""
        return sum("/" not in image for image in self.images)

    def folders(self) -> list[str]:
        """Those at the top that hold images."""
        return sorted({image.split("/")[0] for image in self.images if "/" in image})


def list_folder(folder: Path) -> FolderListing:
    """Go through a folder and the folders in it.

    Raises:
        OSError: one of them cannot be read.
    """
    found = FolderListing(folder=folder)
    for name in _files(folder, ""):
        if has_image_name(name):
            found.images.append(name)
            continue
        extension = os.path.splitext(name)[1][1:].lower()
        if extension not in _NO_IMAGES and _begins_as_image(folder, name):
            found.images.append(name)
            continue
        if extension:
            found.beside.setdefault(_stem(name), {})[extension] = name
        if extension == "parquet":
            found.parquet.append(name)
    found.images.sort(key=lambda name: name.split("/"))
    stems: set[str] = set()
    if found.beside:
        stems = {_stem(image) for image in found.images} | set(found.images)
    for stem, kinds in found.beside.items():
        if stem not in stems:
            found.tables.extend(name for name in kinds.values() if _is_table(name))
    return found


def _files(folder: Path, prefix: str) -> Iterator[str]:
    with os.scandir(folder / prefix) as entries:
        for entry in entries:
            if is_hidden(entry.name):
                continue
            # A link to a folder counts at the top alone: deeper ones may lead back.
            if _is_folder(entry, follow=not prefix):
                yield from _files(folder, f"{prefix}{entry.name}/")
            elif not _is_folder(entry, follow=True):
                yield prefix + entry.name


def _is_folder(entry: os.DirEntry[str], *, follow: bool) -> bool:
    try:
        return entry.is_dir(follow_symlinks=follow)
    except OSError as error:  # links in a circle
        if error.errno != errno.ELOOP:
            raise
        return False


def _stem(name: str) -> str:
    return os.path.splitext(name)[0]


def _begins_as_image(folder: Path, name: str) -> bool:
    try:
        with open_at_once(folder / name) as file:
            return has_image_magic(file.read(16))
    except OSError as error:  # a link that leads nowhere or a socket, and no file of ours
        if error.errno not in _NO_FILE:
            raise
        return False


def _is_table(name: str) -> bool:
    path = PurePosixPath(name)
    stem, suffix = path.stem.lower(), path.suffix.lower()
    if stem == METADATA and suffix in (*_TABLES, ".parquet"):
        return True
    says_so = suffix in (".json", ".txt") and any(word in stem for word in _CAPTION_WORDS)
    return "/" not in name and (suffix in _TABLES or says_so)
