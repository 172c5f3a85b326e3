"""What each command takes, its help, and what is said of a word that none takes."""

import argparse
import difflib
import importlib.metadata
import platform
import re
import shutil
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from mmtrain.describe_config import describe
from mmtrain.errors import UsageError

_EXAMPLES = """\
examples:
  mmtrain demo
  mmtrain train configs/debug_clip.toml --run-dir runs/first
  mmtrain train configs/debug_clip.toml --run-dir runs/first --resume
  torchrun --nproc-per-node 8 -m mmtrain train RECIPE --parallel.tp 2

`mmtrain COMMAND --help` tells more; `mmtrain train --help` lists every key of a recipe.
"""


class Parser(argparse.ArgumentParser):
    """argparse, with mistakes in one line and a recipe's keys in the help of `train`."""

    def __init__(self, *, takes_overrides: bool = False, lists_keys: bool = False, **kwargs: Any):
        super().__init__(allow_abbrev=False, formatter_class=_HelpFormatter, **kwargs)
        self.takes_overrides = takes_overrides
        """Whether `--section.key value` may be among the words."""
        self.lists_keys = lists_keys
        """Whether help ends with every key of a recipe."""

    def error(self, message: str) -> NoReturn:
        choice = re.search(r"argument (.+): invalid choice: '(.*)' \(choose from (.*)\)", message)
        if choice:
            name, word, choices = choice.groups()
            known = [each.strip("' ") for each in choices.split(",")]
            near = difflib.get_close_matches(word, known, n=1)
            remedy = f"did you mean {near[0]}?" if near else f"choose {' | '.join(known)}"
            message = f"{name} = {word} is unknown; {remedy}"
        raise UsageError(f"{message} (see {self.prog} --help)")

    def unknown_word(self, word: str) -> str:
        """What to tell the user of a word that this command does not take."""
        options = [name for action in self._actions for name in action.option_strings]
        near = difflib.get_close_matches(word.partition("=")[0], options, n=1, cutoff=0.7)
        if near:
            remedy = f"; did you mean {near[0]}?"
        elif self.takes_overrides and word.startswith("--"):
            remedy = "; keys of a recipe have a section: --section.key value"
        else:
            remedy = ""
        return f"{self.prog} does not take {word}{remedy} (see {self.prog} --help)"

    def format_help(self) -> str:
        text = super().format_help()
        return f"{text}\n{_recipe_keys()}" if self.lists_keys else text


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """argparse's, with room for our longest option and examples left as they are written."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30)


class _VersionAction(argparse.Action):
    """Prints the versions; asked of the installed packages, since importing torch takes seconds."""

    def __init__(self, **kwargs: Any):
        super().__init__(nargs=0, help="print the versions and exit", **kwargs)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        version = importlib.metadata.version
        print(
            f"mmtrain {version('mmtrain')} "
            f"(torch {version('torch')}, Python {platform.python_version()})"
        )
        parser.exit()


def build_parser() -> Parser:
    """The whole command line; the namespace has `command` and the `parser` that read it."""
    parser = Parser(
        prog="mmtrain",
        description="Multimodal pretraining: CLIP on sharded tars, zero-shot evaluation.",
        epilog=_EXAMPLES,
    )
    parser.add_argument("--version", action=_VersionAction)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_train(commands)
    _add_eval(commands)
    _add_data(commands)
    _add_export(commands)
    _add_models(commands)
    _add_report(commands)
    _add_serve(commands)
    _add_demo(commands)
    return parser


def _command(commands: Any, name: str, summary: str, **kwargs: Any) -> Parser:
    """A sub-command's parser; `commands` is what add_subparsers() gave, whose class is private."""
    parser: Parser = commands.add_parser(
        name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.", **kwargs
    )
    command = parser.prog.partition(" ")[2]
    parser.set_defaults(command=command, parser=parser)
    return parser


