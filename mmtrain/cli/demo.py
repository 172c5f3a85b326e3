"""`mmtrain demo`."""

import argparse
from pathlib import Path
from typing import Any

from mmtrain.cli.parser import add_command


def add_demo(commands: Any) -> None:
    """The command that shows the whole on a data set in the package."""
    demo = add_command(
        commands,
        "demo",
        "train a small CLIP on emoji and judge it on designs it never saw",
        _demo,
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


def _demo(arguments: argparse.Namespace) -> None:
    from mmtrain.demo.demo import run_demo

    run_demo(
        out=arguments.out,
        overrides=arguments.overrides,
        fresh=arguments.fresh,
        data_only=arguments.data_only,
    )
