"""Which shards the user means: paths, folders, globs and brace ranges."""

import glob
import itertools
import os
import re
from collections.abc import Iterator

from mmtrain.data.index_file import SUFFIX
from mmtrain.errors import UsageError

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_SCHEME = re.compile(r"(pipe|[a-z][a-z0-9+.-]+(?=://)):")


def expand_patterns(patterns: str | tuple[str, ...], *, key: str = "data.train") -> list[str]:
    """The shards' paths, sorted, each once.

    A pattern is a path, a folder (its *.tar), a glob, or has ranges `{00000..00099}` or lists
    `{train,val}` in braces.

    Args:
        patterns: one pattern or several.
        key: the setting that they come from, for messages.

    Raises:
        UsageError: a pattern matches nothing, or a shard does not exist.
    """
    listed = (patterns,) if isinstance(patterns, str) else patterns
    if not listed or not all(listed):
        raise UsageError(f'{key} = {patterns!r} names no shards; give a path such as "data/*.tar"')
    found: dict[str, str] = {}
    for pattern in listed:
        for path in _expand(pattern, key):
            found.setdefault(os.path.abspath(path), path)
    return sorted(found.values())


def _expand(pattern: str, key: str) -> list[str]:
    if scheme := _SCHEME.match(pattern):
        raise UsageError(
            f"{key} = {pattern}: {scheme.group(1)}: is not read, only local files are; "
            "copy the shards to a disk of this machine"
        )
    paths: list[str] = []
    missing: list[str] = []
    for name in _expand_braces(os.path.expanduser(pattern)):
        matches = _match(name)
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


def _match(name: str) -> list[str]:
    if os.path.isdir(name):
        return glob.glob(os.path.join(glob.escape(name), "*.tar"))
    if os.path.exists(name):
        return [name]
    # `data/*` also matches the indexes that we keep beside the shards.
    matches = glob.glob(name, recursive=True)
    return [match for match in matches if not match.endswith(SUFFIX) and os.path.isfile(match)]


def _why_nothing(name: str) -> str:
    if os.path.isdir(name):
        return "the folder has no *.tar; name the folder that holds the shards"
    if glob.has_magic(name):
        return "the glob matches no file; correct it or fetch the shards"
    return "the shard does not exist; correct the path or fetch it"


def _expand_braces(pattern: str) -> Iterator[str]:
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
