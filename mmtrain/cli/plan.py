"""`mmtrain plan`."""

import argparse
from pathlib import Path
from typing import Any

from mmtrain.cli.parser import add_command
from mmtrain.settings.numbers import at_least, positive


def add_plan(commands: Any) -> None:
    """The command that tells what a layout costs."""
    plan = add_command(
        commands,
        "plan",
        "tell what a recipe's layout means for each rank: memory, traffic, idle time",
        _plan,
        usage="mmtrain plan RECIPE --world-size N [--images N] [--gpu NAME [--price X] "
        "[--samples N]] [--section.key value ...]",
        takes_overrides=True,
    )
    plan.add_argument("recipe", type=Path, metavar="RECIPE", help="a TOML file (mmtrain recipes)")
    plan.add_argument(
        "--world-size", type=at_least(1), required=True, metavar="N", help="ranks of the run"
    )
    plan.add_argument(
        "--images", type=at_least(1), metavar="N", help="of a dialogue, each in its most pieces (1)"
    )
    plan.add_argument(
        "--gpu", metavar="NAME", help="of which every rank is one, such as h100: speed on paper too"
    )
    plan.add_argument(
        "--price", type=positive, metavar="X", help="of a GPU an hour: the price of the run"
    )
    plan.add_argument(
        "--samples",
        type=at_least(1),
        metavar="N",
        help="of the whole run (train.steps of train.batch_size)",
    )
    plan.add_argument(
        "--efficiency",
        type=positive,
        metavar="X",
        help="share of the GPU's peak that a step's computing is assumed to reach (0.35)",
    )


def _plan(arguments: argparse.Namespace) -> None:
    from mmtrain.commands.plan import plan_command

    plan_command(
        recipe=arguments.recipe,
        overrides=arguments.overrides,
        world_size=arguments.world_size,
        images=arguments.images,
        gpu=arguments.gpu,
        price=arguments.price,
        samples=arguments.samples,
        efficiency=arguments.efficiency,
    )
