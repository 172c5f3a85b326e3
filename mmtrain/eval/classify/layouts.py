"""What data say by themselves about an evaluation: their classes, prompts, where labels are.

    shards, a manifest, a saved data set    nothing; classes have to be named
    torchvision:NAME/SPLIT:ROOT             the classes
    a folder of folders of images           the classes, by the folders' names
    a folder of CLIP benchmark's            the classes and prompts

evaluate_zero_shot(encoder, **open_labelled({"data": "imagenet/val"}, classes="imagenet").arguments)
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmtrain.data.config import DataConfig
from mmtrain.data.sources.folder_reading import CLASSES
from mmtrain.data.sources.image_folder import CaptionFolderSource, ImageFolderSource
from mmtrain.data.sources.open import open_source, takes_image_key
from mmtrain.data.sources.source import Data, SampleSource
from mmtrain.data.sources.torchvision_sets import TorchvisionSource
from mmtrain.data.storage.hidden_names import is_hidden, tars_in
from mmtrain.errors import UsageError
from mmtrain.eval.classify.classes import ClassList, class_list, read_classes
from mmtrain.eval.classify.classification import ReadClass
from mmtrain.eval.classify.listed_names import by_their_names, refuse_other_order
from mmtrain.eval.classify.prompts import load_templates
from mmtrain.eval.classify.some_classes import only_classes
from mmtrain.eval.classify.subsets import choose

CLASS_NAMES_FILE = "classnames.txt"
TEMPLATES_FILE = "zeroshot_classification_templates.txt"
OBJECTNET = "objectnet"
"""Classes of a folder that has others too, which its published figures leave out."""
LABEL_KEY = "concept"
"""The .json's field that holds a class id where nothing else is said."""

Classes = Path | str | ClassList | Sequence[str]
"""What `class_list` takes."""


@dataclass(frozen=True, kw_only=True)
class LabelledInputs:
    """Opened data with their classes."""

    sources: dict[str, SampleSource]
    """By the names of the arguments that they are: `data`, or `train` and `test`."""
    classes: ClassList
    """Ids as the samples carry them, and names for the prompts."""
    label_key: str
    """Where a sample's class id is."""
    templates: tuple[str, ...] | None
    """The data's own prompts."""
    left_out: int = 0
    """Images of classes that are no answers."""

    @property
    def arguments(self) -> dict[str, Any]:
        """By their names in `evaluate_zero_shot`, `evaluate_linear_probe` and `evaluate_knn`."""
        return {**self.sources, "classes": self.classes, "label_key": self.label_key}

    @property
    def read_class(self) -> ReadClass:
        """Finds a sample's class."""
        return ReadClass.of(self.classes, self.label_key)


@dataclass(frozen=True, kw_only=True)
class _Found:
    """One set, and what its layout says."""

    source: SampleSource
    own_label_key: str | None = None
    classes: ClassList | None = None
    templates: tuple[str, ...] | None = None


def open_labelled(
    sets: Mapping[str, Data],
    *,
    classes: Classes | None = None,
    subset: str | None = None,
    label_key: str | None = None,
    image_key: str = DataConfig.image_key,
    index_dir: str | None = None,
) -> LabelledInputs:
    """Open data of any layout, all of them with the same classes.

    Args:
        sets: by the name of the argument that each is; the first one's classes are all's.
        classes: their names: `imagenet`, a file or the names themselves. For a folder of folders
            ids that are the folders' names pick those folders' classes; else there must be as many
            names as folders, and they follow the folders' order (by number where all are called by
            one, else by letter), or are the folders' own. None: what the data say.
        subset: which of the classes are answers, see `choose`. Images in folders of other classes
            are left out, and so are those of the classes that ObjectNet has beside `objectnet`.
        label_key: where the class id of a sample is that no layout says it of: a member such as
            `cls`, or a field of its .json. None: `concept`.
        image_key: of a manifest or a saved data set, as data.image_key.
        index_dir: where the indexes of shards are kept.

    Raises:
        UsageError: nothing is there, the classes are not named, or the sets do not agree.
    """
    is_shared = len(sets) > 1
    found = {
        name: _open(data, key=name, image_key=image_key, index_dir=index_dir, is_shared=is_shared)
        for name, data in sets.items()
    }
    if not any(takes_image_key(each.source, image_key) for each in found.values()):
        raise UsageError(
            f"image_key = {image_key} has no effect on {', '.join(sets)}; leave it out"
        )
    keys = {name: _label_key(each, label_key, name) for name, each in found.items()}
    first_name, first = next(iter(found.items()))
    for name, each in found.items():
        if keys[name] != keys[first_name]:
            raise UsageError(
                f"{name} has its classes under {keys[name]!r} and {first_name} under "
                f"{keys[first_name]!r}; name data of one layout"
            )
        if classes is None:
            _refuse_other_classes(each, first, name, first_name)
    is_chosen = subset is not None or classes == OBJECTNET
    named = _resolve(first, classes, sets[first_name], is_chosen=is_chosen)
    known = choose(named, subset)
    sources = {name: each.source for name, each in found.items()}
    if is_chosen:
        whole = _objectnet_and_others(first.source, named) if classes == OBJECTNET else named
        sources = {n: only_classes(each, known, whole, key=n) for n, each in sources.items()}
    return LabelledInputs(
        sources=sources,
        classes=known,
        label_key=keys[first_name],
        templates=first.templates,
        left_out=sum(
            each.source.num_samples - sources[name].num_samples for name, each in found.items()
        ),
    )


