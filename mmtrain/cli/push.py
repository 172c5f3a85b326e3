"""`mmtrain push`."""

import argparse
from pathlib import Path
from typing import Any

from mmtrain.cli.model_options import HUB, add_architecture
from mmtrain.cli.parser import add_command
from mmtrain.interop.forms import described, package_names

_EXAMPLES = """\
examples:
  mmtrain push runs/first hf://me/first-clip --license apache-2.0 --private
  mmtrain push runs/first hf://me/first-clip --out first-clip

The card, README.md, has the results with their intervals, the data, the recipe, and how the model
is loaded in mmtrain and by the library of its form. A repository that is not there is made. Files
that are there are replaced with --overwrite alone: a new commit, so that the old one stays in the
history; those of other names stay beside. The token is HF_TOKEN, or that of `hf auth login`.
"""


def add_push(commands: Any) -> None:
    """The command that uploads a model."""
    push = add_command(
        commands,
        "push",
        "upload a model and its card to Hugging Face's hub",
        _push,
        epilog=_EXAMPLES,
    )
    push.add_argument("model", metavar="RUN", help=f"a run, an export, a folder, {HUB}")
    push.add_argument("repository", metavar="REPOSITORY", help="hf://OWNER/NAME")
    push.add_argument(
        "--format",
        choices=package_names(),
        help=f"{described(package_names())} (open-clip; mmtrain of a model that answers)",
    )
    push.add_argument(
        "--license",
        metavar="NAME",
        help="of the model, as the hub names it: apache-2.0, mit, cc-by-4.0, other ...",
    )
    push.add_argument(
        "--private", action="store_true", help="make the new repository for its owner alone"
    )
    push.add_argument(
        "--overwrite", action="store_true", help="replace files of the same names that are there"
    )
    push.add_argument(
        "--out", type=Path, metavar="DIR", help="write the folder here, and upload nothing"
    )
    add_architecture(push)


def _push(arguments: argparse.Namespace) -> None:
    from mmtrain.commands.push import PushOptions, push_command

    push_command(
        PushOptions(
            model=arguments.model,
            repository=arguments.repository,
            form=arguments.format,
            licence=arguments.license,
            private=arguments.private,
            overwrite=arguments.overwrite,
            out=arguments.out,
            architecture=arguments.architecture,
        )
    )
