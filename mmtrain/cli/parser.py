"""argparse, with mistakes in one line, versions without importing torch, and a recipe's keys."""

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from mmtrain.errors import UsageError
from mmtrain.settings.nearest import nearest
from mmtrain.settings.paths import expand_path


class Parser(argparse.ArgumentParser):
    """argparse, with mistakes in one line and a recipe's keys in the help of `train`."""

    def __init__(self, *, takes_overrides: bool = False, lists_keys: bool = False, **kwargs: Any):
        given = {"add_help": not lists_keys, "formatter_class": _HelpFormatter} | kwargs
        super().__init__(allow_abbrev=False, **given)
        if lists_keys:
            self.add_argument("-h", "--help", action=KeysAction)
        self.register("type", Path, _path)
        self.takes_overrides = takes_overrides
        """Whether `--section.key value` may be among the words."""

    def parse_known_args(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, args: Any = None, namespace: Any = None
    ) -> Any:
        """argparse's, with `~` and `$VAR` in every option whose metavar is a place; what is empty,
        as of a shell's variable that is not set, is refused but for texts."""
        found, rest = super().parse_known_args(args, namespace)
        for action in self._actions:
            value = getattr(found, action.dest, None)
            words = value if isinstance(value, list) else [value]
            if "" in words and action.metavar != "TEXT":
                self.error(f"argument {typed_name(action)}: {_EMPTY}")
            if value is not None and names_place(action):
                setattr(found, action.dest, _expanded(value, typed_name(action)))
        return found, rest

    def error(self, message: str) -> NoReturn:
        choice = re.search(r"argument (.+): invalid choice: '(.*)' \(choose from (.*)\)", message)
        if choice:
            name, word, choices = choice.groups()
            known = [each.strip("' ") for each in choices.split(",")]
            near = nearest(word, known)
            remedy = f"did you mean {near}?" if near else f"choose {' | '.join(known)}"
            message = f"{name} = {word} is unknown; {remedy}"
        raise UsageError(f"{message} (see {self.prog} --help)")


_EMPTY = "it is empty; is a variable not set?"
_PLACES = {"DATA", "DIR", "DST", "EMBEDDINGS", "FILE", "FOLDER", "PATH", "RECIPE", "RUN"}
_PLACES |= {"MODEL", "SHARDS", "SOURCE", "SRC", "SUITE"}


def typed_name(action: argparse.Action) -> str:
    """What a user calls an option, or a place among the words: `--run-dir`, `RECIPE`."""
    if action.option_strings:
        return action.option_strings[-1]
    return action.metavar if isinstance(action.metavar, str) else action.dest


def _path(text: str) -> Path:
    if not text:  # pathlib takes it for the current folder
        raise argparse.ArgumentTypeError(_EMPTY)
    return Path(text)


def names_place(action: argparse.Action) -> bool:
    """Whether an option takes paths, which its metavar says: DIR, RUN|FOLDER, FILE.svg."""
    return isinstance(action.metavar, str) and not _PLACES.isdisjoint(
        re.split(r"[|.]", action.metavar)
    )


def _expanded(value: Any, name: str) -> Any:
    if isinstance(value, list):
        return [_expanded(each, name) for each in value]
    return type(value)(expand_path(str(value), name)) if isinstance(value, str | Path) else value


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """argparse's, with room for our longest option and examples left as they are written."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30)


class KeysAction(argparse.Action):
    """Help that ends with a recipe's sections, or is about the keys of one: `--help optim`."""

    def __init__(self, **kwargs: Any):
        super().__init__(
            nargs="?",
            metavar="SECTION",
            default=argparse.SUPPRESS,
            help="show this help, or the keys of a recipe's section; all: of every one",
            **kwargs,
        )

    def __call__(
        self, parser: argparse.ArgumentParser, _: Any, values: Any, __: Any = None
    ) -> NoReturn:
        from mmtrain.cli.recipe_keys import keys_help, sections_help

        if values is None:
            print(f"{parser.format_help()}\n{sections_help()}", end="")
        else:
            print(keys_help(values), end="")
        parser.exit()


class VersionAction(argparse.Action):
    """Prints the versions; asked of the installed packages, since importing torch takes seconds."""

    def __init__(self, **kwargs: Any):
        super().__init__(nargs=0, help="print the versions and exit", **kwargs)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        import importlib.metadata  # a fifth of what every other command takes to begin
        import platform

        version = importlib.metadata.version
        print(
            f"mmtrain {version('mmtrain')} "
            f"(torch {version('torch')}, Python {platform.python_version()})"
        )
        parser.exit()


def add_command(
    commands: Any,
    name: str,
    summary: str,
    run: Callable[[argparse.Namespace], None],
    **kwargs: Any,
) -> Parser:
    """A command's parser, to which the caller adds what it takes.

    Args:
        commands: what add_subparsers() gave, whose class is private.
        name: the word that the user types.
        summary: one line of help.
        run: carries the command out. It imports its room itself, so that help and mistakes answer
            without waiting for torch.
        kwargs: of `Parser`.
    """
    parser: Parser = commands.add_parser(
        name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.", **kwargs
    )
    parser.set_defaults(run=run, parser=parser)
    return parser


def add_group(commands: Any, name: str, summary: str, *, metavar: str) -> Any:
    """A word that further commands stand under, such as `data` -> what `add_command` takes."""
    group = commands.add_parser(name, help=summary, description=f"{summary.capitalize()}.")
    return group.add_subparsers(metavar=metavar, required=True)


def add_device(parser: Parser) -> None:
    """--device, as every command that runs a model takes it."""
    parser.add_argument(
        "--device", default="auto", metavar="D", help="cpu, cuda, cuda:1 or auto (%(default)s)"
    )
