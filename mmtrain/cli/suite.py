"""`mmtrain eval suite`."""

import argparse
from pathlib import Path
from typing import Any

from mmtrain.cli.model_options import HUB, add_architecture, add_running, running_options
from mmtrain.cli.parser import add_command

_EXAMPLES = """\
example:
  mmtrain eval suite clip_benchmark --root /data/wds --models runs/first ViT-B-32/ --out table

Killed and started again it goes on, and the table is the same to the byte. A data set that is not
there is named and counted out; a model or a data set that fails is named in its line, the others
go on, and the exit status is 1. Averages are over what all models have.
"""


def add_eval_suite(kinds: Any) -> None:
    """The command that evaluates many models on many sets."""
    suite = add_command(
        kinds,
        "suite",
        "run many evaluations over many models, and write one table",
        _suite,
        epilog=_EXAMPLES,
    )
    suite.add_argument(
        "suite",
        type=Path,
        metavar="SUITE",
        help="a TOML file, or the name of one that travels with mmtrain (mmtrain recipes)",
    )
    suite.add_argument(
        "--models",
        nargs="+",
        required=True,
        metavar="MODEL",
        help=f"runs, exports, models in other tools' forms, {HUB}",
    )
    suite.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="a new folder, or one that a suite was begun in: it goes on there",
    )
    suite.add_argument(
        "--root",
        type=Path,
        metavar="DIR",
        help="folder of the data sets, over the suite's root",
    )
    add_architecture(suite)
    add_running(suite, image_key=False)


def _suite(arguments: argparse.Namespace) -> None:
    from mmtrain.commands.suite import eval_suite_command

    eval_suite_command(
        suite=arguments.suite,
        root=arguments.root,
        models=arguments.models,
        running=running_options(arguments),
        out=arguments.out,
    )
