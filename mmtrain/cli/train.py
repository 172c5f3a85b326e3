"""`mmtrain train`."""

import argparse
from pathlib import Path
from typing import Any

from mmtrain.cli.parser import add_command


def add_train(commands: Any) -> None:
    """The command that trains."""
    train = add_command(
        commands,
        "train",
        "train what a recipe describes; every key of it can be overridden",
        _train,
        usage="mmtrain train RECIPE [--section.key value ...] [--run-dir DIR] [--resume]",
        takes_overrides=True,
        lists_keys=True,
    )
    train.add_argument("recipe", type=Path, metavar="RECIPE", help="a TOML file; see configs/")
    train.add_argument("--run-dir", type=Path, metavar="DIR", help="the run folder (run.dir)")
    train.add_argument(
        "--resume", action="store_true", help="continue from the run folder's last checkpoint"
    )


def _train(arguments: argparse.Namespace) -> None:
    from mmtrain.run import train_command

    train_command(
        recipe=arguments.recipe,
        overrides=arguments.overrides,
        run_dir=arguments.run_dir,
        resume=arguments.resume,
    )
