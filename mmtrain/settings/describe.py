"""What a config's class says of itself: the types, defaults and docs of its keys."""

import ast
import dataclasses
import functools
import inspect
import itertools
import json
import operator
import sys
import textwrap
import types
import typing
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, Union

from mmtrain.settings.tagged import TAG, members

NONE = "none"
"""How None is written where leaving the key out would mean a default: TOML has no null."""

_REQUIRED = "required"
_PHRASES = {int: "an int", float: "a number", str: "a string", bool: "true or false"}


class Key(NamedTuple):
    """One key of a recipe, for help."""

    name: str
    """Dotted; `[]` marks the members of a list of tables."""
    type: str
    """What may be written, such as `int | none`; `table` for a section."""
    default: str
    """The default as it would be written; `required` where there is none, empty for a section."""
    doc: str
    """The field's docstring, on one line."""


def describe(
    cls: Any, *, path: str = "", reads_docs: Callable[[str], bool] = lambda path: True
) -> list[Key]:
    """Every section and key below a config class or a tagged union, in the order of the source.

    Args:
        cls: the class.
        path: dotted name of what the class is a section of.
        reads_docs: of a section's path, whether the docs of its keys are read from its module's
            file, which is parsed for that. Elsewhere they are "".
    """
    if not dataclasses.is_dataclass(cls):
        return _describe_members(members(cls), path, reads_docs)
    keys: list[Key] = []
    docs = _field_docs(cls) if reads_docs(path) else {}
    for field in dataclasses.fields(cls):
        name, annotation = join(path, field.name), annotations(cls)[field.name]
        section, is_list = section_in(annotation)
        default = "" if annotation is section else _default_text(field)
        if field.name == TAG and members(cls):
            default = _REQUIRED
        keys.append(Key(name, type_name(annotation), default, docs.get(field.name, "")))
        if section is not None:
            keys += describe(section, path=name + "[]" * is_list, reads_docs=reads_docs)
    return keys


def key_names(cls: Any) -> list[str]:
    """The names of all sections and keys below a config class, in the order of the source."""
    return [key.name for key in describe(cls, reads_docs=lambda path: False)]


def written_docs(file: Path, cls: str) -> dict[str, str]:
    """The docs of the fields that a class has itself, by name, read from its module's file, which
    is not imported: what that imports may take seconds."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return dict(_docs_in(_classes_in(tree)[cls].body))


def type_name(annotation: Any) -> str:
    """What may be written for a field of this type, in short."""
    if dataclasses.is_dataclass(annotation):
        return "table"
    if annotation in (None, types.NoneType):
        return NONE
    if annotation is bool:
        return "true | false"
    match typing.get_origin(annotation), typing.get_args(annotation):
        case (origin, choices) if origin is Literal:
            return " | ".join(map(as_typed, choices))
        case (origin, arms) if origin in (Union, types.UnionType):
            return " | ".join(dict.fromkeys(type_name(arm) for arm in arms))
        case (origin, (member, end)) if origin is tuple and end is Ellipsis:
            return f"list of {type_name(member)}"
        case (origin, members) if origin is tuple:
            return f"[{', '.join(type_name(member) for member in members)}]"
        case (origin, (_, member)) if origin is dict:
            return f"table of {type_name(member)}"
    # Our own mistake, not a user's: a config holds plain fields only.
    assert annotation in _PHRASES, f"{annotation} is no type for a config's field"
    return annotation.__name__


def as_typed(choice: Any) -> str:
    """One choice of a Literal as a command line has it."""
    return str(choice).lower() if isinstance(choice, bool) else str(choice)


def phrase(annotation: Any) -> str:
    """The same, to follow "must be"."""
    if typing.get_origin(annotation) in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(phrase(arm) for arm in typing.get_args(annotation)))
    name = _PHRASES.get(annotation, type_name(annotation))
    return f"a {name}" if name.startswith(("list", "table")) else name


def annotations(cls: Any) -> dict[str, Any]:
    """The types of a config's fields, in order; of a tagged union those of all its members."""
    return dict(_annotations(cls))


