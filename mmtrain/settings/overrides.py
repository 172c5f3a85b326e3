"""Words of a command line laid over a recipe's TOML, before the whole is decoded."""

import copy
import dataclasses
import tomllib
import types
import typing
from typing import Any, Literal, Union

from mmtrain.errors import UsageError
from mmtrain.settings.decode import unknown_key
from mmtrain.settings.describe import (
    NONE,
    annotations,
    as_typed,
    join,
    phrase,
    section_in,
    show,
    type_name,
)


def apply_overrides(cls: type, data: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """Lay the words `--section.key value` or `--section.key=value` over a copy of `data`.

    The key's type says how its word is read: for a str it stays text, a tuple takes `a,b` or a
    TOML array, a table a TOML inline table, `none` is None where None is allowed. Where a str
    will do as well as a list, only brackets make a list: globs have commas of their own. Of a
    key given twice the last holds. Whether the value is right is for `decode` to say.

    Raises:
        UsageError: an unknown key, a key without a value, a word that is no key.
    """
    data = copy.deepcopy(data)
    words = iter(overrides)
    for word in words:
        key, has_value, text = word.removeprefix("--").partition("=")
        if not word.startswith("--") or not key:
            raise UsageError(f"{show(word)} is no override; write --section.key value")
        annotation = _annotation_at(cls, key)
        if not has_value:
            text = next(words, "--")
            if text.startswith("--"):
                raise UsageError(f"--{key} has no value; it must be {phrase(annotation)}")
        *sections, last = key.split(".")
        target, path = data, ""
        for section in sections:
            path = join(path, section)
            if target.get(section, NONE) == NONE:
                target[section] = {}
            target = target[section]
            if not isinstance(target, dict):
                raise UsageError(f"{path} = {show(target)} must be a table")
        target[last] = _parse(annotation, text)
    return data


def _annotation_at(cls: type, key: str) -> Any:
    """The type at a dotted key; below a free table, the type of the table's values."""
    section, path, parts = cls, "", key.split(".")
    while parts:
        types_of = annotations(section)
        if parts[0] not in types_of:
            raise unknown_key(".".join(parts), list(types_of), path, cls)
        annotation, path, parts = types_of[parts[0]], join(path, parts[0]), parts[1:]
        inner, is_list = section_in(annotation)
        if not parts and inner is annotation:
            example = next(iter(annotations(inner)))
            raise UsageError(f"--{path} is a section; override one of its keys: --{path}.{example}")
        if not parts:
            return annotation
        if typing.get_origin(annotation) is dict and len(parts) == 1:
            return typing.get_args(annotation)[1]
        if inner is None or is_list:
            raise UsageError(f"unknown key {key}; --{path} itself takes {type_name(annotation)}")
        section = inner
    raise AssertionError("a key has at least one part")


def _parse(annotation: Any, text: str) -> Any:
    """The TOML value that a word stands for; the word itself where it fits no type, so that
    `decode` refuses it by name."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (Union, types.UnionType):
        if str in args and not text.startswith("["):
            return text
        parsed = [_parse(arm, text) for arm in args if arm not in (str, types.NoneType)]
        return next((value for value in parsed if value != text), text)
    if text[:1] in ("[", "{") and (origin in (tuple, dict) or dataclasses.is_dataclass(annotation)):
        return _parse_toml(text)
    if origin is tuple:
        return [_parse(args[0], word.strip()) for word in text.split(",")] if text else []
    if origin is Literal:
        words = {as_typed(choice): choice for choice in args}
        as_bool = words.get(text.lower())
        return as_bool if isinstance(as_bool, bool) else words.get(text, text)
    if annotation is bool:
        return {"true": True, "false": False}.get(text.lower(), text)
    if annotation in (int, float):
        try:
            return annotation(text)
        except ValueError:
            return text
    return text


def _parse_toml(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
