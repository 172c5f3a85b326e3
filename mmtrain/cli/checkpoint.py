"""`mmtrain checkpoint`."""

import argparse
from pathlib import Path
from typing import Any

from mmtrain.cli.parser import Parser, add_command, add_group
from mmtrain.interop.forms import form_names
from mmtrain.settings.numbers import at_least


def add_checkpoint(commands: Any) -> None:
    """The commands that look after what a run has saved."""
    summary = "list, verify, prune or convert a run's checkpoints"
    actions = add_group(commands, "checkpoint", summary, metavar="ACTION")
    ls = add_command(actions, "ls", "list them: step, size, date, state, layout, loss", _ls)
    _add_path(ls)
    check = add_command(actions, "verify", "hash every file again, against the manifests", _verify)
    _add_path(check)
    prune = add_command(
        actions, "prune", "delete older ones; whole ones are kept, never all", _prune
    )
    _add_path(prune)
    prune.add_argument(
        "--keep",
        type=at_least(1),
        required=True,
        metavar="N",
        help="how many that verify stay, the newest ones",
    )
    convert = add_command(
        actions, "convert", "write one (a run's newest) whole, whatever layout saved it", _convert
    )
    _add_path(convert)
    convert.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder")
    convert.add_argument(
        "--format",
        choices=("safetensors", *form_names()),
        default="safetensors",
        help="safetensors: every tensor; else the model alone, as export writes it (%(default)s)",
    )


def _add_path(parser: Parser) -> None:
    parser.add_argument(
        "path", type=Path, metavar="RUN|FOLDER", help="a run, its checkpoints/, or one of them"
    )


def _ls(arguments: argparse.Namespace) -> None:
    from mmtrain.commands.checkpoint import checkpoint_ls_command

    checkpoint_ls_command(path=arguments.path)


def _verify(arguments: argparse.Namespace) -> None:
    from mmtrain.commands.checkpoint import checkpoint_verify_command

    checkpoint_verify_command(path=arguments.path)


def _prune(arguments: argparse.Namespace) -> None:
    from mmtrain.commands.checkpoint import checkpoint_prune_command

    checkpoint_prune_command(path=arguments.path, keep=arguments.keep)


def _convert(arguments: argparse.Namespace) -> None:
    from mmtrain.commands.checkpoint import checkpoint_convert_command

    checkpoint_convert_command(path=arguments.path, out=arguments.out, form=arguments.format)
