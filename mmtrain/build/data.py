"""The data of a recipe without its model: for a look at what a run will see, and what it costs."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from mmtrain.build.run import build_preprocess
from mmtrain.data.image_text import ImageTextData, NumberedData
from mmtrain.data.questions.answers import build_vocabulary, every_question
from mmtrain.data.questions.batches import VqaData
from mmtrain.data.questions.source import open_questions
from mmtrain.errors import UsageError
from mmtrain.loading.start import read_start
from mmtrain.recipe import TrainRecipe, load_recipe, resolve, run_tokenizer
from mmtrain.tasks.config import VqaSection
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
    return load_recipe(path / RECIPE_FILE, overrides)


def open_data(recipe: TrainRecipe, **changes: Any) -> NumberedData[Any]:
    """The batches of a recipe as one rank holds them, whole; captions come as texts too.

    Args:
        recipe: as read.
        changes: of the section [data].

    Raises:
        UsageError: the data cannot be had, or the recipe contradicts itself.
    """
    tokenizer = run_tokenizer(recipe, read_start(recipe.model.init, name=recipe.model.name))
    recipe = resolve(recipe, tokenizer)
    common: dict[str, Any] = {
        "preprocess": build_preprocess(recipe),
        "tokenizer": tokenizer,
        "seed": recipe.run.seed,
        "batch_size": recipe.train.batch_size,
    }
    config = replace(recipe.data, **changes)
    if recipe.vqa is not None:
        return _questions(config, recipe.vqa, common)
    data = ImageTextData(config, **common)
    data.keeps_texts = True
    return data


def _questions(config: Any, vqa: VqaSection, common: dict[str, Any]) -> VqaData:
    source = open_questions(
        config.train,
        questions=vqa.data.questions,
        annotations=vqa.data.annotations,
        config=config,
    )
    vocabulary = None
    if vqa.classify is not None:
        questions = list(every_question(source))
        try:
            vocabulary = build_vocabulary(questions, min_count=vqa.min_count)
        except ValueError as error:
            raise UsageError(f"vqa.{error}") from error
    return VqaData(
        config,
        vqa=vqa.data,
        vocabulary=vocabulary,
        with_answers=vqa.generate is not None,
        source=source,
        **common,
    )
