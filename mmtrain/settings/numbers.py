"""Types of options that are numbers within bounds."""

import argparse
import math
import re
from collections.abc import Callable

from mmtrain.errors import UsageError


def at_least(smallest: int, *, at_most: float = math.inf) -> Callable[[str], int]:
    """The type of an option that is a whole number, `smallest` or more."""
    bounds = f"at least {smallest}" if at_most == math.inf else f"within {smallest} and {at_most}"

    def convert(text: str) -> int:
        # Of more digits Python makes no int, and nothing that an option counts has so many.
        if not text.isdecimal() or len(text) > 18 or not smallest <= int(text) <= at_most:
            raise _wrong(text, f"an int, {bounds}")
        return int(text)

    return convert


def part(text: str) -> tuple[int, int]:
    """The type of an option that is one of n equal parts: `0/4` to `3/4`."""
    number, slash, count = text.partition("/")
    words = (number, count)
    right = slash and all(each.isdecimal() and len(each) < 10 for each in words)
    if not right or not int(number) < int(count):
        raise _wrong(text, "i/n with i from 0 to n - 1, such as 0/4")
    return int(number), int(count)


WHOLE = (0, 1)
"""The part that is everything."""


def refuse_empty_part(part: tuple[int, int], num: int, of: str) -> None:
    """Of fewer things than parts one would be empty.

    Raises:
        UsageError: there are fewer.
    """
    if part[1] > num:
        raise UsageError(
            f"--shard-range {part[0]}/{part[1]}: there are only {num:,} {of}; choose fewer parts"
        )


_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_UNITS |= {"kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40}


def num_bytes(text: str) -> int:
    """The type of an option that is a number of bytes: `500MB`, `1.5GiB`, `1000000`."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) *([a-z]*)", text.strip().lower(), re.ASCII)
    if (
        found is None
        or found[2] not in _UNITS
        or not 1 <= float(found[1]) * _UNITS[found[2]] < 1e18
    ):
        raise _wrong(text, "bytes, such as 500MB or 1.5GiB")
    return int(float(found[1]) * _UNITS[found[2]])


def named_share(text: str) -> tuple[str, float]:
    """The type of an option that is a folder's name and a share within 0 and 1: `val=0.1`."""
    name, _, share = text.partition("=")
    if not name or name in (".", "..") or "/" in name:
        raise _wrong(text, "NAME=X with a folder's name")
    what = "NAME=X with X within 0 and 1"
    return name, _number(share, lambda value: 0 < value < 1, what, typed=text)


def positive(text: str) -> float:
    """The type of an option that is a number above 0."""
    return _number(text, lambda value: 0 < value < math.inf, "a number above 0")


def seconds(text: str) -> float:
    """The type of an option that is a time, which may be none."""
    return _number(text, lambda value: 0 <= value < math.inf, "a number of seconds, 0 or more")


def fraction(text: str) -> float:
    """The type of an option that is a number from 0 to 1."""
    return _number(text, lambda value: 0 <= value <= 1, "a number from 0 to 1")


def _number(
    text: str, is_right: Callable[[float], bool], what: str, *, typed: str | None = None
) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not is_right(value):
        raise _wrong(text if typed is None else typed, what)
    return value


def _wrong(typed: str, what: str) -> argparse.ArgumentTypeError:
    """What argparse says behind the option's name."""
    shown = repr(typed) if typed != typed.strip() or not typed.isprintable() else typed
    if not typed:
        return argparse.ArgumentTypeError(
            f"it is empty, and must be {what}; is a variable not set?"
        )
    return argparse.ArgumentTypeError(f"{shown} must be {what}")
