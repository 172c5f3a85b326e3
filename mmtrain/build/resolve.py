"""A recipe as read into one that is complete: what one section fixes for another."""

from dataclasses import fields, replace
from pathlib import Path

from mmtrain.build.tasks import task_sections
from mmtrain.data.text.tokenizer import (
    Tokenizer,
    TokenizerConfig,
    build_tokenizer,
    load_tokenizer,
)
from mmtrain.loading.start import Start, read_start
from mmtrain.loading.text_sizes import refuse_other_sizes, text_sizes
from mmtrain.models import TextConfig
from mmtrain.recipe import TrainRecipe
from mmtrain.train.run_folder import TOKENIZER


def run_tokenizer(recipe: TrainRecipe, start: Start | None) -> Tokenizer:
    """The tokenizer of a run: the recipe's, or that of the model or decoder it starts from.

    Learned vectors of the text tower take places of its context, so texts have so many less.

    Args:
        recipe: as read.
        start: the model of model.init; None: nothing.
    """
    num_learned = recipe.model.text.num_context
    length = recipe.tokenizer.context_length - num_learned
    if (own := task_sections(recipe).tokenizer(length)) is not None:
        return own
    if start is not None and brings_tokenizer(recipe):
        num_learned -= start.model.config.text.num_context
        return start.tokenizer.shortened(num_learned) if num_learned else start.tokenizer
    tokenizer = build_tokenizer(recipe.tokenizer)
    return tokenizer.shortened(num_learned) if num_learned else tokenizer


def begun_tokenizer(recipe: TrainRecipe, folder: Path | None) -> Tokenizer:
    """The tokenizer of a run that has begun: one that its start brought it has kept.

    Args:
        recipe: the run's.
        folder: the run's. None: it has not begun.

    Raises:
        UsageError: it is not there (an older run, or none), nor is the model of model.init.
    """
    if not brings_tokenizer(recipe):
        return run_tokenizer(recipe, None)
    if folder is not None and (folder / TOKENIZER).is_dir():
        return load_tokenizer(folder / TOKENIZER)
    return run_tokenizer(recipe, read_start(recipe.model.init, name=recipe.model.name))


def brings_tokenizer(recipe: TrainRecipe) -> bool:
    """Whether the tokenizer of a run is that of the model or decoder it starts from."""
    if task_sections(recipe).brings_tokenizer:
        return True
    return recipe.model.init is not None and recipe.tokenizer == TokenizerConfig()


def resolve(recipe: TrainRecipe, tokenizer: Tokenizer) -> TrainRecipe:
    """Fill in what one section fixes for another; the result is what recipe.toml records.

    The tokenizer fixes the text tower's vocabulary, context and end token; what its task fixes
    is said there (`Sections.resolve`).

    Raises:
        UsageError: the text tower asks for another vocabulary or context than the tokenizer has,
            or [model] contradicts the task.
    """
    text, standard = recipe.model.text, {f.name: f.default for f in fields(TextConfig)}
    from_tokenizer = text_sizes(
        tokenizer, num_context=text.num_context, add_eot=recipe.tokenizer.add_eot
    )
    # One that is written as its default says is refused where the recipe is read.
    asked = {name: getattr(text, name) for name in from_tokenizer}
    refuse_other_sizes(
        {name: value for name, value in asked.items() if value != standard[name]}, from_tokenizer
    )
    if text.num_context:
        from_tokenizer["context_start"] = tokenizer.num_before
    # The towers are complete here, so the record of the run does not hang on a name's meaning;
    # beside `init` it tells how those weights are read.
    name = None if recipe.model.init is None else recipe.model.name
    model = replace(recipe.model, name=name, text=replace(text, **from_tokenizer))
    return replace(recipe, model=task_sections(recipe).resolve(model))
