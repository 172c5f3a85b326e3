"""Which shards the user means: paths, folders, globs and brace ranges, here or in a store."""

import fnmatch
import glob
import itertools
import math
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from mmtrain.data.shards.index_file import OWN_SUFFIXES
from mmtrain.data.storage.addresses import SCHEMES, is_remote, local_path, scheme_of
from mmtrain.data.storage.hidden_names import is_hidden, tars_in
from mmtrain.data.storage.listing import list_remote
from mmtrain.data.storage.patience import may_pass, patience, patiently
from mmtrain.errors import UsageError
from mmtrain.settings.paths import refuse_secrets

_BRACES = re.compile(r"\{([^{}]*)\}")
_MOST_NAMES = 10_000_000
"""That a range may stand for; what is beyond would fill the memory with names."""
_MAGIC = re.compile(r"[*?[]")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
# webdataset's list; not the colons of an IPv6 address.
_AND = re.compile(r"::(?![^\[]*\])")


def is_in_store(pattern: str) -> bool:
    """Whether any of what a pattern stands for is of one of `SCHEMES`."""
    return any(map(is_remote, _split(pattern)))


def any_in_store(value: object) -> bool:
    """Whether any text in a section, its tables and lists is a pattern of what is in a store."""
    if isinstance(value, str):
        return is_in_store(value)
    if isinstance(value, Mapping):
        return any(map(any_in_store, value.values()))
    return isinstance(value, list | tuple) and any(map(any_in_store, value))


def expand_patterns(
    patterns: str | tuple[str, ...],
    *,
    key: str = "data.train",
    retry_seconds: float | None = None,
) -> list[str]:
    """The shards' paths, sorted, each once.

    A pattern is a path, a folder (its *.tar), a glob, or has ranges `{00000..00099}` or lists
    `{train,val}` in braces; several stand in one text with `::` between them. Each may be on this
    machine or of one of `SCHEMES`.

    Args:
        patterns: one pattern or several.
        key: the setting that they come from, for messages.
        retry_seconds: how long a disk's fault is given to pass, since a folder that cannot be
            listed just now is no empty one; None: see `waiting`.

    Raises:
        UsageError: a pattern matches nothing or cannot be looked up, or a shard does not exist.
    """
    listed = (patterns,) if isinstance(patterns, str) else patterns
    if not listed or not all(listed):
        raise UsageError(f'{key} = {patterns!r} names no shards; give a path such as "data/*.tar"')
    seconds = patience(retry_seconds)
    found: dict[str, str] = {}
    for pattern in itertools.chain.from_iterable(map(_split, listed)):
        try:
            paths = patiently(partial(_expand, pattern, key), seconds=seconds)
        except OSError as error:
            tried = f", tried for {seconds:g} s (data.retry_seconds)" if may_pass(error) else ""
            raise UsageError(
                f"{key} = {pattern}: {error.filename or 'it'} cannot be listed: "
                f"{error.strerror or error}{tried}"
            ) from error
        for path in paths:
            found.setdefault(path if is_remote(path) else os.path.abspath(path), path)
    return sorted(found.values())


def _split(pattern: str) -> list[str]:
    """`a::b` as two, unless a file has that name."""
    if "::" not in pattern or os.path.lexists(pattern):
        return [pattern]
    parts = _AND.split(pattern)
    return [part for part in parts if part] or [pattern]


def _expand(pattern: str, key: str) -> list[str]:
    refuse_secrets(pattern, key)
    scheme = scheme_of(pattern)
    if scheme and scheme not in SCHEMES:
        if scheme == "pipe":
            raise UsageError(
                f"{key} = {pattern}: pipe: is not read by ranges; a recipe reads it with "
                "data.stream = true and data.allow_pipe = true"
            )
        known = ", ".join(f"{each}://" for each in SCHEMES)
        raise UsageError(
            f"{key} = {pattern}: {scheme}: is not read, only local files and {known} are; "
            "copy the shards to one of these"
        )
    pattern = local_path(pattern)
    paths: list[str] = []
    missing: list[str] = []
    for name in _spelled_out(os.path.expanduser(pattern), key):
        matches = _match(name, key)
        paths += matches
        if not matches:
            missing.append(name)
    if not missing and not paths:
        raise UsageError(f"{key} = {pattern}: the range is empty; write the smaller number first")
    if missing == [os.path.expanduser(pattern)]:
        raise UsageError(f"{key} = {pattern}: {_why_nothing(missing[0])}")
    if missing:
        raise UsageError(
            f"{key} = {pattern}: {len(missing)} of {len(missing) + len(paths)} do not exist, the "
            f"first is {missing[0]}; correct the range or fetch them"
        )
    return paths


