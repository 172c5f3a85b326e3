"""Draws recipes and overrides that a user could get wrong, from the schema of every section.

Nothing here knows a key by name but those in `SERVICES`: a key that is added to a config is drawn
from then on.
"""

import json
import random
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

from mmtrain.recipe import TrainRecipe
from mmtrain.settings.decode import dump_toml
from mmtrain.settings.describe import annotations, section_in
from mmtrain.settings.read_toml import read_toml

SERVICES = ("log.wandb", "log.trackio", "log.tensorboard", "train.compile")
"""Keys that start other programs, which take seconds each; they are drawn, but not as true."""

NUMBERS: tuple[Any, ...] = (
    *(0, -1, 1, 2, 3, 7, 16, 10**5, 10**9, 10**12, 10**30, -(10**30), 2**31, 2**63 - 1, 2**64),
    *(0.0, -0.0, 0.5, 1.0, 1.5, -0.5, 1e-300, 1e300, 1e-12, 99.0, -1e10),
    *(float("nan"), float("inf"), float("-inf")),
)
TEXTS = (
    *(
        "",
        " ",
        "none",
        "None",
        "null",
        "nil",
        "True",
        "yes",
        "a",
        "é☃",
        "\u202e",
        "a b",
        "a,b",
        "%s",
    ),
    *(
        "{}",
        "{0}",
        '"',
        "'",
        "\\",
        "C:\\new\\table",
        "[",
        "]",
        "[]",
        "[1]",
        "{ a = 1 }",
        "\n",
        "\t",
    ),
    *(".", "..", "/dev/null", "nowhere", "nowhere/*.tar", "x{0..9}.tar", "x.csv", "~", "$HOME/x"),
    *("*", "?", "synthetic:4", "synthetic:0", "synthetic:x", "synthetic:1000000000000", "a\x00b"),
    *(
        "-1",
        "--",
        "=",
        "1e3",
        "0x10",
        "1_000",
        "٣",
        "1,5",
        "16-mixed",
        "bfloat16",
        "x" * 5000,
        "\udcff",
    ),
)
OTHERS: tuple[Any, ...] = (
    True,
    False,
    [],
    [1],
    [""],
    [[1]],
    {},
    {"a": 1},
    {"": ""},
    [{}],
    [{"name": 1}],
)


class Drawn(NamedTuple):
    """A recipe as it lies on disk, and the words behind it on the command line."""

    text: bytes
    """The file."""
    overrides: list[str]
    """`--section.key value ...`."""


def keys_of(cls: type = TrainRecipe, path: str = "") -> dict[str, Any]:
    """Every key of a recipe that is no section -> its type; lists of tables are one key."""
    found: dict[str, Any] = {}
    for name, annotation in annotations(cls).items():
        key = f"{path}.{name}" if path else name
        section, is_list = section_in(annotation)
        if section is None or is_list:
            found[key] = annotation
        else:
            found |= keys_of(section, key)
    return found


def draw_recipe(rng: random.Random, base: Path, files: list[str]) -> Drawn:
    """A recipe with one to three things done to it.

    Args:
        rng: what draws.
        base: a recipe that trains.
        files: paths that are there, of any kind: where a text is wanted one of them may come.
    """
    data, overrides = read_toml(base), list[str]()
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        key = rng.choice(sorted(keys_of()))
        value = _no_service(key, draw_value(rng, keys_of()[key], files))
        if rng.random() < 0.6:
            overrides += _override(rng, key, value)
        elif rng.random() < 0.7:
            _set(data, key, value)
        else:
            rng.choice(_EDITS)(rng, data, value)
    text = dump_toml(_writable(data)).encode(errors="surrogateescape")
    return Drawn(rng.choice(_DAMAGES)(rng, text) if rng.random() < 0.1 else text, overrides)


def draw_value(rng: random.Random, annotation: Any, files: list[str]) -> Any:
    """A value for a key of this type: half the time one that may do, else anything."""
    if rng.random() < 0.3:
        return rng.choice((*NUMBERS, *TEXTS, *OTHERS))
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    section, is_list = section_in(annotation)
    if section is not None:
        tables = [_table(rng, section, files) for _ in range(rng.choice((1, 1, 2)))]
        return tables if is_list else tables[0]
    if origin in (types.UnionType, typing.Union):
        return draw_value(rng, rng.choice(args), files)
    if origin is Literal:
        return rng.choice(args)
    if origin is tuple:
        arms = args[:1] * rng.randrange(4) if args[-1] is Ellipsis else args
        return [draw_value(rng, arm, files) for arm in arms]
    if origin is dict:
        names = rng.sample(("txt", "name", "caption", "", "é"), k=rng.randrange(3))
        return {name: draw_value(rng, args[1], files) for name in names}
    if annotation is bool:
        return rng.random() < 0.5
    if annotation is int:
        return rng.choice((rng.randrange(1, 9), 16, 32, *(x for x in NUMBERS if type(x) is int)))
    if annotation is float:
        return rng.choice((rng.random(), *(x for x in NUMBERS if type(x) is float)))
    return "none" if annotation is types.NoneType else rng.choice((*files, *TEXTS))


