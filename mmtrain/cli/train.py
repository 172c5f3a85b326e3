"""`mmtrain train`."""

import argparse
from pathlib import Path
from typing import Any

from mmtrain.cli.parser import add_command
from mmtrain.errors import UsageError
from mmtrain.files import real_path


def add_train(commands: Any) -> None:
    """The command that trains."""
    train = add_command(
        commands,
        "train",
        "train what a recipe describes; every key of it can be overridden",
        _train,
        usage="mmtrain train RECIPE [--section.key value ...] [--run-dir DIR] [--resume]\n"
        "       mmtrain train RUN --resume | --resume-with-changes [--section.key value ...]\n"
        "       mmtrain train --run-dir DIR --resume --run.mirror PLACE",
        takes_overrides=True,
        lists_keys=True,
    )
    train.add_argument(
        "recipe",
        nargs="?",
        type=Path,
        metavar="RECIPE",
        help="a TOML file (mmtrain recipes); to resume: a run's folder, or none beside --run-dir",
    )
    train.add_argument("--run-dir", type=Path, metavar="DIR", help="the run folder (run.dir)")
    train.add_argument(
        "--resume", action="store_true", help="continue from the run folder's last checkpoint"
    )
    train.add_argument(
        "--resume-with-changes",
        action="store_true",
        help="the same with another length, learning rate ... from here on",
    )
    train.add_argument(
        "--quiet",
        action="store_true",
        help="say nothing of steps and evaluations that go well; the run's folder has them",
    )


def _train(arguments: argparse.Namespace) -> None:
    from mmtrain.recipe import load_recipe

    with_changes = arguments.resume_with_changes
    resume = "with changes" if with_changes else "as it was" if arguments.resume else None
    if resume is not None:
        _bring_recipe(arguments)
    recipe, run_dir = _place(arguments.recipe, arguments.run_dir, resumes=resume is not None)
    loaded = load_recipe(recipe, arguments.overrides, run_dir=run_dir, resumes=resume is not None)
    from mmtrain.run import train_command  # the engine: seconds that a mistyped key need not wait

    train_command(recipe=loaded, resume=resume, quiet=arguments.quiet)


def _bring_recipe(arguments: argparse.Namespace) -> None:
    """Of a run to go on with, of which nothing is here, take the recipe from its mirror."""
    run = arguments.run_dir if arguments.recipe is None else arguments.recipe
    if run is None or run.is_file() or (arguments.recipe is not None and not run.is_dir()):
        return
    if run.is_dir() and any(not path.name.startswith(".") for path in run.iterdir()):
        return
    from mmtrain.recipe import mirror_in
    from mmtrain.train.copy_run import bring_recipe

    if (mirror := mirror_in(arguments.overrides)) is not None:
        bring_recipe(mirror, run, key="--run.mirror")


def _place(recipe: Path | None, run_dir: Path | None, *, resumes: bool) -> tuple[Path, Path | None]:
    """The recipe's file and the run folder that the words mean.

    Raises:
        UsageError: there is no recipe to go by.
    """
    if recipe is None and (run_dir is None or not resumes):
        raise UsageError(
            "train needs a RECIPE (`mmtrain recipes` lists some); a run that was begun goes on by "
            "mmtrain train --resume --run-dir RUN"
        )
    if recipe is not None and not recipe.is_dir():
        return recipe, run_dir
    run = run_dir if recipe is None else recipe
    assert run is not None, "one of both, see above"
    if not resumes:
        raise UsageError(
            f"{run} is a folder, and a RECIPE is a TOML file; if it is a run to go on with, add "
            "--resume"
        )
    if run_dir is not None and recipe is not None and not _is_same(run, run_dir):
        raise UsageError(f"{run} and --run-dir {run_dir} are two folders to resume; keep one")
    if not (run / "recipe.toml").is_file():
        raise UsageError(
            f"{run} holds no recipe.toml, so it is no run to go on with; name a RECIPE to begin "
            "one, or by --run.mirror the copy of the run"
        )
    return run / "recipe.toml", run


def _is_same(path: Path, other: Path) -> bool:
    return real_path(path) == real_path(other)
