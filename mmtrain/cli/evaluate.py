"""`mmtrain eval`."""

import argparse
from pathlib import Path
from typing import Any

from mmtrain.cli.parser import Parser, add_command, add_device, add_group, at_least


def add_eval(commands: Any) -> None:
    """The commands that evaluate."""
    kinds = add_group(commands, "eval", "evaluate a model", metavar="KIND")

    zero_shot = add_command(
        kinds, "zero-shot", "classify images by the names of their classes", _zero_shot
    )
    _add_inputs(zero_shot)
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
    _add_options(zero_shot)

    retrieval = add_command(
        kinds, "retrieval", "find captions by image and images by caption", _retrieval
    )
    _add_inputs(retrieval)
    retrieval.add_argument(
        "--captions",
        nargs="+",
        default=["txt"],
        metavar="NAME",
        help="where captions are: txt for the .txt member, else a field of the .json (txt)",
    )
    _add_options(retrieval)


def _add_inputs(parser: Parser) -> None:
    parser.add_argument(
        "--model", type=Path, required=True, metavar="PATH", help="a run folder or its export/"
    )
    parser.add_argument(
        "--data", nargs="+", required=True, metavar="SHARDS", help="tars, globs or brace ranges"
    )


def _add_options(parser: Parser) -> None:
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="where the result goes, as JSON"
    )
    parser.add_argument(
        "--batch-size",
        type=at_least(1),
        default=256,
        metavar="N",
        help="samples a forward (%(default)s)",
    )
    parser.add_argument(
        "--workers",
        type=at_least(0),
        default=0,
        metavar="N",
        help="processes that read and decode; 0: this one (%(default)s)",
    )
    add_device(parser)


def _zero_shot(arguments: argparse.Namespace) -> None:
    from mmtrain.commands.evaluate import eval_zero_shot_command

    eval_zero_shot_command(
        model=arguments.model,
        data=tuple(arguments.data),
        classes=arguments.classes,
        templates=arguments.templates,
        label_key=arguments.label_key,
        batch_size=arguments.batch_size,
        workers=arguments.workers,
        device=arguments.device,
        out=arguments.out,
    )


def _retrieval(arguments: argparse.Namespace) -> None:
    from mmtrain.commands.evaluate import eval_retrieval_command

    eval_retrieval_command(
        model=arguments.model,
        data=tuple(arguments.data),
        captions=tuple(arguments.captions),
        batch_size=arguments.batch_size,
        workers=arguments.workers,
        device=arguments.device,
        out=arguments.out,
    )
