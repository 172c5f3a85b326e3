"""The data of a recipe without its model: for a look at what a run will see, and what it costs."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from mmtrain.build.resolve import begun_tokenizer, resolve
from mmtrain.build.run import build_preprocess
from mmtrain.build.tasks import task_sections
from mmtrain.data.numbered import NumberedData
from mmtrain.errors import UsageError
from mmtrain.recipe import TrainRecipe, load_recipe
from mmtrain.settings.paths import escape_path
from mmtrain.train.run_folder import RECIPE_FILE


def read_recipe(path: Path, overrides: list[str]) -> TrainRecipe:
    """A recipe's file, or that of a run's folder, with overrides.

    Raises:
        UsageError: the folder is none of a run, or the recipe is mistaken.
    """
    if not path.is_dir():
        return load_recipe(path, overrides)
    if not (path / RECIPE_FILE).is_file():
        raise UsageError(f"{path} holds no {RECIPE_FILE}, so it is no run; name a RECIPE or a RUN")
    words = ["--run.dir", escape_path(str(path)), *overrides]  # it may have been moved
    return load_recipe(path / RECIPE_FILE, words, resumes=True)


def open_data(recipe: TrainRecipe, *, begun: bool = False, **changes: Any) -> NumberedData[Any]:
    """The batches of a recipe as one rank holds them, whole; captions come as texts too.

    Args:
        recipe: as read.
        begun: of a run's folder, which has kept the tokenizer of what the run started from. Else
            what an earlier run of the same run.dir has kept is left alone.
        changes: of the section [data].

    Raises:
        UsageError: the data cannot be had, or the recipe contradicts itself.
    """
    tokenizer = begun_tokenizer(recipe, Path(recipe.run.dir) if begun else None)
    recipe = resolve(recipe, tokenizer)
    common: dict[str, Any] = {
        "preprocess": build_preprocess(recipe),
        "tokenizer": tokenizer,
        "seed": recipe.run.seed,
        "batch_size": recipe.train.batch_size,
        "phases": recipe.train.phase,
    }
    if recipe.data.stream:
        raise UsageError(
            "data.stream = true: a stream has no numbered samples to look at; name shards that are "
            "read by ranges, or look at its first steps with mmtrain train --train.steps"
        )
    config = replace(recipe.data, **changes)
    return task_sections(recipe).open_data(config, **common)
