"""`mmtrain export`, `convert`, `models` and `summary`: what is done with a model's files."""

import argparse
from pathlib import Path
from typing import Any

from mmtrain.cli.model_options import HUB, add_architecture, add_quiet, add_weights
from mmtrain.cli.parser import add_command
from mmtrain.interop.forms import DECODER, OURS, described, form_names


def add_export(commands: Any) -> None:
    """The commands that write a model in some form."""
    forms = {
        "choices": (*form_names(), DECODER),
        "default": OURS,
        "help": f"{described()}; {DECODER}: the decoder of a model that answers, as Hugging "
        "Face's libraries read it (%(default)s)",
    }
    source = f"a run, an export, a folder in another tool's form, {HUB}"
    folder: dict[str, Any] = {"type": Path, "help": "a new folder"}
    export = add_command(commands, "export", "write a trained model for use elsewhere", _export)
    export.add_argument("model", metavar="RUN", help=source)
    export.add_argument("--out", required=True, metavar="DIR", **folder)
    convert = add_command(commands, "convert", "rewrite a model's folder in another form", _export)
    convert.add_argument("model", metavar="SRC", help=source)
    convert.add_argument("out", metavar="DST", **folder)
    for command in (export, convert):
        command.add_argument("--format", **forms)
        add_weights(command)
        add_architecture(command)
        add_quiet(command)


def add_models(commands: Any) -> None:
    """The commands that describe architectures."""
    add_command(commands, "models", "list the architectures that model.name knows", _models)
    summary = add_command(
        commands, "summary", "show what a model is made of: parameters, FLOPs, shapes", _summary
    )
    summary.add_argument(
        "model",
        metavar="RECIPE|PATH|NAME",
        help="a recipe, a model's folder or address, or a name of `mmtrain models`",
    )
    add_architecture(summary)
    summary.add_argument(
        "--graph", type=Path, metavar="FILE.svg", help="also draw its towers as a picture"
    )
    summary.add_argument(
        "--autograd",
        type=Path,
        metavar="FILE.svg",
        help="also draw every operation of its backward, of blocks that are alike the first; needs "
        "Graphviz and the extra graph",
    )


def _export(arguments: argparse.Namespace) -> None:
    from mmtrain.commands.export import export_command

    export_command(
        model=arguments.model,
        out=arguments.out,
        form=arguments.format,
        weights=arguments.weights,
        architecture=arguments.architecture,
        quiet=arguments.quiet,
    )


def _models(arguments: argparse.Namespace) -> None:
    from mmtrain.commands.model_list import models_command

    models_command()


def _summary(arguments: argparse.Namespace) -> None:
    from mmtrain.commands.summary import summary_command

    summary_command(
        model=arguments.model,
        architecture=arguments.architecture,
        graph=arguments.graph,
        autograd=arguments.autograd,
    )
