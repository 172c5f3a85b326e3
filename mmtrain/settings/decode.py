"""Typed configs from TOML: decode and encode.

A config is a frozen dataclass whose fields are plain: int, float, str, bool, Literal, `X | None`,
tuples, dict[str, X], further configs and tagged unions of them. Decoding is strict: a key that
nobody reads and a value of another type are both the user's mistake, named in one line. Libraries
that build a command line from dataclasses want a complete instance before the overrides; here the
overrides are laid over the TOML's dict and the whole is decoded once, so that one may change what
the rest must be.
"""

import dataclasses
import types
import typing
from typing import Any, Literal, TypeVar, Union

import tomli_w

from mmtrain.errors import UsageError
from mmtrain.settings.describe import (
    NONE,
    annotations,
    as_typed,
    join,
    key_names,
    phrase,
    section_in,
    show,
    type_name,
)
from mmtrain.settings.nearest import nearest
from mmtrain.settings.tagged import TAG, member_for, members

ConfigT = TypeVar("ConfigT")

_LARGEST_FLOAT = 3.4028234663852886e38
_LARGEST_INT = 2**63 - 1


class _WrongTypeError(UsageError):
    """The value as a whole has another type, so that a further arm of a union may fit."""

    def __init__(self, annotation: Any, value: Any, path: str) -> None:
        hint = _hint(annotation, value, path)
        super().__init__(f"{path} = {show(value)} must be {phrase(annotation)}{hint}")
        self.path = path


def decode(cls: type[ConfigT], data: dict[str, Any], *, path: str = "") -> ConfigT:
    """Build `cls` from a TOML dict, every nested config with it.

    An int is taken where a float is wanted, a list for a tuple, "none" for None; nothing else
    is converted. A ValueError of a config's own check comes back with the section's path.

    Args:
        cls: a dataclass of plain fields.
        data: the section, as tomllib reads it.
        path: dotted name of the section, for messages; empty for a whole file.

    Raises:
        UsageError: an unknown, missing, wrongly typed or refused key.
    """
    return _decode_section(cls, data, path, cls)


def encode(config: Any) -> dict[str, Any]:
    """The dict that `decode` turns into an equal config.

    None is left out where it is the default, and else written as "none".
    """
    data: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value is not None:
            data[field.name] = _encode_value(value)
        elif field.default is not None:
            data[field.name] = NONE
    return data


def dump_toml(data: dict[str, Any]) -> str:
    """What `encode` gives, as the text of a TOML file."""
    return tomli_w.dumps(data)


def key_that_takes(section: Any, value: Any) -> tuple[str, str]:
    """A key of a section that a lone value may have been meant for, and the value; else the
    section's first key and dots."""
    for name, annotation in annotations(section).items():
        if meant := nearest(str(value), map(str, _choices(annotation))):
            return name, meant
    name, annotation = next(iter(annotations(section).items()))
    return name, "..."


def _decode_section(cls: Any, data: Any, path: str, root: type) -> Any:
    if not isinstance(data, dict):
        raise _WrongTypeError(cls, data, path)
    types_of = annotations(cls)
    for key in data:
        if key not in types_of:
            raise unknown_key(key, list(types_of), path, root)
    values: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        name, annotation = join(path, field.name), types_of[field.name]
        if field.name in data:
            values[field.name] = _decode_value(annotation, data[field.name], name, root)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise UsageError(f"{name} is missing; it must be {phrase(annotation)}")
    try:
        return cls(**values)
    except ValueError as error:
        raise UsageError(_with_path(str(error), path, list(types_of))) from error


def _decode_member(annotation: Any, table: Any, path: str, root: type) -> Any:
    """A table of a tagged union, as the member that its kind names: no other has a say in it."""
    if not isinstance(table, dict):
        raise _WrongTypeError(annotation, table, path)
    section, _ = section_in(annotation)
    kinds, name = annotations(section)[TAG], join(path, TAG)
    if TAG not in table:
        raise UsageError(f"{name} is missing; it must be {phrase(kinds)}")
    if (member := member_for(annotation, table)) is None:
        return _decode_literal(kinds, table[TAG], name)
    for key in table:
        owners = [kind for kind, each in members(annotation).items() if key in annotations(each)]
        if owners and key not in annotations(member):
            raise UsageError(
                f"unknown key {join(path, key)}; {key} is a key of {TAG} = "
                f"{' or '.join(map(show, owners))}, and here {TAG} = {show(table[TAG])}"
            )
    return _decode_section(member, table, path, root)