def as_word(value: Any) -> str:
    """A value as a word of the command line."""
    if isinstance(value, str):
        return value.replace("\x00", "")  # which no shell can give
    if isinstance(value, dict):
        pairs = (f"{json.dumps(key)} = {as_toml(each)}" for key, each in value.items())
        return f"{{ {', '.join(pairs)} }}"
    return as_toml(value)


def as_toml(value: Any) -> str:
    """A value within brackets or braces."""
    if isinstance(value, list):
        return f"[{', '.join(map(as_toml, value))}]"
    if isinstance(value, dict):
        return as_word(value)
    if isinstance(value, str):
        return json.dumps(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _table(rng: random.Random, section: type, files: list[str]) -> dict[str, Any]:
    """A table with its required keys, mostly, and some others."""
    table: dict[str, Any] = {}
    for name, annotation in annotations(section).items():
        is_required = not hasattr(section, name)
        if rng.random() < (0.95 if is_required else 0.2):
            table[name] = draw_value(rng, annotation, files)
    return table


def _no_service(key: str, value: Any) -> Any:
    return False if key in SERVICES and (value is True or value == "auto") else value


def _override(rng: random.Random, key: str, value: Any) -> list[str]:
    """The key and its value as words, now and then as a hand slips."""
    word = as_word(value)
    if rng.random() < 0.8:
        return (
            [f"--{key}={word}"]
            if rng.random() < 0.3 or word.startswith("-")
            else [f"--{key}", word]
        )
    cut = rng.randrange(len(key))
    return rng.choice(
        (
            [f"--{key}"],
            [f"-{key}", word],
            [f"—{key}", word],
            [f"–-{key}={word}"],
            [key, word],
            [f"--{key}", "=", word],
            [f"--{key[:cut]}{key[cut + 1 :]}", word],
            [f"--{key}.more", word],
            [f"--{key.rpartition('.')[0]}", word],
            [f"--{key.rpartition('.')[2]}", word],
            [f"--{key}", word, word],
            [f"--{key}", f"“{word}”"],
            [f"--{key.upper()}", word],
            [f"--{key.replace('_', '-')}", word],
        )
    )


def _set(data: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        data = data.setdefault(section, {})
        if not isinstance(data, dict):
            return
    data[last] = value


def _some_section(rng: random.Random, data: dict[str, Any]) -> dict[str, Any]:
    """The recipe itself or a table somewhere in it."""
    inside = [each for each in data.values() if isinstance(each, dict)]
    return data if not inside or rng.random() < 0.4 else _some_section(rng, rng.choice(inside))


def _drop(rng: random.Random, data: dict[str, Any], value: Any) -> None:
    section = _some_section(rng, data)
    if section:
        del section[rng.choice(list(section))]


def _replace(rng: random.Random, data: dict[str, Any], value: Any) -> None:
    section = _some_section(rng, data)
    if section:
        section[rng.choice(list(section))] = value


def _misspell(rng: random.Random, data: dict[str, Any], value: Any) -> None:
    section = _some_section(rng, data)
    if section:
        key = rng.choice(list(section))
        section[rng.choice((key[1:], key + "s", key.upper(), key.replace("_", "-")))] = section.pop(
            key
        )


def _stray(rng: random.Random, data: dict[str, Any], value: Any) -> None:
    _some_section(rng, data)[rng.choice(("", "x", "é", "a.b", "lr", "none"))] = value


_EDITS: tuple[Callable[[random.Random, dict[str, Any], Any], None], ...] = (
    _drop,
    _replace,
    _misspell,
    _stray,
)


def _writable(value: Any) -> Any:
    """What a TOML file can hold: lone surrogates are for the command line."""
    if isinstance(value, dict):
        return {_writable(key): _writable(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_writable(each) for each in value]
    return value.replace("\udcff", "\ufffd") if isinstance(value, str) else value


def _cut(rng: random.Random, text: bytes) -> bytes:
    return text[: rng.randrange(len(text))]


def _change_byte(rng: random.Random, text: bytes) -> bytes:
    place = rng.randrange(len(text))
    return text[:place] + bytes([rng.randrange(256)]) + text[place + 1 :]


def _repeat_line(rng: random.Random, text: bytes) -> bytes:
    lines = text.splitlines(keepends=True)
    return b"".join([*lines, rng.choice(lines)])


_DAMAGES: tuple[Callable[[random.Random, bytes], bytes], ...] = (
    _cut,
    _change_byte,
    _repeat_line,
    lambda rng, text: b"",
    lambda rng, text: b"\xef\xbb\xbf" + text,
    lambda rng, text: text.decode().encode("utf-16"),
    lambda rng, text: text.replace(b"\n", b"\r\n"),
    lambda rng, text: text.replace(b"\n", b"\r"),
    lambda rng, text: text.replace(b" = ", b" : "),
    lambda rng, text: text.replace(b'"', rng.choice(("“", "'", "")).encode(), 2 * rng.randrange(9)),
)
