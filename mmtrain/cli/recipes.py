"""`mmtrain recipes`: the recipes that travel with mmtrain."""

import argparse
from pathlib import Path
from typing import Any

from mmtrain.cli.parser import add_command
from mmtrain.errors import UsageError


def add_recipes(commands: Any) -> None:
    """The command that lists and copies them."""
    recipes = add_command(
        commands, "recipes", "list the recipes that travel with mmtrain, or copy one", _recipes
    )
    recipes.add_argument(
        "name",
        nargs="*",
        action=CopyAction,
        metavar="NAME",
        help="the recipe to copy; `copy NAME` is the same",
    )
    recipes.add_argument(
        "--out", type=Path, metavar="FILE.toml", help="copy it to this file (NAME.toml)"
    )


class CopyAction(argparse.Action):
    """One name, with or without the word `copy` before it."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        names = values[1:] if values[:1] == ["copy"] else values
        if len(names) > 1:
            raise UsageError(f"mmtrain recipes copies one NAME, not {' and '.join(names)}")
        if values == ["copy"]:
            raise UsageError("mmtrain recipes copy: name one; `mmtrain recipes` lists them")
        setattr(namespace, self.dest, names[0] if names else None)


def _recipes(arguments: argparse.Namespace) -> None:
    from mmtrain.commands.recipes import recipes_command

    recipes_command(name=arguments.name, out=arguments.out)