def _spelled_out(pattern: str, key: str) -> Iterator[str]:
    """`expand_braces`, of as many names as shards could be.

    Raises:
        UsageError: it stands for more.
    """
    inside = [braces.group(1) for braces in _BRACES.finditer(pattern)]
    spans = [found.groups() for each in inside if (found := _RANGE.fullmatch(each))]
    num = math.prod(max(0, int(last) - int(first) + 1) for first, last in spans)
    if num > _MOST_NAMES:
        raise UsageError(
            f"{key} = {pattern}: the range stands for {num:,} names, and {_MOST_NAMES:,} are the "
            "most; correct it, or write a glob"
        )
    return expand_braces(pattern)


def _match(name: str, key: str) -> list[str]:
    """What is there of a name. `os.path` and `glob` would take a fault of the disk for nothing.

    Raises:
        OSError: it cannot be looked up.
        UsageError: a link that leads nowhere is among it.
    """
    if is_remote(name):
        return [each for each in list_remote(name, key=key) if not each.endswith(OWN_SUFFIXES)]
    mode = _mode(name)
    if mode is not None and not stat.S_ISDIR(mode):
        return [name]
    root = _MAGIC.split(name)[0]
    found = _glob(name) if mode is None else tars_in(name)
    # `data/*` also matches the indexes that we keep there, and what systems leave there.
    matches = [
        match
        for match in found
        if not match.endswith(OWN_SUFFIXES)
        and not (mode is None and is_hidden(match.removeprefix(root)))
    ]
    modes = [_mode(match) for match in matches]
    if None in modes:
        broken = matches[modes.index(None)]
        raise UsageError(f"{key}: {broken} is a link that leads nowhere; mend or remove it")
    return [m for m, mode in zip(matches, modes, strict=True) if mode and stat.S_ISREG(mode)]


def _mode(path: str) -> int | None:
    try:
        return os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):  # no name holds a zero byte
        return None


def _glob(name: str) -> list[str]:
    folder, last = os.path.split(name)
    if glob.has_magic(folder) or "**" in last or not glob.has_magic(last):
        return glob.glob(name, recursive=True)
    if _mode(folder or ".") is None:
        return []
    return [os.path.join(folder, each) for each in _list(folder or ".", last)]


def _list(folder: str, pattern: str) -> list[str]:
    """Names in a folder that match; hidden ones only where they are asked for."""
    found = fnmatch.filter(os.listdir(folder), pattern)
    return [name for name in found if pattern.startswith(".") or not name.startswith(".")]


_HELD = {
    "embed.json": "features that mmtrain embed wrote (data.join and serve --index take them)",
    "recipe.toml": "a run",
    "open_clip_config.json": "a model",
    "config.json": "a model",
}
"""What a folder is that is no folder of shards, by a file in it."""


def _why_nothing(name: str) -> str:
    if is_remote(name):
        what = "glob matches nothing" if glob.has_magic(name) else "folder has no *.tar"
        return f"the {what} there; correct it or upload the shards"
    if os.path.isdir(name):
        held = next((what for file, what in _HELD.items() if Path(name, file).is_file()), None)
        no_tar = "has no *.tar" if held is None else f"holds {held}, and no *.tar"
        return f"the folder {no_tar}; name the folder that holds the shards"
    if glob.has_magic(name):
        return "the glob matches no file; correct it or fetch the shards"
    return "the shard does not exist; correct the path or fetch it"


def expand_braces(pattern: str) -> Iterator[str]:
    """`{a,b}` and `{08..11}` spelled out; a number keeps the width of the range's first."""
    parts: list[list[str]] = []
    end = 0
    for braces in _BRACES.finditer(pattern):
        parts += [[pattern[end : braces.start()]], _choices(braces.group(1))]
        end = braces.end()
    parts.append([pattern[end:]])
    return map("".join, itertools.product(*parts))


def _choices(inside: str) -> list[str]:
    if span := _RANGE.fullmatch(inside):
        first, last = span.groups()
        numbers = range(int(first), int(last) + 1)
        return [str(number).zfill(len(first)) for number in numbers]
    return inside.split(",") if "," in inside else [f"{{{inside}}}"]


def as_typed(patterns: str | Sequence[str]) -> str:
    """Patterns as they were typed."""
    return patterns if isinstance(patterns, str) else " ".join(patterns)
