"""The classes of a zero-shot evaluation: ids as the samples carry them, names for the prompts."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mmtrain.errors import UsageError
from mmtrain.files import parse_json, text_lines

NAMED_CLASSES = {"imagenet": Path(__file__).with_name("imagenet_classes.json")}
"""Classes by name. imagenet: ids are WordNet's, as the folders are called; the names are those that
OpenAI gave them for CLIP (arXiv:2103.00020, Sec. 3.1.4)."""


@dataclass(frozen=True, kw_only=True)
class ClassList:
    """Classes in the order that breaks ties."""

    ids: tuple[str, ...]
    """What a sample's label says; unique."""
    names: tuple[str, ...]
    """What a prompt says."""

    def __post_init__(self) -> None:
        if not self.ids:
            raise UsageError("classes are empty; name at least one")
        if len(set(self.ids)) < len(self.ids):
            twice = next(one for one in self.ids if self.ids.count(one) > 1)
            raise UsageError(f"classes: the id {twice!r} is there more than once")
        assert len(self.ids) == len(self.names)

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
        raise UsageError(f"classes = {path} cannot be read: {error}") from error
    if not isinstance(content, list):
        raise UsageError(f'classes = {path} is no list; write [{{"id": ..., "name": ...}}, ...]')
    pairs = [_id_and_name(number, entry, path) for number, entry in enumerate(content)]
    try:
        return ClassList(ids=tuple(id for id, _ in pairs), names=tuple(name for _, name in pairs))
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def class_list(classes: Path | str | ClassList | Sequence[str]) -> ClassList:
    """Classes by name, from a file, or as they are; a sequence's names have their places as ids."""
    if isinstance(classes, ClassList):
        return classes
    if isinstance(classes, str) and classes in NAMED_CLASSES:
        return read_classes(NAMED_CLASSES[classes])
    if isinstance(classes, Path | str):
        return read_classes(classes)
    return ClassList(ids=tuple(map(str, range(len(classes)))), names=tuple(classes))


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