def _add_train(commands: Any) -> None:
    train = _command(
        commands,
        "train",
        "train what a recipe describes; every key of it can be overridden",
        usage="mmtrain train RECIPE [--section.key value ...] [--run-dir DIR] [--resume]",
        takes_overrides=True,
        lists_keys=True,
    )
    train.add_argument("recipe", type=Path, metavar="RECIPE", help="a TOML file; see configs/")
    train.add_argument("--run-dir", type=Path, metavar="DIR", help="the run folder (run.dir)")
    train.add_argument(
        "--resume", action="store_true", help="continue from the run folder's last checkpoint"
    )


def _add_eval(commands: Any) -> None:
    summary = "evaluate a model"
    parser = commands.add_parser("eval", help=summary, description=f"{summary.capitalize()}.")
    kinds = parser.add_subparsers(metavar="KIND", required=True)

    zero_shot = _command(kinds, "zero-shot", "classify images by the names of their classes")
    _add_eval_inputs(zero_shot)
    zero_shot.add_argument(
        "--classes",
        type=Path,
        required=True,
        metavar="FILE",
        help='a JSON list of {"id", "name"}, or of names whose ids are their places from 0',
    )
    zero_shot.add_argument(
        "--templates",
        default="name",
        metavar="NAME|FILE",
        help="prompts: name, simple, imagenet, or a file with one a line (%(default)s)",
    )
    zero_shot.add_argument(
        "--label-key",
        default="concept",
        metavar="KEY",
        help="field of a sample's .json that holds its class id (%(default)s)",
    )
    _add_eval_options(zero_shot)

    retrieval = _command(kinds, "retrieval", "find captions by image and images by caption")
    _add_eval_inputs(retrieval)
    retrieval.add_argument(
        "--captions",
        nargs="+",
        default=["txt"],
        metavar="NAME",
        help="where captions are: txt for the .txt member, else a field of the .json (txt)",
    )
    _add_eval_options(retrieval)


def _add_eval_inputs(parser: Parser) -> None:
    parser.add_argument(
        "--model", type=Path, required=True, metavar="PATH", help="a run folder or its export/"
    )
    parser.add_argument(
        "--data", nargs="+", required=True, metavar="SHARDS", help="tars, globs or brace ranges"
    )


def _add_eval_options(parser: Parser) -> None:
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="where the result goes, as JSON"
    )
    parser.add_argument(
        "--batch-size",
        type=_at_least(1),
        default=256,
        metavar="N",
        help="samples a forward (%(default)s)",
    )
    parser.add_argument(
        "--workers",
        type=_at_least(0),
        default=0,
        metavar="N",
        help="processes that read and decode; 0: this one (%(default)s)",
    )
    parser.add_argument(
        "--device", default="auto", metavar="D", help="cpu, cuda, cuda:1 or auto (%(default)s)"
    )


def _add_data(commands: Any) -> None:
    summary = "index or check shards"
    parser = commands.add_parser("data", help=summary, description=f"{summary.capitalize()}.")
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    for name, summary in (
        ("index", "write the index of every shard, with a checksum of every file in it"),
        ("check", "compare every shard with its index, member by member"),
    ):
        action = _command(actions, name, summary)
        action.add_argument("data", nargs="+", metavar="SHARDS", help="tars, globs, brace ranges")
        action.add_argument(
            "--index-dir", type=Path, metavar="DIR", help="where indexes are (beside the shards)"
        )


def _add_export(commands: Any) -> None:
    forms = {
        "choices": ("mmtrain", "open-clip", "hf"),
        "default": "mmtrain",
        "help": "ours, open_clip's or Hugging Face's form (%(default)s)",
    }
    source = "a run, an export, or a folder in another tool's form"
    export = _command(commands, "export", "write a trained model for use elsewhere")
    export.add_argument("model", type=Path, metavar="RUN", help=source)
    export.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder")
    export.add_argument("--format", **forms)
    convert = _command(commands, "convert", "rewrite a model's folder in another form")
    convert.add_argument("model", type=Path, metavar="SRC", help=source)
    convert.add_argument("out", type=Path, metavar="DST", help="a new folder")
    convert.add_argument("--format", **forms)


