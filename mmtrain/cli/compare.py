"""`mmtrain compare`: two results on the same samples."""

import argparse
from pathlib import Path
from typing import Any

from mmtrain.cli.parser import add_command


def add_compare(commands: Any) -> None:
    """The command that compares two results of `mmtrain eval`."""
    compare = add_command(
        commands, "compare", "compare two results of eval, each difference with its interval", _run
    )
    compare.add_argument("a", type=Path, metavar="FILE.json", help="A, what is compared with")
    compare.add_argument("b", type=Path, metavar="FILE.json", help="B, of the same samples")


def _run(arguments: argparse.Namespace) -> None:
    from mmtrain.commands.compare import compare_command

    compare_command(a=arguments.a, b=arguments.b)
