"""What a recipe asks of the ranks that train it, for `mmtrain plan`."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mmtrain.data.questions.answers import build_vocabulary, every_question
from mmtrain.data.questions.source import open_questions
from mmtrain.data.text.tokenizer import Tokenizer
from mmtrain.errors import UsageError
from mmtrain.loading.start import read_start
from mmtrain.models import Clip, ClipConfig, ClipStage
from mmtrain.models.vqa import Vqa, VqaStage
from mmtrain.nn import TransformerConfig
from mmtrain.parallel import Layout
from mmtrain.plan.workload import Workload
from mmtrain.recipe import TrainRecipe, resolve, run_tokenizer
from mmtrain.tasks.answering import answer_objective
from mmtrain.tasks.config import VqaSection

_RIGHT_ANSWERS = 10
"""Of a question at most, as VQAv2 has them."""


def read_workload(recipe: TrainRecipe) -> Workload:
    """The workload of a recipe as it was read, with the tokenizer that its run would take.

    Raises:
        UsageError: an adapter trains, the recipe contradicts its tokenizer, or the questions of a
            recipe with [vqa.classify], which fix its answers, are not there.
    """
    if recipe.peft is not None:
        raise UsageError(
            "plan counts no adapter, and the recipe has a section [peft]; without it the plan is "
            "of training all weights"
        )
    start = read_start(recipe.model.init, name=recipe.model.name)
    tokenizer = run_tokenizer(recipe, start)
    recipe = resolve(recipe, tokenizer)
    if recipe.vqa is not None:
        recipe = replace(recipe, vqa=_with_sizes(recipe, recipe.vqa, tokenizer))
    return build_workload(recipe)


def build_workload(recipe: TrainRecipe) -> Workload:
    """The workload of a recipe.

    Args:
        recipe: resolved; a classifier knows how many answers it has, a decoder its vocabulary.
    """
    given: dict[str, Any] = {
        "clip": recipe.model.clip,
        "train": recipe.train,
        "optim": recipe.optim,
        "lock": recipe.lock,
        "parallel": recipe.parallel,
    }
    if recipe.vqa is None:
        return Matching(**given)
    return Answering(**given, section=recipe.vqa)


@dataclass(frozen=True, kw_only=True)
class Matching(Workload):
    """Both towers, trained to match."""

    @property
    def num_ids(self) -> int:
        """Of its caption."""
        return self.clip.text.context_length

    @property
    def batch_width(self) -> int:
        """Of the features that are compared."""
        return self.clip.embed_dim

    def whole_model(self) -> Clip:
        """Image and text tower."""
        return Clip(self.clip)

    def prepare(self, model: Clip, stages: Sequence[ClipStage], layout: Layout) -> None:
        """Nothing: the last stage gives the features."""

    def rows(self, num_images: int) -> dict[str, Tensor]:
        """A caption of each image, and what is dropped."""
        text = self.clip.text
        found = _image_draws(self.clip, num_images)
        found["tokens_BT"] = torch.zeros(num_images, text.context_length, dtype=torch.int64)
        found["length_B"] = torch.full((num_images,), text.context_length)
        if layers := _dropped_layers(text.transformer):
            found["text_keep_BL2"] = torch.ones(num_images, layers, 2)
        return found


@dataclass(frozen=True, kw_only=True)
class Answering(Workload):
    """A vision tower and heads that answer questions."""

    section: VqaSection
    """The heads, their loss, and how many questions come with an image."""

    @property
    def num_ids(self) -> int:
        """Of its questions."""
        return self.section.data.per_image * self.clip.text.context_length

    @property
    def batch_width(self) -> None:
        """Each question has a loss of its own."""
        return

    def whole_model(self) -> Vqa:
        """The tower, the question encoder where there is one, the heads."""
        return Vqa(self.clip, self.section.model)

    def prepare(self, model: Vqa, stages: Sequence[VqaStage], layout: Layout) -> None:
        """The last stage gives losses, so that logits need not outlive a microbatch."""
        objective = answer_objective(model, self.section.loss, layout=layout, seed=0)
        for stage in stages:
            stage.set_criterion(objective.criterion)
            stage.question_length = self.clip.text.context_length

    def rows(self, num_images: int) -> dict[str, Tensor]:
        """Questions and answers, and what is dropped."""
        text, generate = self.clip.text, self.section.generate
        found = _image_draws(self.clip, num_images)
        length = text.context_length
        if generate is not None:
            assert generate.text_length is not None
            length = generate.text_length
        questions = num_images * self.section.data.per_image
        if layers := _dropped_layers(text.transformer):
            found["text_keep_QL2"] = torch.ones(questions, layers, 2)
        return found | {
            "tokens_QT": torch.zeros(questions, length, dtype=torch.int64),
            "question_length_Q": torch.full((questions,), text.context_length),
            "length_Q": torch.full((questions,), length),
            "answer_id_QK": torch.zeros(questions, _RIGHT_ANSWERS, dtype=torch.int64),
            "answer_score_QK": torch.ones(questions, _RIGHT_ANSWERS),
            "valid_Q": torch.ones(questions, dtype=torch.bool),
        }


def _image_draws(clip: ClipConfig, num_images: int) -> dict[str, Tensor]:
    """Random choices of the vision tower, of every image."""
    found: dict[str, Tensor] = {}
    if clip.vision.patch_dropout:
        found["kept_BP"] = torch.zeros(num_images, clip.vision.num_kept, dtype=torch.int64)
    if layers := _dropped_layers(clip.vision.transformer):
        found["vision_keep_BL2"] = torch.ones(num_images, layers, 2)
    return found


def _dropped_layers(blocks: TransformerConfig) -> int:
    return blocks.num_layers if blocks.stochastic_depth else 0


def _with_sizes(recipe: TrainRecipe, section: VqaSection, tokenizer: Tokenizer) -> VqaSection:
    """The section with what tokenizer and questions fix; `num_answers` spares the questions."""
    generate, classify = section.generate, section.classify
    if generate is not None:
        length = tokenizer.context_length + section.data.answer_length
        generate = replace(generate, vocab_size=tokenizer.vocab_size, text_length=length)
    if classify is not None and classify.num_answers is None:
        source = open_questions(
            recipe.data.only_train,
            questions=section.data.questions,
            annotations=section.data.annotations,
            config=recipe.data,
        )
        try:
            found = build_vocabulary(list(every_question(source)), min_count=section.min_count)
        except ValueError as error:
            raise UsageError(f"vqa.{error}") from error
        classify = replace(classify, num_answers=len(found.answers))
    return replace(section, classify=classify, generate=generate)
