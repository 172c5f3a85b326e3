"""A recipe's file as a dict, and in one line what keeps it from being read."""

import re
import tomllib
from pathlib import Path
from typing import Any

from mmtrain.errors import UsageError
from mmtrain.settings.nearest import nearest
from mmtrain.settings.shipped import shipped_recipes

_MOST = 16 << 20
"""Bytes: a tar that is taken for a recipe is not read whole, nor a device without end."""
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_QUOTES = "“”„‟‘’‚‛«»"
"""What a word processor makes of quotation marks."""


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file as a dict; a byte order mark before it is passed over.

    Raises:
        UsageError: it is missing, empty or no TOML, with the line and what to write instead.
    """
    return parse_toml(_read(path), named=str(path))


def parse_toml(text: str, *, named: str) -> dict[str, Any]:
    """The text of a TOML file as a dict.

    Args:
        text: without a byte order mark.
        named: the file, for messages.

    Raises:
        UsageError: it is empty or no TOML.
    """
    try:
        data = tomllib.loads(text)
    except RecursionError:
        raise UsageError(f"recipe {named} is no valid TOML: brackets in brackets") from None
    except ValueError as error:  # also of a number that Python refuses to read
        raise UsageError(f"recipe {named} is no valid TOML: {error}{_hint(text, error)}") from None
    if not data:
        raise UsageError(f"recipe {named} is empty; `mmtrain recipes` lists some")
    return data


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(_MOST + 1)
    except FileNotFoundError:
        raise UsageError(f"recipe {path} does not exist; {_instead(path)}") from None
    except IsADirectoryError:
        inside = sorted(path.glob("*.toml"))
        remedy = f"name a file in it, such as {inside[0]}" if inside else "name a TOML file"
        raise UsageError(f"recipe {path} is a folder; {remedy}") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise UsageError(f"recipe {path} cannot be read: {error}") from None
    if len(content) > _MOST:
        raise UsageError(f"recipe {path} is no recipe: none is larger than {_MOST >> 20} MB")
    if content.startswith(_UTF16):
        raise UsageError(f"recipe {path} is UTF-16 text; save it as UTF-8")
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UsageError(
            f"recipe {path} is no UTF-8 text (line {line}); save it as UTF-8, or name a TOML file"
        ) from None


def _instead(path: Path) -> str:
    """What to do about a recipe that is not there; a shipped one is copied by its name."""
    for there in (path.with_name(f"{path.name}.toml"), Path(f"{path.stem}.toml")):
        if there.is_file():
            return f"did you mean {there}?"
    if path.stem in (known := shipped_recipes()):
        return f"`mmtrain recipes {path.stem}` writes {path.stem}.toml here"
    near = nearest(path.stem, known)
    return f"did you mean {near}? " * bool(near) + "`mmtrain recipes` lists some"


def _hint(text: str, error: ValueError) -> str:
    """What to write instead of the line that an error names."""
    found = re.search(r"at line (\d+)", str(error))
    lines = text.splitlines()
    number = int(found[1]) if found else len(lines)
    line = lines[number - 1].strip() if 0 < number <= len(lines) else ""
    if not line:
        return ""
    key, _, value = (part.strip() for part in line.partition("="))
    shown = line if len(line) <= 60 else f"{line[:57]}..."
    return f": {shown}{_remedy(str(error), key, value)}"


def _remedy(told: str, key: str, value: str) -> str:
    bare = value.split("#")[0].strip()
    if any(quote in key + value for quote in _QUOTES):
        return "; quotation marks are \" or ' in TOML"
    if "Cannot" in told:
        return "; this key or section is there twice, perhaps once dotted and once as a table"
    if not value and ":" in key:
        return "; write = and not :"
    if "\\" in value:
        return "; a path with backslashes stands in single quotes, or write / for each"
    word = nearest(bare, ("none", "true", "false"), cutoff=1)
    if word:
        return f"; write {key} = " + ('"none"' if word == "none" else word)
    if bare and bare[0] not in "\"'[{0123456789+-" and "Invalid value" in told:
        return f'; a text needs quotes: {key} = "{bare}"'
    return ""
