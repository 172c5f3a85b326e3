"""`mmtrain checkpoint`."""

import argparse
from pathlib import Path
from typing import Any

from mmtrain.cli.model_options import add_weights
from mmtrain.cli.parser import Parser, add_command, add_group
from mmtrain.interop.forms import form_names
from mmtrain.settings.numbers import at_least


def add_checkpoint(commands: Any) -> None:
    """The commands that look after what a run has saved."""
    summary = "list, verify, prune, convert or copy a run's checkpoints"
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
    add_weights(convert)
    _add_push(actions)
    _add_pull(actions)


def _add_push(actions: Any) -> None:
    push = add_command(
        actions, "push", "copy sealed ones and the run's files to an object store, or a disk", _push
    )
    _add_path(push)
    push.add_argument(
        "out",
        metavar="DST",
        help="s3://BUCKET/PREFIX, gs:// or az://, or a folder; what is there is not sent again",
    )


def _add_pull(actions: Any) -> None:
    pull = add_command(
        actions, "pull", "copy a pushed run back: its files and its newest checkpoint", _pull
    )
    pull.add_argument("source", metavar="SRC", help="where it was pushed to, or run.mirror")
    pull.add_argument("out", type=Path, metavar="RUN", help="the run folder; it may be begun")
    which = pull.add_mutually_exclusive_group()
    which.add_argument(
        "--step", type=at_least(1), metavar="N", help="the checkpoint of this step (the newest)"
    )
    which.add_argument("--all", action="store_true", help="all of them")


def _add_path(parser: Parser) -> None:
    parser.add_argument(
        "path", type=Path, metavar="RUN|FOLDER", help="a run, its checkpoints/, or one of them"
    )


def _push(arguments: argparse.Namespace) -> None:
    from mmtrain.commands.checkpoint_copies import checkpoint_push_command

    checkpoint_push_command(path=arguments.path, out=arguments.out)


def _pull(arguments: argparse.Namespace) -> None:
    from mmtrain.commands.checkpoint_copies import checkpoint_pull_command

    checkpoint_pull_command(
        source=arguments.source, out=arguments.out, step=arguments.step, everything=arguments.all
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

    checkpoint_convert_command(
        path=arguments.path,
        out=arguments.out,
        form=arguments.format,
        weights_form=arguments.weights,
    )