def section_in(annotation: Any) -> tuple[Any, bool]:
    """The config class in `C`, `C | None` or `tuple[C, ...]` and whether it is a list of them.

    `C` may be a tagged union, which is the section itself then.
    """
    is_list = typing.get_origin(annotation) is tuple
    for each in (annotation, *typing.get_args(annotation)):
        if dataclasses.is_dataclass(each):
            return each, is_list
        if found := members(each):
            is_optional = types.NoneType in typing.get_args(each)
            return _union(found.values()) if is_optional else each, is_list
    return None, False


def join(path: str, key: str) -> str:
    """A dotted key below a path, which may be empty."""
    return f"{path}.{key}" if path else key


def show(value: Any) -> str:
    """A value about as TOML writes it, cut to stay on one line."""
    try:
        text = str(value) if isinstance(value, float) else json.dumps(value, ensure_ascii=False)
    except TypeError:
        text = str(value)
    except ValueError:  # of an int of thousands of digits Python makes no text
        text = f"({type(value).__name__})"
    return text if len(text) <= 80 else f"{text[:77]}..."


@functools.cache
def _annotations(cls: Any) -> dict[str, Any]:
    if dataclasses.is_dataclass(cls):
        hints = typing.get_type_hints(cls)
        return {field.name: hints[field.name] for field in dataclasses.fields(cls)}
    found: dict[str, list[Any]] = {}
    for member in members(cls).values():
        for name, annotation in annotations(member).items():
            found.setdefault(name, []).append(annotation)
    kinds: Any = Literal[tuple(members(cls))]  # pyright: ignore
    return {name: _union(arms) for name, arms in found.items()} | {TAG: kinds}


def _union(arms: Iterable[Any]) -> Any:
    return functools.reduce(operator.or_, arms)


def _describe_members(
    found: dict[str, type], path: str, reads_docs: Callable[[str], bool]
) -> list[Key]:
    """Every key of a tagged union once, with the kinds that have it where not all are alike."""
    by_name: dict[str, dict[str, Key]] = {}
    for kind, member in found.items():
        for key in describe(member, path=path, reads_docs=reads_docs):
            by_name.setdefault(key.name, {})[kind] = key
    keys: list[Key] = []
    for name, of_kind in by_name.items():
        kinds_of: dict[str, list[str]] = {}
        for kind, key in of_kind.items():
            kinds_of.setdefault(key.doc, []).append(kind)
        doc = " ".join(f"{TAG} = {' | '.join(kinds)}: {doc}" for doc, kinds in kinds_of.items())
        if len(kinds_of) == 1 and len(of_kind) == len(found):
            (doc,) = kinds_of
        written = dict.fromkeys(arm for key in of_kind.values() for arm in key.type.split(" | "))
        defaults = dict.fromkeys(key.default for key in of_kind.values())
        keys.append(Key(name, " | ".join(written), " | ".join(defaults), doc))
    return keys


@functools.cache
def _field_docs(cls: type) -> dict[str, str]:
    docs: dict[str, str] = {}
    for ancestor in reversed(cls.__mro__[:-1]):
        docs.update(_docs_in(_definition(ancestor).body))
    return docs


def _definition(cls: type) -> ast.ClassDef:
    """A class as its file has it."""
    if "<locals>" in cls.__qualname__:  # a name that a file may have more than once
        tree = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
        assert isinstance(tree, ast.ClassDef)
        return tree
    return _definitions(cls.__module__)[cls.__qualname__]


@functools.cache
def _definitions(module: str) -> dict[str, ast.ClassDef]:
    """The classes of a file, which is parsed once: inspect parses it for each of them."""
    return _classes_in(ast.parse(inspect.getsource(sys.modules[module])))


def _classes_in(tree: ast.Module) -> dict[str, ast.ClassDef]:
    return {each.name: each for each in tree.body if isinstance(each, ast.ClassDef)}


def _docs_in(body: list[ast.stmt]) -> Iterator[tuple[str, str]]:
    for statement, follower in itertools.pairwise(body):
        match statement, follower:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(doc))),
            ):
                yield name, " ".join(doc.split())
            case _:
                pass


def _default_text(field: "dataclasses.Field[Any]") -> str:
    if field.default is not dataclasses.MISSING:
        return NONE if field.default is None else show(field.default)
    if field.default_factory is not dataclasses.MISSING:
        return show(field.default_factory())
    return _REQUIRED
