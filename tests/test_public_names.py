"""The public names are those of docs/python/index.md: they are there, and say what they do."""

import importlib
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/python/index.md").read_text("utf-8")
LISTED = {
    room: re.findall(r"`(\w+)`", names)
    for room, names in re.findall(r"^\| `(mmtrain[\w.]*)` \| (.*) \|$", PAGE, re.MULTILINE)
}
# What these export beside is for other rooms of the house.
SHARED = ("mmtrain.losses", "mmtrain.models", "mmtrain.nn", "mmtrain.peft")


@pytest.mark.parametrize("room", LISTED)
def test_public_names_are_exported_and_documented(room: str):
    module = importlib.import_module(room)
    exported = {name for name in module.__all__ if not name.startswith("__")}
    listed = set(LISTED[room])
    assert listed <= exported if room in SHARED else listed == exported
    assert set(module.__all__) <= set(dir(module))
    for name in listed:
        found: Any = getattr(module, name)
        if callable(found) and getattr(found, "__module__", "").startswith("mmtrain"):
            assert found.__doc__, name


def test_the_page_lists_them():
    assert len(LISTED) == 11 and sum(map(len, LISTED.values())) > 60
