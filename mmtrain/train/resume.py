"""What of a recipe has changed when a run is resumed, and whether it may."""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from mmtrain.errors import UsageError
from mmtrain.files import parse_json, replace_file
from mmtrain.settings.describe import NONE, join, show
from mmtrain.train.resume_keys import FIXED, FREE, TOLD, Kind, kinds_of

HISTORY_FILE = "history.jsonl"


@dataclass(frozen=True, kw_only=True)
class Change:
    """A key of a recipe that has another value than a checkpoint's."""

    key: str
    before: Any
    """As TOML has it; None: none."""
    now: Any

    @property
    def kind(self) -> Kind:
        """A whole section that came or went, or a key that this version does not have, is fixed."""
        kinds = kinds_of(self.key)
        return kinds[0] if kinds else "fixed"

    def __str__(self) -> str:
        return f"{self.key}: {show_value(self.before)} -> {show_value(self.now)}"


def find_changes(
    saved: Mapping[str, Any], recipe: Any, *, batches_per_epoch: int = 0
) -> list[Change]:
    """Where a resolved recipe differs in meaning from one that a checkpoint holds.

    The folder is not compared: it is where the checkpoint was found.
    A key that the checkpoint's version did not have yet counts with its default; 1 and 1.0, a list
    of one and its member, and so many epochs and as many steps are the same.

    Args:
        saved: the checkpoint's recipe, as `encode` gives it.
        recipe: this run's, resolved.
        batches_per_epoch: steps of an epoch; 0: nobody knows.
    """
    changes = [one for one in _differences(saved, recipe, "") if one.key != "run.dir"]
    lengths = {change.key: change for change in changes if change.key in _LENGTHS}
    if lengths and batches_per_epoch:
        train: Any = saved.get("train", {})
        before = {name: train.get(name, NONE) for name in ("steps", "epochs")}
        now = {name: getattr(recipe.train, name) for name in ("steps", "epochs")}
        if _length(before, batches_per_epoch) == _length(now, batches_per_epoch):
            changes = [change for change in changes if change.key not in lengths]
    return changes


def check_changes(
    changes: list[Change], path: Path, *, wanted: bool, accepted: Mapping[str, Any]
) -> None:
    """Refuse changes that make another run, or that nobody said were wanted.

    Args:
        changes: from `find_changes`.
        path: the checkpoint, for messages.
        wanted: --resume-with-changes was given.
        accepted: keys and values that it was given for already, from `read_history`.

    Raises:
        UsageError: naming key, both values and the remedy.
    """
    by_kind: dict[Kind, list[Change]] = {"fixed": [], "told": [], "free": []}
    for change in changes:
        by_kind[change.kind].append(change)
    unsaid = [
        change
        for change in by_kind["told"]
        if not wanted and accepted.get(change.key, ...) != change.now
    ]
    for found, remedy in (
        (
            by_kind["fixed"],
            "the steps behind would not be those of this recipe; go on with what was saved "
            "(without a recipe --resume takes the run's own), or start a new run in another "
            "--run-dir",
        ),
        (
            unsaid,
            "add --resume-with-changes if the run is to go on so, or go on with what was saved "
            "(without a recipe --resume takes the run's own)",
        ),
    ):
        if found:
            # Last what other sections fix for the model: the user wrote those.
            first, *more = sorted(found, key=lambda change: change.key.startswith("model."))
            others = f" (and {', '.join(map(str, more))})" if more else ""
            raise UsageError(
                f"{first.key} = {show_value(first.now)}, but {path} was saved with "
                f"{show_value(first.before)}{others}: {remedy}"
            )


def read_history(run_dir: Path) -> list[dict[str, Any]]:
    """RUN/history.jsonl: the changes that a run was resumed with, a record for each resume.

    Raises:
        UsageError: it cannot be read, or a line of it is damaged.
    """
    path = run_dir / HISTORY_FILE
    if not path.exists():
        return []
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    return [_read_record(line, f"{path}:{i}") for i, line in enumerate(lines, 1) if line]


def _read_record(line: bytes, place: str) -> dict[str, Any]:
    record: dict[str, Any] = {}
    try:
        record = parse_json(line)
        is_whole = isinstance(record["step"], int) and isinstance(record["time"], str)
        pairs = record["changes"].values()
        is_whole = is_whole and all(isinstance(p, list) and len(p) == 2 for p in pairs)
    except (ValueError, KeyError, TypeError, AttributeError):
        is_whole = False
    if not is_whole:
        raise UsageError(
            f"{place} is damaged, the record of what a run was resumed with; remove that line: "
            "changes that it held are then asked for again"
        )
    return record


