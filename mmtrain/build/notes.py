"""Where a recipe contradicts what its run starts from, in lines for the user."""

from dataclasses import replace
from pathlib import Path

from mmtrain.data.images.transforms import PreprocessConfig
from mmtrain.data.text.tokenizer import Tokenizer
from mmtrain.interop.timm import read_timm_tower
from mmtrain.loading.start import Start, contradictions, loss_lines, other_images, other_texts
from mmtrain.models import Clip
from mmtrain.recipe import TrainRecipe


def clip_notes(
    recipe: TrainRecipe,
    start: Start | None,
    *,
    tokenizer: Tokenizer,
    preprocess: PreprocessConfig,
    model: Clip,
) -> tuple[str, ...]:
    """Where the recipe contradicts what it starts from."""
    if (folder := recipe.model.vision_init) is not None:
        key, (theirs, _) = f"model.vision_init = {folder}", read_timm_tower(Path(folder))
        ours = replace(recipe.model.vision, projection=False, projection_bias=False)
        return tuple(contradictions(ours, theirs, section="model.vision", key=key))
    if start is None:
        return ()
    return (
        *start_notes(recipe, start, tokenizer=tokenizer, preprocess=preprocess),
        *loss_lines(
            start,
            kind=recipe.loss.kind,
            limit=recipe.loss.max_logit_scale,
            trains=model.logit_scale.requires_grad,
        ),
    )


def start_notes(
    recipe: TrainRecipe,
    start: Start,
    *,
    tokenizer: Tokenizer,
    preprocess: PreprocessConfig,
) -> list[str]:
    """Where towers, images and texts of a recipe are not those of the model that it starts from."""
    theirs = start.model.config
    return [
        *contradictions(recipe.model.clip, theirs, section="model", key=start.key),
        *other_images(preprocess, start.preprocess, key=start.key),
        *other_texts(tokenizer, start.tokenizer, key=start.key),
    ]