def _add_models(commands: Any) -> None:
    _command(commands, "models", "list the architectures that model.name knows")
    summary = _command(
        commands, "summary", "show what a model is made of: parameters, FLOPs, shapes"
    )
    summary.add_argument(
        "model",
        metavar="RECIPE|PATH|NAME",
        help="a recipe, a model's folder, or a name of `mmtrain models`",
    )
    summary.add_argument(
        "--graph", type=Path, metavar="FILE.svg", help="also draw its towers as a picture"
    )


def _add_report(commands: Any) -> None:
    report = _command(commands, "report", "write one page about one or more runs")
    report.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders")
    report.add_argument(
        "--out", type=Path, metavar="FILE", help="the page (report.html in the first run folder)"
    )


def _add_serve(commands: Any) -> None:
    serve = _command(
        commands, "serve", "serve a page to play with: find images by text, ask about an image"
    )
    serve.add_argument(
        "--model", type=Path, required=True, metavar="PATH", help="a run folder or its export/"
    )
    serve.add_argument(
        "--index",
        nargs="+",
        default=[],
        metavar="EMBEDDINGS",
        help="images to search: what mmtrain embed wrote, or shards, which are embedded now",
    )
    serve.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="NAME",
        help="where to listen; any but the default lets others in (%(default)s)",
    )
    serve.add_argument(
        "--port",
        type=_at_least(0),
        default=8000,
        metavar="N",
        help="0 takes a free one (%(default)s)",
    )
    serve.add_argument(
        "--device", default="auto", metavar="D", help="cpu, cuda, cuda:1 or auto (%(default)s)"
    )


def _add_demo(commands: Any) -> None:
    demo = _command(
        commands,
        "demo",
        "train a small CLIP on emoji and judge it on designs it never saw",
        usage="mmtrain demo [--section.key value ...] [--out DIR] [--fresh] [--data-only]",
        takes_overrides=True,
    )
    demo.add_argument(
        "--out",
        type=Path,
        default=Path("runs/demo"),
        metavar="DIR",
        help="the run folder; an unfinished demo in it goes on (%(default)s)",
    )
    demo.add_argument("--fresh", action="store_true", help="remove the demo in it and start over")
    demo.add_argument(
        "--data-only", action="store_true", help="unpack data/emoji_pairs and stop there"
    )


def _at_least(smallest: int) -> Callable[[str], int]:
    def convert(text: str) -> int:
        if not text.isdecimal() or int(text) < smallest:
            raise argparse.ArgumentTypeError(f"{text} must be an int, at least {smallest}")
        return int(text)

    return convert


def _recipe_keys() -> str:
    """Every key of a training recipe with its type, default and doc."""
    from mmtrain.recipe import TrainRecipe  # torch: seconds that other help need not wait for

    # Wider than a pipe's usual 80, since nothing there wraps or cuts lines.
    width = min(shutil.get_terminal_size(fallback=(100, 24)).columns, 100)
    lines = ["recipe keys, in the file or as --section.key value:"]
    # A section's own keys before those of the sections in it, as TOML wants them.
    sections: dict[str, list[str]] = {}
    for key in describe(TrainRecipe):
        if key.type == "table":
            sections[key.name] = ["", f"[{key.name}]  {key.doc}"]
            continue
        known = [name for name in sections if key.name.startswith(f"{name}.")]
        section = sections[max(known, key=len)]
        section.append(f"  {key.name} = {key.type}  ({key.default})")
        section += textwrap.wrap(key.doc, width, initial_indent=" " * 6, subsequent_indent=" " * 6)
    for section in sections.values():
        lines += section
    return "\n".join(lines) + "\n"
