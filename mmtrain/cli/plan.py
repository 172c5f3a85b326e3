"""`mmtrain plan`."""

import argparse
from pathlib import Path
from typing import Any

from mmtrain.cli.parser import add_command
from mmtrain.settings.numbers import at_least


def add_plan(commands: Any) -> None:
    """The command that tells what a layout costs."""
    plan = add_command(
        commands,
        "plan",
        "tell what a recipe's layout means for each rank: memory, traffic, idle time",
        _plan,
        usage="mmtrain plan RECIPE --world-size N [--section.key value ...]",
        takes_overrides=True,
    )
    plan.add_argument("recipe", type=Path, metavar="RECIPE", help="a TOML file; see configs/")
    plan.add_argument(
        "--world-size", type=at_least(1), required=True, metavar="N", help="ranks of the run"
    )


def _plan(arguments: argparse.Namespace) -> None:
    from mmtrain.commands.plan import plan_command

    plan_command(
        recipe=arguments.recipe,
        overrides=arguments.overrides,
        world_size=arguments.world_size,
    )
