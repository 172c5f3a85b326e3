"""Options that several evaluators have, and how words and sections turn into each other."""

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from mmtrain.eval.evaluators.evaluator import Evaluator

EvaluatorT = TypeVar("EvaluatorT", bound=Evaluator)

_DATA = "shards, or another source of docs/data.md"


def add_data(parser: argparse.ArgumentParser, option: str, *, required: bool = True) -> None:
    """An option that names data."""
    told = {
        "--data": _DATA,
        "--train": f"what it learns from: {_DATA}",
        "--test": "what the figures are about",
        "--validation": "what C is chosen on (one of ten training samples)",
    }
    parser.add_argument(option, nargs="+", required=required, metavar="DATA", help=told[option])


def read_options(
    config: type[EvaluatorT], arguments: argparse.Namespace, *, name: str
) -> EvaluatorT:
    """The section that a command's options stand for.

    Args:
        config: of the evaluator.
        arguments: what its options gave.
        name: of the evaluation.

    Raises:
        ValueError: a value that the evaluator refuses.
    """
    given = {f.name: getattr(arguments, f.name) for f in fields(config) if f.name != "name"}
    return config(name=name, **{key: _plain(value) for key, value in given.items()})


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(value)
    return str(value) if isinstance(value, Path) else value


def option_words(config: Evaluator) -> list[str]:
    """The words that `read_options` makes an equal section of; what is a default is left out."""
    parser = argparse.ArgumentParser(add_help=False)
    config.add_options(parser)
    words: list[str] = []
    for field in fields(config):
        value = getattr(config, field.name)
        if field.name != "name" and value != field.default:
            words += _words(parser, field.name, value)
    return words


def _words(parser: argparse.ArgumentParser, name: str, value: Any) -> list[str]:
    for action in parser._actions:
        if action.dest == name and action.nargs == 0 and action.const == value:
            return [action.option_strings[-1]]
    values = value if isinstance(value, tuple) else [value]
    return [f"--{name.replace('_', '-')}", *map(str, values)]
