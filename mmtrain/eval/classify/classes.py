"""The classes of an evaluation: ids as the samples carry them, names for the prompts."""

import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mmtrain.errors import UsageError
from mmtrain.files import parse_json, text_lines
from mmtrain.settings.nearest import nearest

_FILES = {
    name: Path(__file__).with_name(f"{name}_classes.json") for name in ("imagenet", "objectnet")
}
_SUBSETS = Path(__file__).with_name("imagenet_subsets.json")
SUBSETS = ("imagenet-a", "imagenet-r", "imagenet-o")
"""Data sets of some of ImageNet's classes."""
NAMED_CLASSES = ("imagenet", *SUBSETS, "objectnet")
"""Classes by name. imagenet: ids are WordNet's, as the folders are called; the names are those that
OpenAI gave them for CLIP (arXiv:2103.00020, Sec. 3.1.4). imagenet-a, -r and -o: the 200 of them
that these sets have (arXiv:1907.07174, arXiv:2006.16241), as LAION's CLIP benchmark lists them.
objectnet: ids are ObjectNet's folders, names its own, of the 113 classes that ImageNet has too
(Barbu et al. 2019, NeurIPS, and its objectnet_to_imagenet_1k.json)."""


@dataclass(frozen=True, kw_only=True)
class ClassList:
    """Classes in the order that breaks ties."""

    ids: tuple[str, ...]
    """What a sample's label says; unique."""
    names: tuple[str, ...]
    """What a prompt says."""
    places: tuple[str, ...] = ()
    """What a label may say instead of the id, of each; empty: nothing."""
    is_chosen: bool = False
    """Which of them are answers was said by a `subset`, so which have images tells nothing."""
    is_list: bool = field(default=False, compare=False)
    """Names alone were said: their ids are their places, which nobody wrote."""

    def __post_init__(self) -> None:
        if not self.ids:
            raise UsageError("classes are empty; name at least one")
        if len(set(self.ids)) < len(self.ids):
            twice = next(one for one in self.ids if self.ids.count(one) > 1)
            raise UsageError(f"classes: the id {twice!r} is there more than once")
        assert len(self.ids) == len(self.names)
        assert len(self.places) in (0, len(self.ids))

    @property
    def numbers(self) -> dict[str, int]:
        """Of each label that a sample may have, the place of its class."""
        return {
            label: number
            for labels in (self.places, self.ids)
            for number, label in enumerate(labels)
        }

    @property
    def fingerprint(self) -> str:
        """Of ids and names in their order."""
        content = json.dumps([self.ids, self.names], ensure_ascii=False)
        return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def read_classes(path: Path | str) -> ClassList:
    """Classes from a file.

    JSON: a list of {"id", "name"}, other keys being ignored, or of names. A .txt: a name a line. A
    name alone has its place in the list, from 0, as its id. An id may be a number; it equals the
    label that is written the same.

    Raises:
        UsageError: the file is missing or not of this form, an id is there twice.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
        content = text_lines(text) if path.suffix == ".txt" else parse_json(text)
    except (OSError, ValueError) as error:
        near = nearest(path.name, NAMED_CLASSES)
        hint = f"; did you mean {near}?" if near and not path.exists() else ""
        raise UsageError(f"classes = {path} cannot be read: {error}{hint}") from error
    if not isinstance(content, list):
        raise UsageError(f'classes = {path} is no list; write [{{"id": ..., "name": ...}}, ...]')
    pairs = [_id_and_name(number, entry, path) for number, entry in enumerate(content)]
    try:
        return ClassList(
            ids=tuple(id for id, _ in pairs),
            names=tuple(name for _, name in pairs),
            is_list=all(isinstance(entry, str) for entry in content),
        )
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def class_list(classes: Path | str | ClassList | Sequence[str]) -> ClassList:
    """Classes by name, from a file, or as they are; a sequence's names have their places as ids."""
    if isinstance(classes, ClassList):
        return classes
    if isinstance(classes, str) and classes in NAMED_CLASSES:
        return _named_classes(classes)
    if isinstance(classes, Path | str):
        return read_classes(classes)
    ids = tuple(map(str, range(len(classes))))
    return ClassList(ids=ids, names=tuple(classes), is_list=True)


@functools.cache
def subset_places(name: str) -> tuple[int, ...]:
    """Which of ImageNet's classes one of `SUBSETS` has, from 0 in the order of their ids."""
    return tuple(json.loads(_SUBSETS.read_text(encoding="utf-8"))[name])


def _named_classes(name: str) -> ClassList:
    """A label may also be the place in the list."""
    found = read_classes(_FILES.get(name, _FILES["imagenet"]))
    kept = subset_places(name) if name in SUBSETS else range(len(found.ids))
    return ClassList(
        ids=tuple(found.ids[place] for place in kept),
        names=tuple(found.names[place] for place in kept),
        places=tuple(map(str, range(len(kept)))),
    )


def _id_and_name(number: int, entry: object, path: Path) -> tuple[str, str]:
    if isinstance(entry, str) and entry.strip():
        return str(number), entry.strip()
    if isinstance(entry, dict):
        id, name = entry.get("id"), entry.get("name")
        if isinstance(id, str | int) and isinstance(name, str) and name.strip():
            return str(id), name
    raise UsageError(
        f"{path}: entry {number} is {json.dumps(entry, ensure_ascii=False)[:80]}; write "
        '{"id": ..., "name": ...} or a name'
    )
