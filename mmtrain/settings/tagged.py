"""Sections of several kinds: `A | B`, dataclasses whose `kind: Literal["a"]` tells them apart.

A table says by its own `kind` which of them it is, so that the others are never tried on it.
"""

import dataclasses
import functools
import types
import typing
from typing import Any, Literal, Union

TAG = "kind"
"""The key by which a table says which member of a union it is."""


def members(annotation: Any) -> dict[str, type]:
    """The dataclasses of a tagged union by their kinds, in order, with or without `| None`.

    A dataclass with a kind is a union of one. Empty for every other type: where one arm has no
    kind, a table cannot say that it is meant.
    """
    is_union = typing.get_origin(annotation) in (Union, types.UnionType)
    arms = typing.get_args(annotation) if is_union else (annotation,)
    arms = [arm for arm in arms if arm is not types.NoneType]
    kinds = [_kind_of(arm) if isinstance(arm, type) else None for arm in arms]
    if None in kinds:
        return {}
    found = {kind: arm for kind, arm in zip(kinds, arms, strict=True) if kind is not None}
    # Our own mistake, not a user's.
    assert len(found) == len(arms), f"two members of {annotation} have one kind"
    return found


def member_for(annotation: Any, table: dict[str, Any]) -> type | None:
    """The member of a tagged union that a table says it is; None: it does not, or is of none."""
    kind = table.get(TAG)
    return members(annotation).get(kind) if isinstance(kind, str) else None


@functools.cache  # a command asks some hundreds of times, and the hints are read from text
def _kind_of(arm: type) -> str | None:
    if not dataclasses.is_dataclass(arm):
        return None
    annotation = typing.get_type_hints(arm).get(TAG)
    choices = typing.get_args(annotation) if typing.get_origin(annotation) is Literal else ()
    return choices[0] if len(choices) == 1 else None
