"""What a folder's layout says by itself about an evaluation: classes, prompts, where labels are.

evaluate_zero_shot(encoder, **image_folder("imagenet/val", classes="imagenet").arguments)
evaluate_zero_shot(encoder, **clip_benchmark("wds_cifar10").arguments)
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from mmtrain.data.sources import ImageFolderSource, SampleSource
from mmtrain.errors import UsageError
from mmtrain.eval.classes import ClassList, class_list, read_classes
from mmtrain.eval.prompts import load_templates

CLASS_NAMES_FILE = "classnames.txt"
TEMPLATES_FILE = "zeroshot_classification_templates.txt"


@dataclass(frozen=True, kw_only=True)
class ZeroShotTask:
    """Arguments of `evaluate_zero_shot`."""

    data: str | SampleSource
    """Shards, or an opened source."""
    classes: ClassList
    """Ids as the samples carry them, and names for the prompts."""
    label_key: str
    """Where a sample's class id is."""
    templates: str | tuple[str, ...]
    """Prompts, or their name."""

    @property
    def arguments(self) -> dict[str, Any]:
        """By their names in `evaluate_zero_shot`."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def image_folder(
    path: Path | str,
    *,
    classes: Path | str | ClassList | Sequence[str] | None = None,
    templates: str | Sequence[str] = "imagenet",
) -> ZeroShotTask:
    """A folder of folders of images, each folder a class: torchvision's ImageFolder, ImageNet.

    Args:
        path: the folder that holds the classes' folders.
        classes: their names: `imagenet`, a file or the names themselves. Ids that are the folders'
            names pick those folders' classes; else there must be as many names as folders, and they
            follow the folders' alphabetical order. None: the folders' names, spaces for
            underscores.
        templates: as of `evaluate_zero_shot`.

    Raises:
        UsageError: no images there, or the classes are not the folders'.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise UsageError(f"data = {folder} is no folder; name one with a folder for each class")
    source = ImageFolderSource(folder, key="data")
    return ZeroShotTask(
        data=source,
        classes=_folder_classes(source.classes, classes, folder),
        label_key="class",
        templates=templates if isinstance(templates, str) else tuple(templates),
    )


def _folder_classes(
    folders: Sequence[str],
    classes: Path | str | ClassList | Sequence[str] | None,
    path: Path,
) -> ClassList:
    if classes is None:
        names = tuple(folder.replace("_", " ") for folder in folders)
        return ClassList(ids=tuple(folders), names=names)
    named = class_list(classes)
    by_id = dict(zip(named.ids, named.names, strict=True))
    if set(folders) <= by_id.keys():
        # A part of ImageNet, such as its 200 hardest classes, chooses among its own classes.
        return ClassList(ids=tuple(folders), names=tuple(by_id[folder] for folder in folders))
    if len(named.names) == len(folders) and not set(folders) & by_id.keys():
        return ClassList(ids=tuple(folders), names=named.names)
    unknown = next(folder for folder in folders if folder not in by_id)
    raise UsageError(
        f"classes: {len(named.names)} names for the {len(folders)} folders of {path}, whose "
        f"{unknown!r} is no id among them; name every folder's class"
    )


@dataclass(frozen=True, kw_only=True)
class RetrievalTask:
    """Arguments of `evaluate_retrieval`."""

    data: str
    """Shards."""
    captions: tuple[str, ...]
    """Where captions are."""
    caption_lines: bool
    """Every line of a text is a caption."""

    @property
    def arguments(self) -> dict[str, Any]:
        """By their names in `evaluate_retrieval`."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def clip_benchmark(path: Path | str, *, split: str = "test") -> ZeroShotTask:
    """CLIP benchmark's webdataset layout for classification.

    The folder holds classnames.txt, zeroshot_classification_templates.txt (`{c}` for the class) and
    a folder of shards for each split, whose samples carry the class's number as `.cls`.

    Raises:
        UsageError: a file or the split is missing.
    """
    folder = Path(path).expanduser()
    return ZeroShotTask(
        data=_split_of(folder, split),
        classes=read_classes(folder / CLASS_NAMES_FILE),
        label_key="cls",
        templates=load_templates(str(folder / TEMPLATES_FILE)),
    )


def clip_benchmark_retrieval(path: Path | str, *, split: str = "test") -> RetrievalTask:
    """CLIP benchmark's webdataset layout for retrieval: a sample's `.txt` has a caption a line.

    Raises:
        UsageError: the split is missing.
    """
    data = _split_of(Path(path).expanduser(), split)
    return RetrievalTask(data=data, captions=("txt",), caption_lines=True)


def _split_of(folder: Path, split: str) -> str:
    if (folder / split).is_dir():
        return str(folder / split)
    there = (
        sorted(child.name for child in folder.iterdir() if child.is_dir())
        if folder.is_dir()
        else []
    )
    remedy = f"choose among {', '.join(there)}" if there else "name a folder of CLIP benchmark's"
    raise UsageError(f"data = {folder} has no split {split!r}; {remedy}")
