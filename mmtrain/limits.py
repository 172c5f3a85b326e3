"""How many of a thing a config may ask for, and which words. What is beyond was never meant, and is
found before memory is taken for it, a size overflows or another word's meaning is taken."""

import functools
import types
import typing
from collections.abc import Sequence
from typing import Any, Literal

MOST = 1 << 20
"""Of anything that has an axis of a tensor: features, heads, tokens."""
MOST_LAYERS = 10_000
MOST_REGISTERS = 4096
"""Learned tokens beside the patches, which every patch attends to; published models have 4."""
MOST_PIXELS = 1 << 15
"""A side of an image or patch."""
MOST_STEPS = 1 << 36
"""Or epochs, where samples of the whole run are counted ahead."""
MOST_PROCESSES = 1024
"""Of one rank's workers, or batches that each makes ahead."""


def check_counts(config: Any, *names: str, least: int = 1, most: int = MOST) -> None:
    """Refuse fields of a config that count something and lie outside `least` to `most`.

    None is let pass.

    Raises:
        ValueError: naming the field, its value and the limit.
    """
    for name in names:
        value = getattr(config, name)
        if value is not None and value < least:
            raise ValueError(f"{name} = {value} must be at least {least}")
        if value is not None and value > most:
            raise ValueError(f"{name} = {value} must be at most {most}")


def idle_line(names: Sequence[str], why: str = "", *, remedy: str = "leave {it} out") -> str:
    """One line for all settings that nothing reads: another kind leaves several idle at once.

    Args:
        names: of the settings, at least one; with their values where those tell more.
        why: they have no effect; one that is a reason begins with a colon.
        remedy: with {it} in the settings' place.
    """
    has, it = ("has", "it") if len(names) == 1 else ("have", "them")
    gap = " " if why and not why.startswith(":") else ""
    return f"{', '.join(names)} {has} no effect{gap}{why}; {remedy.format(it=it)}"


def check_choices(config: Any) -> None:
    """Refuse fields whose value is not among the words of their Literal.

    A recipe's were looked at where it was read; a config of somebody's own program was not, and an
    unknown word would be taken for whatever stands last.

    Raises:
        ValueError: naming the field, its value and the words.
    """
    for name, choices in _choices(type(config)).items():
        value = getattr(config, name)
        for each in value if isinstance(value, list | tuple) else (value,):
            if each not in choices:
                words = " or ".join(str(choice) for choice in choices if choice is not None)
                raise ValueError(f"{name} = {each!r} is unknown; use {words}")


@functools.cache
def _choices(cls: type) -> dict[str, tuple[Any, ...]]:
    """The words of fields that take nothing else, or tuples of them, None aside."""
    found: dict[str, tuple[Any, ...]] = {}
    for name, annotation in typing.get_type_hints(cls).items():
        has_arms = typing.get_origin(annotation) in (typing.Union, types.UnionType, tuple)
        arms = typing.get_args(annotation) if has_arms else (annotation,)
        words = [arm for arm in arms if typing.get_origin(arm) is Literal]
        rest = [arm for arm in arms if arm not in (*words, types.NoneType, ...)]
        if words and not rest:
            none = (None,) * (types.NoneType in arms)
            found[name] = (*(word for arm in words for word in typing.get_args(arm)), *none)
    return found
