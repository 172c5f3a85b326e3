"""How a folder of images is read: as classes, by the captions beside the images, or by a table.

Where more than one reading is possible none is taken: the folder is refused, and the message names
them and how to say which.

    classes:FOLDER           each folder in it a class, whatever else lies there
    captions:FOLDER          every image with the .txt and .json beside it, if there are any
    FOLDER/metadata.csv      the table's rows
"""

from pathlib import Path

from mmtrain.data.sources.folder_listing import METADATA, FolderListing, list_folder
from mmtrain.data.sources.image_folder import CaptionFolderSource, ImageFolderSource
from mmtrain.data.sources.manifest import ManifestSource
from mmtrain.errors import UsageError

CLASSES = "classes:"
CAPTIONS = "captions:"
METADATA_KEY = "file_name"
"""The images' column in a table called metadata."""
SPLITS = frozenset(
    {
        *("train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval"),
        *("evaluation", "holdout"),
    }
)
"""What folders and files of parts of a data set are called."""

Source = ImageFolderSource | CaptionFolderSource | ManifestSource


def open_images(listing: FolderListing, *, key: str) -> Source:
    """The one reading of a folder of images.

    Raises:
        UsageError: there are several.
    """
    folder, num = listing.folder, len(listing.images)
    captioned, at_top = listing.num_captioned(), listing.num_at_top()
    if listing.tables:
        return _open_table(listing, captioned, key=key)
    _refuse_splits(listing, key=key)
    if captioned in (0, num) and at_top in (0, num):
        if captioned or at_top:
            return CaptionFolderSource(listing)
        return ImageFolderSource(folder, listing=listing, key=key)
    if captioned and at_top:
        return CaptionFolderSource(listing)  # those without a caption are bad samples
    if captioned:
        raise UsageError(
            f"{key} = {folder} may be folders that are classes, or images with captions, which lie "
            f"beside {captioned} of {num}; write {CLASSES}{folder} or {CAPTIONS}{folder}"
        )
    raise UsageError(
        f"{key} = {folder} holds images both at its top ({at_top} of {num}) and in folders; write "
        f"{CLASSES}{folder} for those in folders, each a class, or {CAPTIONS}{folder} for all"
    )


def _open_table(listing: FolderListing, captioned: int, *, key: str) -> Source:
    folder, tables = listing.folder, sorted(listing.tables)
    below = [name for name in tables if "/" in name]
    if below:
        parts = ", ".join(f"{folder}/{name.rpartition('/')[0]}" for name in below)
        raise UsageError(f"{key} = {folder}: a table ({below[0]}) lies deeper; name one of {parts}")
    path = folder / tables[0]
    is_metadata = path.stem.lower() == METADATA and path.suffix.lower() != ".parquet"
    if len(tables) == 1 and is_metadata and not captioned:
        source = ManifestSource(path, image_key=METADATA_KEY, key=key)
        if source.num_samples >= len(listing.images):
            return source
        told = f"has {len(listing.images)} images, of which {path} names {source.num_samples}"
    else:
        told = f"holds images and {' and '.join(tables)}"
        told += f", and captions beside {captioned} images" if captioned else ""
    choices = [f"{folder}/{name}" for name in tables]
    choices += [f"{CAPTIONS}{folder}"] + [f"{CLASSES}{folder}"] * bool(listing.folders())
    raise UsageError(f"{key} = {folder} {told}; write which to read: {' or '.join(choices)}")


def _refuse_splits(listing: FolderListing, *, key: str) -> None:
    names = listing.folders()
    if names and all(name.lower() in SPLITS for name in names) and not listing.num_at_top():
        folder = listing.folder
        choices = " or ".join(f"{folder}/{name}" for name in names)
        raise UsageError(
            f"{key} = {folder} holds parts of a data set ({', '.join(names)}); name one: "
            f"{choices}; or write {CLASSES}{folder} if these are classes"
        )


def open_as(spec: str, *, key: str) -> Source:
    """The reading that a spec asks for.

    Raises:
        UsageError: there is no such folder, or no image in it.
    """
    folder = Path(spec.partition(":")[2]).expanduser()
    if not folder.is_dir():
        raise UsageError(f"{key} = {spec}: {folder} is no folder; name one of images")
    listing = list_folder(folder)
    if not listing.images:
        raise UsageError(f"{key} = {spec}: the folder holds no images; name another one")
    if spec.startswith(CLASSES):
        return ImageFolderSource(listing.folder, listing=listing, key=key)
    return CaptionFolderSource(listing)