def accepted_at(history: list[dict[str, Any]], step: int) -> dict[str, Any]:
    """Keys and values that a run was to go on with from a step on, or from a later one that is
    lost: killed before its next checkpoint, it need not be told again."""
    return {
        key: now
        for record in history
        if record["step"] >= step
        for key, (_, now) in record["changes"].items()
    }


def write_history(run_dir: Path, changes: list[Change], *, step: int) -> list[dict[str, Any]]:
    """Add what a run is resumed with at a step -> the whole history.

    Records of that step or later ones are dropped: their steps come again.
    """
    old = read_history(run_dir)
    kept = [record for record in old if record["step"] < step]
    if changes:
        time = datetime.now().astimezone().isoformat(" ", "seconds")
        pairs = {change.key: [change.before, change.now] for change in changes}
        kept.append({"step": step, "time": time, "changes": pairs})
    if kept or old:
        text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in kept)
        replace_file(run_dir / HISTORY_FILE, text)
    return kept


_LENGTHS = ("train.steps", "train.epochs")


def _length(train: Mapping[str, Any], batches_per_epoch: int) -> int | None:
    steps, epochs = (_plain(train[name]) for name in ("steps", "epochs"))
    return steps if epochs is None else epochs * batches_per_epoch


def _differences(saved: Mapping[str, Any], config: Any, path: str) -> Iterator[Change]:
    fields = {field.name: field for field in dataclasses.fields(config)}
    for name, field in fields.items():
        value, key = getattr(config, name), join(path, name)
        before = saved[name] if name in saved else _default(field)
        if dataclasses.is_dataclass(value) and isinstance(before, dict):
            yield from _differences(before, value, key)
        elif _has_same_members(before, value) and _is_told_apart(key):
            members: Any = value
            for old, new in zip(before, members, strict=True):
                yield from _differences(old, new, f"{key}[{new.name}]")
        elif _are_like(before, value):
            pairs: Any = zip(before, value, strict=True)  # pyright: ignore[reportArgumentType]
            for index, (old, new) in enumerate(pairs):
                yield from _differences(old, new, f"{key}[{index}]")
        elif (old := _plain(before)) != (new := _plain(value)):
            yield Change(key=key, before=old, now=new)
    for name in saved.keys() - fields.keys():
        yield Change(key=join(path, name), before=_plain(saved[name]), now=None)


def _is_told_apart(key: str) -> bool:
    """Whether the keys of a list's sections are in the tables, and not only the list."""
    return any(name.startswith(f"{key}[].") for name in FREE | TOLD | FIXED)


def _has_same_members(before: Any, now: Any) -> bool:
    """Whether two lists of sections have members of the same names, in the same order."""
    if not (isinstance(now, tuple) and now and all(hasattr(one, "name") for one in now)):
        return False
    return [one.get("name") for one in before or ()] == [one.name for one in now]


def _are_like(before: Any, value: Any) -> bool:
    """Whether two lists are of as many tables, of the same kinds in the same order."""
    if not isinstance(value, tuple) or not isinstance(before, list | tuple):
        return False
    kinds = [getattr(member, "kind", None) for member in value]
    theirs = [member.get("kind", NONE) if isinstance(member, dict) else None for member in before]
    return bool(kinds) and None not in kinds and kinds == theirs


def _default(field: "dataclasses.Field[Any]") -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return _table(field.default_factory())
    return None if field.default is dataclasses.MISSING else field.default


def _table(value: Any) -> Any:
    """A section as a dict; anything else as it is."""
    is_section = dataclasses.is_dataclass(value) and not isinstance(value, type)
    return dataclasses.asdict(value) if is_section else value  # pyright: ignore[reportArgumentType]


def _plain(value: Any) -> Any:
    """A value in the one form that equal ones have in common, and that JSON keeps."""
    value = _table(value)
    if isinstance(value, dict):
        return {key: member for key, v in value.items() if (member := _plain(v)) is not None}
    if isinstance(value, list | tuple):
        members = [_plain(member) for member in value]
        return members[0] if len(members) == 1 and isinstance(members[0], str) else members
    return None if value == NONE else value


def show_value(value: Any) -> str:
    """A value of `Change`, as a user writes it."""
    return NONE if value is None else show(value)
