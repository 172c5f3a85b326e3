"""`mmtrain compare`: results on the same samples."""

import argparse
from pathlib import Path
from typing import Any

from mmtrain.cli.parser import add_command
from mmtrain.data.sources.source import IMAGE_KEY


def add_compare(commands: Any) -> None:
    """The command that compares results of `mmtrain eval`."""
    compare = add_command(
        commands, "compare", "compare results of eval, each difference with its interval", _run
    )
    compare.add_argument("a", type=Path, metavar="FILE.json", help="A, what is compared with")
    compare.add_argument(
        "others",
        type=Path,
        nargs="+",
        metavar="FILE.json",
        help="B, of the same samples, or several",
    )
    compare.add_argument("--out", type=Path, metavar="FILE.html", help="also write a page")
    compare.add_argument(
        "--data",
        nargs="+",
        default=[],
        metavar="DATA",
        help="what A was evaluated on, as its --data: the page shows the pictures",
    )
    compare.add_argument(
        "--questions",
        metavar="FILE",
        help="the questions' file, where --data is a folder of their images",
    )
    compare.add_argument(
        "--image-key",
        default=IMAGE_KEY,
        metavar="NAME",
        help="column of --data that holds the images (%(default)s)",
    )


def _run(arguments: argparse.Namespace) -> None:
    from mmtrain.commands.compare import compare_command

    compare_command(
        a=arguments.a,
        others=arguments.others,
        out=arguments.out,
        data=tuple(arguments.data),
        questions=arguments.questions,
        image_key=arguments.image_key,
    )
