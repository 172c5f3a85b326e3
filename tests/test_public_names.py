"""The public names are those of docs/python/index.md: they are there, and say what they do."""

import importlib
import inspect
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


@pytest.mark.parametrize("room", LISTED)
def test_docstrings_are_read_whole_on_the_site(room: str):
    """`<x>` outside of code would be a tag of HTML there, and unseen."""
    module = importlib.import_module(room)
    for name in LISTED[room]:
        found: Any = getattr(module, name)
        members = vars(found).items() if isinstance(found, type) else ()
        for part, one in [(name, found), *members]:
            text = one.__doc__ if callable(one) else None
            # Python 3.13 has taken the indentation that all lines share away, earlier ones not.
            for paragraph in inspect.cleandoc(text or "").split("\n\n"):
                prose = re.sub(r"`[^`]*`", "", paragraph)
                is_code = bool(re.match(r"\n?(?: {4}| {8})\S", paragraph)) and "=" in paragraph
                assert is_code or not re.search(r"<\w", prose), f"{room}.{name}.{part}: {prose}"
