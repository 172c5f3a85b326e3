"""`mmtrain demo`."""

import argparse
from pathlib import Path
from typing import Any

from mmtrain.cli.parser import add_command
from mmtrain.errors import UsageError

_RUN_DIR = Path("runs/demo")


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
        metavar="DIR",
        help=f"the run folder; an unfinished demo in it goes on ({_RUN_DIR})",
    )
    demo.add_argument("--fresh", action="store_true", help="remove the demo in it and start over")
    demo.add_argument(
        "--data-only", action="store_true", help="unpack data/emoji_pairs and stop there"
    )


def _demo(arguments: argparse.Namespace) -> None:
    from mmtrain.demo.demo import run_demo

    given = {"--out": arguments.out, "--fresh": arguments.fresh}
    given |= dict.fromkeys(arguments.overrides[:1], True)
    for name, value in given.items():
        if arguments.data_only and value:
            raise UsageError(f"{name} has no effect with --data-only; leave one of them out")
    run_demo(
        out=arguments.out or _RUN_DIR,
        overrides=arguments.overrides,
        fresh=arguments.fresh,
        data_only=arguments.data_only,
    )