def _decode_value(annotation: Any, value: Any, path: str, root: type) -> Any:
    if dataclasses.is_dataclass(annotation) and not members(annotation):
        return _decode_section(annotation, value, path, root)
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (Union, types.UnionType) or members(annotation):
        return _decode_union(annotation, value, path, root)
    if origin is Literal:
        return _decode_literal(annotation, value, path)
    if origin is tuple and isinstance(value, list):
        arms = args[:1] * len(value) if args[-1] is Ellipsis else args
        if len(arms) != len(value):
            raise _WrongTypeError(annotation, value, path)
        return tuple(
            _decode_value(arm, member, f"{path}[{number}]", root)
            for number, (arm, member) in enumerate(zip(arms, value, strict=True))
        )
    if origin is dict and isinstance(value, dict):
        return {
            key: _decode_value(args[1], member, join(path, key), root)
            for key, member in value.items()
        }
    if annotation is float and type(value) in (int, float):
        # nan slips through every `if lr <= 0`, and what is beyond fp32 overflows in a kernel.
        if not abs(value) <= _LARGEST_FLOAT:
            raise UsageError(f"{path} = {show(value)} must be a finite number that fp32 can hold")
        return float(value)
    if annotation is int and type(value) is int and abs(value) > _LARGEST_INT:
        raise UsageError(f"{path} = {show(value)} must be an int of at most 64 bits")
    if annotation is str and isinstance(value, str) and "\0" in value:
        # The system ends a path there.
        raise UsageError(f"{path} = {show(value)} must be a text without the character NUL")
    if annotation is str and isinstance(value, str) and not _is_unicode(value):
        told = value.encode("utf-8", "backslashreplace").decode()
        raise UsageError(f"{path} = {told} is not UTF-8, which recipe.toml is kept in; rename it")
    # type() and not isinstance(): bool is an int, and `num_layers = true` is a mistake.
    if annotation in (int, str, bool) and type(value) is annotation:
        return value
    raise _WrongTypeError(annotation, value, path)


def _decode_union(annotation: Any, value: Any, path: str, root: type) -> Any:
    arms = [arm for arm in typing.get_args(annotation) if arm is not types.NoneType]
    is_optional = len(arms) < len(typing.get_args(annotation))
    if is_optional and value == NONE and not any(NONE in _choices(arm) for arm in arms):
        return None
    if len(arms) == 1 and _choices(arms[0]):
        return _decode_literal(annotation, value, path)
    if is_optional and isinstance(value, str) and nearest(value, [NONE], cutoff=1) == NONE:
        raise UsageError(f'{path} = {show(value)} is how others write it; write "{NONE}" for none')
    if members(annotation):
        return _decode_member(annotation, value, path, root)
    for arm in arms:
        try:
            return _decode_value(arm, value, path, root)
        except _WrongTypeError as error:
            if error.path != path:
                raise
    raise _WrongTypeError(annotation, value, path)


def _is_unicode(text: str) -> bool:
    """Whether UTF-8 can write it: a path of other bytes comes as half characters."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _decode_literal(annotation: Any, value: Any, path: str) -> Any:
    choices = _choices(annotation)
    for choice in choices:
        if type(choice) is type(value) and choice == value:
            return value
    near = nearest(str(value), [as_typed(choice) for choice in choices])
    meant = next((choice for choice in choices if as_typed(choice) == near), None)
    hint = "" if meant is None else f"did you mean {show(meant)}? "
    raise UsageError(f"{path} = {show(value)} is unknown; {hint}use {type_name(annotation)}")


def _choices(annotation: Any) -> tuple[Any, ...]:
    """The choices of a Literal, or of the one in `Literal | None`."""
    if typing.get_origin(annotation) is Literal:
        return typing.get_args(annotation)
    return next((found for arm in typing.get_args(annotation) if (found := _choices(arm))), ())


def _with_path(message: str, path: str, names: list[str]) -> str:
    """A config's own message after its section, joined to a key where it starts with a field."""
    if not path or message.startswith(f"{path}."):
        return message
    starts_with_field = message.split(" ")[0].split(".")[0] in names
    return f"{path}.{message}" if starts_with_field else f"{path}: {message}"


def _hint(annotation: Any, value: Any, path: str) -> str:
    """How to write what was meant, where it can be told."""
    section, is_list = section_in(annotation)
    key = path.rpartition(".")[2]
    if section is not None and not isinstance(value, (dict, list)):
        member, meant = key_that_takes(section, value)
        shown = meant if meant == "..." else f'"{meant}"'
        if is_list:
            return f"; write {member} = {shown} below a line [[{path}]] for each"
        return f"; write {path}.{member} = {shown}"
    if annotation is bool and (near := nearest(str(value), ("true", "false"), cutoff=1)):
        return f"; write {key} = {near}"
    if annotation is float and isinstance(value, str) and "," in value:
        return "; decimals follow a point"
    return ""


def unknown_key(key: str, names: list[str], path: str, root: type) -> UsageError:
    """The error of a key that nobody reads, with the nearest one.

    Args:
        key: as typed, below `path`.
        names: the section's keys.
        path: dotted name of the section.
        root: the whole config, whose other sections may have the key.
    """
    last = key.split(".")[-1]
    every = key_names(root)
    known = [name for name in every if "[]" not in name]
    elsewhere = [name for name in known if name.split(".")[-1] == last]
    elsewhere.sort(key=lambda name: not name.startswith(f"{path}."))  # this section's first
    near = nearest(key.split(".")[0], names)
    if not near and not elsewhere:
        leaf = nearest(last, {name.split(".")[-1]: None for name in known}, cutoff=0.85)
        elsewhere = [name for name in known if name.split(".")[-1] == leaf]
    meant = ".".join([join(path, near or ""), *key.split(".")[1:]])
    is_one = "." not in key or meant in (name.replace("[]", "") for name in every)
    if near and near != key and is_one:
        hint = f"did you mean {meant}?"
    elif elsewhere:
        hint = f"did you mean {elsewhere[0]}?"
    else:
        hint = f"{path or 'a recipe'} has {', '.join(names)}"
    return UsageError(f"unknown key {join(path, key)}; {hint}")


def _encode_value(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return encode(value)
    if isinstance(value, tuple):
        return [_encode_value(member) for member in value]
    if isinstance(value, dict):
        return {key: _encode_value(member) for key, member in value.items()}
    return value
