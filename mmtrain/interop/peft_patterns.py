"""Expressions of peft's folders, matched where they cannot hold anything up."""

import json
import subprocess
import sys
from collections.abc import Collection, Sequence

from mmtrain.errors import UsageError

_SECONDS = 10.0
"""What an expression that somebody wrote by hand needs is a thousandth of it."""

_MATCHES = r"""
import json, re, sys
patterns, paths = json.load(sys.stdin)
found = {}
try:
    for pattern in patterns:
        told = pattern
        re.compile(pattern)
        fits = re.compile(rf"(.*\.)?({pattern})$").match
        found[pattern] = [path for path in paths if fits(path)]
except (re.error, RecursionError, OverflowError) as error:
    found = f"{told!r} is no pattern: {error}"
print(json.dumps(found))
"""


def fitting(
    patterns: Collection[str], paths: Sequence[str], *, source: str
) -> dict[str, frozenset[str]]:
    """The layers that each expression fits, as peft matches them: a layer's name, or the end of it
    behind a dot.

    An expression comes with a folder and may take for ever, (a+)+b over a name of a's; Python can
    neither tell beforehand nor stop one. So all are matched by a process of their own, which can be
    ended.

    Args:
        patterns: keys of rank_pattern and the like.
        paths: names of layers.
        source: the file, for messages.

    Raises:
        UsageError: one is no expression, or they take too long.
    """
    if not patterns:
        return {}
    told = json.dumps([list(patterns), list(paths)])
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _MATCHES],
            input=told,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=True,
        )
    except subprocess.TimeoutExpired as error:
        raise UsageError(
            f"{source}: its patterns took more than {_SECONDS:g} s to match, the first is "
            f"{next(iter(patterns))[:60]!r}; write the names of the layers instead"
        ) from error
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or ["it was ended"])[-1]
        raise UsageError(f"{source}: its patterns cannot be matched: {last}") from error
    found = json.loads(done.stdout)
    if isinstance(found, str):
        raise UsageError(f"{source}: {found}")
    return {pattern: frozenset(fits) for pattern, fits in found.items()}
