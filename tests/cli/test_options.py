"""Every option of every command reaches what the command does; what is not read is not offered."""

import argparse
import ast
import importlib
import inspect
import pkgutil
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import mmtrain.cli
import mmtrain.commands
from mmtrain.cli import build_parser, main

PLACES = {
    "mmtrain.run": ("train_command",),
    "mmtrain.report": ("write_report",),
    "mmtrain.serve": ("serve_command", "watch_command"),
    "mmtrain.demo.demo": ("run_demo",),
    "mmtrain.cli.completion": ("completion_command",),
}
"""Command functions outside of commands/."""
NOT_READ = ("help", "version", "cache_dir", "cache_gb")
"""The program reads the cache's for all commands: tests/data/storage/test_commands_cached.py."""


class Reached(Exception):
    """What a command function was called with."""


def leaves(parser: argparse.ArgumentParser, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every command's words and its parser."""
    groups = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    if not groups:
        yield path.strip(), parser
    for group in groups:
        for name, sub in group.choices.items():
            yield from leaves(sub, f"{path} {name}")


COMMANDS = dict(leaves(build_parser()))


def command_functions() -> Iterator[tuple[Any, str]]:
    for info in pkgutil.iter_modules(mmtrain.commands.__path__):
        module = importlib.import_module(f"mmtrain.commands.{info.name}")
        for name in vars(module):
            if name.endswith("_command"):
                yield module, name
    for place, names in PLACES.items():
        for name in names:
            yield importlib.import_module(place), name


def reach(*given: Any, **named: Any) -> None:
    raise Reached((given, named))


def value_for(action: Any, word: str) -> Any:
    """A value that the option may have, made of a word."""
    # A number where it is one: some commands make a section of it, which looks at it.
    one = {None: word, Path: Path(word)}.get(action.type, len(word))
    many = action.nargs in ("+", "*") or isinstance(action, argparse._AppendAction)
    return [one] if many else one


def ask(parser: Any, **changed: Any) -> str:
    """What the command function gets of a namespace, as text."""
    values = {}
    for action in parser._actions:
        if action.dest in NOT_READ or action.dest in values:
            continue
        default = parser.get_default(action.dest)
        needed = action.required or not action.option_strings
        values[action.dest] = value_for(action, "given") if needed else default
    run: Callable[[argparse.Namespace], None] = parser.get_default("run")
    with pytest.raises(Reached) as reached:
        run(argparse.Namespace(**values | {"overrides": []} | changed))
    return repr(reached.value.args[0])


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_reaches_the_command(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each one, changed alone, changes what the command's function gets."""
    for module, name in command_functions():
        monkeypatch.setattr(module, name, reach)
    # Read before the engine is imported; what it is given stands for what it makes of that.
    monkeypatch.setattr("mmtrain.recipe.load_recipe", lambda *given, **named: (given, named))
    parser = COMMANDS[command]
    before = ask(parser)
    for action in parser._actions:
        if action.dest in NOT_READ:
            continue
        value = value_for(action, "something else")
        if isinstance(action, argparse._StoreConstAction):
            value = action.const
        assert ask(parser, **{action.dest: value}) != before, f"{command}: {action.dest}"
    if parser.takes_overrides:
        assert ask(parser, overrides=["--train.steps", "1"]) != before


def test_every_command_uses_what_it_gets() -> None:
    """A parameter that no line of the function reads is an option that is taken and ignored."""
    for module, name in command_functions():
        function = inspect.unwrap(getattr(module, name))
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
        read = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        unread = set(inspect.signature(function).parameters) - read
        assert not unread, f"{module.__name__}.{name} takes and ignores {sorted(unread)}"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("ask --model m --image i --question q --image-key k", "--image-key"),
        ("ask --model m --image i --question q --workers 2", "--workers"),
        ("ask --model m --image i --question q --batch-size 2", "--batch-size"),
        ("eval answers --predictions p --questions q --out o.json --image-key k", "--image-key"),
        (
            "eval vqa --model m --data d --questions q --out o.json --image-key k",
            "--image-key = k has no effect: the set's files say",
        ),
        ("generate --model m --prompt p --seed 3", "--seed has no effect without --temperature"),
        ("generate --model m --prompt p --answers a --seed 3", "--seed has no effect with"),
        ("generate --model m --prompt p --answers a --top-k 3", "--top-k has no effect with"),
        ("generate --model m --prompt p --answers a --num-beams 3", "--num-beams has no effect"),
        (
            "generate --model m --prompt p --answers a --max-new-tokens 3",
            "--max-new-tokens has no effect",
        ),
        ("generate --model m --prompt p --answers a --temperature 1", "--temperature has no"),
    ],
)
def test_an_option_without_effect_is_refused(
    words: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line
