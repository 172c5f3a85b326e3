"""`mmtrain recipes`: the recipes that travel with mmtrain."""

import argparse
from pathlib import Path
from typing import Any

from mmtrain.cli.parser import add_command


def add_recipes(commands: Any) -> None:
    """The command that lists and copies them."""
    recipes = add_command(
        commands, "recipes", "list the recipes that travel with mmtrain, or copy one", _recipes
    )
    recipes.add_argument("name", nargs="?", metavar="NAME", help="the recipe to copy")
    recipes.add_argument(
        "--out", type=Path, metavar="FILE.toml", help="copy it to this file (NAME.toml)"
    )


def _recipes(arguments: argparse.Namespace) -> None:
    from mmtrain.commands.recipes import recipes_command

    recipes_command(name=arguments.name, out=arguments.out)
