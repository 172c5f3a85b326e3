"""Types of options that are numbers within bounds."""

import argparse
import math
from collections.abc import Callable


def at_least(smallest: int, *, at_most: float = math.inf) -> Callable[[str], int]:
    """The type of an option that is a whole number, `smallest` or more."""
    bounds = f"at least {smallest}" if at_most == math.inf else f"within {smallest} and {at_most}"

    def convert(text: str) -> int:
        # Of more digits Python makes no int, and nothing that an option counts has so many.
        if not text.isdecimal() or len(text) > 18 or not smallest <= int(text) <= at_most:
            raise argparse.ArgumentTypeError(f"{text} must be an int, {bounds}")
        return int(text)

    return convert


def positive(text: str) -> float:
    """The type of an option that is a number above 0."""
    return _number(text, lambda value: 0 < value < math.inf, "a number above 0")


def fraction(text: str) -> float:
    """The type of an option that is a number from 0 to 1."""
    return _number(text, lambda value: 0 <= value <= 1, "a number from 0 to 1")


def _number(text: str, is_right: Callable[[float], bool], what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not is_right(value):
        raise argparse.ArgumentTypeError(f"{text} must be {what}")
    return value
