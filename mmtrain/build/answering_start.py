"""Where the weights of a model that answers come from, and where the recipe contradicts that."""

from dataclasses import replace

import torch

from mmtrain.build.compose import build_preprocess
from mmtrain.build.notes import start_notes
from mmtrain.data.questions.answers import AnswerVocabulary
from mmtrain.data.text.tokenizer import Tokenizer
from mmtrain.errors import UsageError
from mmtrain.loading.start import Start, contradictions, other_images, other_texts
from mmtrain.loading.vqa import VqaModel
from mmtrain.models import Clip
from mmtrain.models.transfer import copy_weights
from mmtrain.models.vqa import Vqa
from mmtrain.recipe import TrainRecipe


def build_started_model(
    recipe: TrainRecipe, start: Clip | None, found: dict[str, torch.Tensor]
) -> Vqa:
    """The model with its initial weights: towers drawn, or from a CLIP, or all from a VQA model."""
    assert recipe.vqa is not None
    model = Vqa(recipe.model.clip, recipe.vqa.model).init_weights(recipe.run.seed)
    towers = Clip(recipe.model.clip).init_weights(recipe.run.seed)
    if start is not None:
        if model.text is None:
            # Its tokenizer may be another one; nobody reads its text tower.
            kept = replace(towers.config, text=start.config.text)
            towers = Clip(kept).init_weights(recipe.run.seed)
        try:
            copy_weights(start, towers)
        except ValueError as error:
            raise UsageError(f"model.init = {recipe.model.init}: {error}") from error
    model.vision.load_state_dict(_without_head(towers.vision.state_dict()))
    if model.text is not None:
        model.text.load_state_dict(_without_head(towers.text.state_dict()))
    if recipe.vqa.init is not None:
        _copy_all(found, model, recipe.vqa.init)
    return model


def _without_head(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in state.items() if not name.startswith("head.")}


def _copy_all(found: dict[str, torch.Tensor], model: Vqa, init: str) -> None:
    """Every weight of another VQA model; what only this one has (a front door,
    learned tokens) starts anew."""
    wanted = model.state_dict()
    parts = ("front_door", "generate.prompt.", "text.embed.context")
    new = [n for n in wanted if n not in found and not any(part in n for part in parts)]
    other = [
        name
        for name, value in found.items()
        if name not in wanted or value.shape != wanted[name].shape
    ]
    if new or other:
        raise UsageError(
            f"vqa.init = {init}: {len(new) + len(other)} tensors of the model differ from those it "
            f"starts from, the first is {(new + other)[0]}; keep the shapes and the answers"
        )
    model.load_state_dict(wanted | found)


def vqa_notes(
    recipe: TrainRecipe,
    start: Start | None,
    whole: VqaModel | None,
    *,
    tokenizer: Tokenizer,
    vocabulary: AnswerVocabulary | None,
) -> tuple[str, ...]:
    """Where the recipe contradicts the models that it starts from.

    Raises:
        UsageError: the classifier of vqa.init chooses among other answers.
    """
    section, preprocess = recipe.vqa, build_preprocess(recipe)
    assert section is not None
    if whole is None:
        if start is None:
            return ()
        if section.classify is None:  # nobody reads the text tower
            text = start.model.config.text
            recipe = replace(recipe, model=replace(recipe.model, text=text))
        return tuple(start_notes(recipe, start, tokenizer=tokenizer, preprocess=preprocess))
    key = f"vqa.init = {section.init}"
    ours = () if vocabulary is None else vocabulary.answers
    theirs = () if whole.vocabulary is None else whole.vocabulary.answers
    if ours != theirs:
        # As many, or the shapes would have been refused.
        place, pair = next(
            (i, pair) for i, pair in enumerate(zip(ours, theirs, strict=True)) if len(set(pair)) > 1
        )
        raise UsageError(
            f"{key} chooses among other answers: number {place + 1} is {pair[1]!r} there and "
            f"{pair[0]!r} of these data, so its weights would stand for others; train on data with "
            "the same answers, or start from model.init"
        )
    return (
        *contradictions(recipe.model.clip, whole.model.clip, section="model", key=key),
        *contradictions(section.model, whole.model.config, section="vqa", key=key),
        *other_images(preprocess, whole.preprocess, key=key),
        *other_texts(tokenizer, whole.tokenizer, key=key),
    )