def _open(
    data: Data, *, key: str, image_key: str, index_dir: str | None, is_shared: bool
) -> _Found:
    single = data if isinstance(data, str) else None
    if isinstance(data, Sequence) and len(data) == 1:
        single = data[0]
    if single is not None and (split := _clip_benchmark_split(Path(single).expanduser(), key)):
        prompts = split.parent / TEMPLATES_FILE
        return _Found(
            source=open_source(str(split), index_dir=index_dir, image_key=image_key, key=key),
            own_label_key="cls",
            classes=read_classes(split.parent / CLASS_NAMES_FILE),
            templates=load_templates(str(prompts)) if prompts.is_file() else None,
        )
    source = open_source(
        data, index_dir=index_dir, image_key=image_key, key=key, is_shared=is_shared
    )
    if isinstance(source, TorchvisionSource):
        return _Found(source=source, own_label_key="cls", classes=class_list(source.classes))
    if isinstance(source, ImageFolderSource):
        names = tuple(folder.replace("_", " ") for folder in source.classes)
        return _Found(
            source=source,
            own_label_key="class",
            classes=ClassList(ids=tuple(source.classes), names=names),
        )
    return _Found(source=source)


def _clip_benchmark_split(folder: Path, key: str) -> Path | None:
    """The folder of a split: `folder` itself, or its `test` where it is the data set's.

    CLIP benchmark's webdataset layout: classnames.txt, zeroshot_classification_templates.txt (`{c}`
    for the class) and a folder of shards for each split, a sample's class number being its `.cls`.
    """
    if (folder.parent / CLASS_NAMES_FILE).is_file() and folder.is_dir() and tars_in(folder):
        return folder
    if not (folder / CLASS_NAMES_FILE).is_file():
        return None
    if (folder / "test").is_dir():
        return folder / "test"
    splits = ", ".join(
        sorted(
            str(child) for child in folder.iterdir() if child.is_dir() and not is_hidden(child.name)
        )
    )
    raise UsageError(f"{key} = {folder} has no split test; name one of its folders: {splits}")


def _label_key(found: _Found, asked: str | None, name: str) -> str:
    if found.own_label_key is None:
        return asked or LABEL_KEY
    if asked not in (None, found.own_label_key):
        raise UsageError(
            f"label_key = {asked}: the layout of {name} says where its classes are; leave it out"
        )
    return found.own_label_key


def _refuse_other_classes(found: _Found, first: _Found, name: str, first_name: str) -> None:
    if found.classes is None or first.classes is None:
        return
    names = dict(zip(first.classes.ids, first.classes.names, strict=True))
    for id, spoken in zip(found.classes.ids, found.classes.names, strict=True):
        if names.get(id) != spoken:
            raise UsageError(
                f"{name} has the class {id} ({spoken}), {first_name} has not; name data of the "
                "same classes"
            )


def _resolve(found: _Found, classes: Classes | None, data: Data, *, is_chosen: bool) -> ClassList:
    """All classes that are named.

    Args:
        found: the set that says its own.
        classes: what the user says.
        data: for the message.
        is_chosen: whether it is said beside them which are answers, and not left to the folders.
    """
    if isinstance(found.source, ImageFolderSource) and classes is not None:
        named = class_list(classes)
        if is_chosen and set(found.source.classes) & named.numbers.keys():
            return named
        return _folder_classes(found.source, named)
    told = " ".join(data) if isinstance(data, Sequence) and not isinstance(data, str) else data
    if classes is not None:
        named = class_list(classes)
        if named.is_list and found.classes is not None:
            refuse_other_order(found.classes.names, named.names, told=str(told))
        return named
    if found.classes is None:
        hint = ""
        if isinstance(found.source, CaptionFolderSource) and found.source.has_folders:
            hint = f"; or write {CLASSES}{told}, if its folders are the classes"
        raise UsageError(
            f"classes are not named, and {told} says none; name them: imagenet, or a file{hint}"
        )
    return found.classes


def _objectnet_and_others(source: SampleSource, named: ClassList) -> ClassList:
    """Also the 200 classes that ImageNet has not, by their folders."""
    folders = source.classes if isinstance(source, ImageFolderSource) else ()
    others = tuple(folder for folder in folders if folder not in named.numbers)
    return ClassList(ids=(*named.ids, *others), names=(*named.names, *others))


def _folder_classes(source: ImageFolderSource, named: ClassList) -> ClassList:
    folders, by_id = source.classes, dict(zip(named.ids, named.names, strict=True))
    # ImageNet-V2's are called 0 to 999, of which 10 would stand before 2 by letter.
    numbered = all(re.fullmatch("[0-9]+", folder) for folder in folders)
    ordered = sorted(folders, key=lambda name: (int(name), name)) if numbered else folders
    told = str(source.folder)
    if named.is_list and len(named.names) == len(folders) and set(folders) == by_id.keys():
        names = by_their_names(ordered, named.names, told=told)
        by_id = dict(zip(ordered, names, strict=True))
    if set(folders) <= by_id.keys():
        # A part of ImageNet, such as its 200 hardest classes, chooses among its own classes.
        return ClassList(ids=tuple(folders), names=tuple(by_id[folder] for folder in folders))
    if len(named.names) == len(folders) and not set(folders) & by_id.keys():
        names = named.names
        if named.is_list:
            names = by_their_names(ordered, names, told=told)
        return ClassList(ids=tuple(ordered), names=tuple(names))
    unknown = next(folder for folder in folders if folder not in by_id)
    raise UsageError(
        f"classes: {len(named.names)} names for the {len(folders)} folders of {source.folder}, "
        f"whose {unknown!r} is no id among them; name every folder's class"
    )
