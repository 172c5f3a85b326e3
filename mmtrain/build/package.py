"""The model of a checkpoint as the forms of export/ take it."""

from pathlib import Path
from typing import Any

from torch import Tensor

from mmtrain.build.resolve import begun_tokenizer
from mmtrain.build.run import build_preprocess
from mmtrain.build.tasks import task_sections
from mmtrain.checkpoint.inspection import run_of
from mmtrain.errors import UsageError
from mmtrain.interop.package import ModelPackage
from mmtrain.recipe import TrainRecipe
from mmtrain.settings.decode import decode
from mmtrain.train.adapting import plain_tensors


def checkpoint_package(
    recorded: dict[str, Any], weights: dict[str, Tensor], *, source: Path
) -> ModelPackage:
    """The towers that a run trains, with what its images and texts go through.

    Args:
        recorded: the recipe in the checkpoint's state.
        weights: of the checkpoint, fp32.
        source: the checkpoint, for messages.

    Raises:
        UsageError: the run answers questions, or a tower is not there.
    """
    recipe = decode(TrainRecipe, recorded)
    task_sections(recipe).check_clip(source)
    if missing := {"vision", "text"} - {name.partition(".")[0] for name in weights}:
        raise UsageError(
            f"{source} has no {' and no '.join(sorted(missing))} tower, so it is no CLIP; "
            "use --format safetensors"
        )
    return ModelPackage(
        config=recipe.model.clip,
        tensors=plain_tensors(weights, recipe.peft),
        preprocess=build_preprocess(recipe),
        tokenizer=begun_tokenizer(recipe, run_of(source)),
    )
