"""Where the weights of a model that answers come from, and where the recipe contradicts that."""

from dataclasses import replace

import torch

from mmtrain.data.questions.answers import AnswerVocabulary
from mmtrain.errors import UsageError
from mmtrain.interop.hf_decoder_files import DecoderPackage
from mmtrain.loading.start import contradictions, other_images, other_texts, start_lines
from mmtrain.loading.vqa import VqaModel
from mmtrain.models import Clip, ClipConfig
from mmtrain.models.transfer import copy_weights
from mmtrain.models.vqa import Vqa
from mmtrain.tasks.config import VqaSection
from mmtrain.tasks.task import Shared, copy_start


def build_answering(clip: ClipConfig, section: VqaSection) -> Vqa:
    """The model, without values.

    Raises:
        UsageError: the heads do not fit the towers.
    """
    try:
        return Vqa(clip, section.model)
    except ValueError as error:
        raise UsageError(f"vqa.{error}") from error


def build_started_model(
    clip: ClipConfig,
    section: VqaSection,
    shared: Shared,
    found: dict[str, torch.Tensor] | None,
    *,
    decoder: DecoderPackage | None = None,
) -> Vqa:
    """The model with its initial weights: towers and decoder drawn, or from a CLIP and a decoder's
    folder, or all from a VQA model.

    Args:
        clip: the towers.
        section: [vqa], filled in.
        shared: the CLIP that it starts from, and the seed.
        found: all weights of the model of vqa.init; None: there is none, or they are not needed.
        decoder: that of vqa.generate.init.
    """
    model = build_answering(clip, section).init_weights(shared.seed)
    towers = Clip(clip).init_weights(shared.seed)
    if (start := shared.start) is not None:
        if model.text is None:
            # Its tokenizer may be another one; nobody reads its text tower.
            kept = replace(clip, text=start.model.config.text)
            towers = Clip(kept).init_weights(shared.seed)
        copy_start(start.key, lambda: copy_weights(start.model, towers))
    drawn = {n: x for n, x in model.vision.state_dict().items() if ".front_door." in n}
    model.vision.load_state_dict(_without_head(towers.vision.state_dict()) | drawn)
    if model.text is not None:
        model.text.load_state_dict(_without_head(towers.text.state_dict()))
    if decoder is not None:
        assert model.generate is not None, "its section names the decoder"
        model.generate.decoder.load_state_dict(decoder.tensors)
    if found is not None:
        _copy_all(found, model, str(section.init))
    return model


def _without_head(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in state.items() if not name.startswith("head.")}


def _copy_all(found: dict[str, torch.Tensor], model: Vqa, init: str) -> None:
    """Every weight of another VQA model; what only this one has (a front door,
    learned tokens, places of tiles) starts anew."""
    wanted = model.state_dict()
    parts = ("front_door", "generate.prompt.", "generate.places.", "text.embed.context")
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


def refuse_other_answers(whole: VqaModel, vocabulary: AnswerVocabulary | None, *, key: str) -> None:
    """Refuse a start whose classifier chooses among other answers.

    Raises:
        UsageError: naming the first that differs.
    """
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


def start_notes(
    clip: ClipConfig, section: VqaSection, whole: VqaModel | None, *, shared: Shared
) -> tuple[str, ...]:
    """Where the recipe contradicts the models that it starts from."""
    if whole is None:
        if (start := shared.start) is None:
            return ()
        if section.classify is None:  # nobody reads the text tower
            clip = replace(clip, text=start.model.config.text)
        generate = section.generate
        brings_ids = generate is not None and generate.init is not None
        return tuple(
            start_lines(
                clip,
                start,
                tokenizer=start.tokenizer if brings_ids else shared.tokenizer,
                preprocess=shared.preprocess,
            )
        )
    key = f"vqa.init = {section.init}"
    generate, told = section.generate, ()
    if generate is not None and generate.init is not None:
        told = (
            f"{key} brings all weights: of vqa.generate.init = {generate.init} only shape and "
            "tokenizer are taken",
        )
    return (
        *told,
        *contradictions(clip, whole.model.clip, section="model", key=key),
        *contradictions(section.model, whole.model.config, section="vqa", key=key),
        *other_images(shared.preprocess, whole.preprocess, key=key),
        *other_texts(shared.tokenizer, whole.tokenizer, key=key),
    )
