"""Names of a room that are bound on first use, so that importing the room waits for nothing."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def bound_on_first_use(
    room: str, places: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a room (PEP 562).

    A module must not have the name of what it holds: it would stand in its place as soon as
    anybody imported it.

    Args:
        room: its `__name__`.
        places: the module that has a name, by name.
    """

    def get(name: str) -> Any:
        if name in places:
            return getattr(importlib.import_module(places[name]), name)
        raise AttributeError(f"module '{room}' has no attribute '{name}'")

    return get, lambda: sorted({*places, *vars(importlib.import_module(room))})
