"""`mmtrain profile`."""

import argparse
from pathlib import Path
from typing import Any

from mmtrain.cli.parser import add_command
from mmtrain.settings.numbers import at_least


def add_profile(commands: Any) -> None:
    """The command that tells where a step's time goes."""
    profile = add_command(
        commands,
        "profile",
        "train a few steps of a recipe and tell where their time went; no run is begun",
        _profile,
        usage="mmtrain profile RECIPE [--steps N] [--out DIR] [--section.key value ...]",
        takes_overrides=True,
    )
    profile.add_argument(
        "recipe", type=Path, metavar="RECIPE", help="a TOML file (mmtrain recipes)"
    )
    profile.add_argument(
        "--steps", type=at_least(1), default=3, metavar="N", help="steps traced (%(default)s)"
    )
    profile.add_argument(
        "--out",
        type=Path,
        default=Path("profile"),
        metavar="DIR",
        help="new folder for the traces and the table (%(default)s)",
    )
    profile.add_argument(
        "--memory",
        action="store_true",
        help="also a snapshot of the GPU's memory, for pytorch.org/memory_viz",
    )


def _profile(arguments: argparse.Namespace) -> None:
    from mmtrain.commands.profile import profile_command

    profile_command(
        recipe=arguments.recipe,
        overrides=arguments.overrides,
        steps=arguments.steps,
        out=arguments.out,
        memory=arguments.memory,
    )
