"""What each task asks of the ranks that train it: its model, and what comes with an image."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmtrain.errors import UsageError
from mmtrain.loading import read_package
from mmtrain.models import Clip, ClipConfig, ClipStage
from mmtrain.models.vqa import Vqa, VqaStage
from mmtrain.nn import TransformerConfig
from mmtrain.parallel.mesh import Layout
from mmtrain.plan.teachers import PlannedTeacher
from mmtrain.plan.workload import Workload
from mmtrain.tasks.answering import answer_objective
from mmtrain.tasks.answering_start import build_answering
from mmtrain.tasks.config import LossSection, VqaSection
from mmtrain.tasks.terms.term import Comparison

_RIGHT_ANSWERS = 10
"""Of a question at most, as VQAv2 has them."""


@dataclass(frozen=True, kw_only=True)
class Matching(Workload):
    """Both towers, trained to match."""

    loss: LossSection
    """The contrastive loss and the terms beside it."""
    by_path: Mapping[str, PlannedTeacher]
    """What terms learn from."""

    @property
    def num_ids(self) -> int:
        """Of its caption."""
        return self.clip.text.context_length

    @property
    def comparisons(self) -> tuple[Comparison, ...]:
        """Of all features, and those of the terms."""
        width = self.clip.embed_dim
        found = [Comparison(width=width)]
        for term in self.loss.terms:
            teacher = None if term.teacher is None else self.by_path[term.teacher]
            of_teacher = None if teacher is None else teacher.config.embed_dim
            found += term.comparisons(width, teacher_width=of_teacher)
        return tuple(found)

    @property
    def sums_over_images(self) -> bool:
        """The sigmoid alone."""
        return self.loss.kind == "siglip" and not self.loss.terms

    @property
    def teachers(self) -> tuple[PlannedTeacher, ...]:
        """One of each term that has one."""
        return tuple(
            self.by_path[term.teacher] for term in self.loss.terms if term.teacher is not None
        )

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
    def comparisons(self) -> tuple[Comparison, ...]:
        """None: each question has a loss of its own."""
        return ()

    def whole_model(self) -> Vqa:
        """The tower, the question encoder where there is one, the heads."""
        return build_answering(self.clip, self.section)

    def prepare(self, model: Vqa, stages: Sequence[VqaStage], layout: Layout) -> None:
        """The last stage gives losses, so that logits need not outlive a microbatch."""
        objective = answer_objective(model, self.section.loss, layout=layout, seed=0)
        for stage in stages:
            stage.set_criterion(objective.criterion)
            stage.question_length = self.clip.text.context_length

    def rows(self, num_images: int) -> dict[str, Tensor]:
        """Questions and answers, and what is dropped.

        Raises:
            UsageError: the rows are dialogues.
        """
        if self.section.dialogues is not None:
            raise UsageError(
                "plan counts images with so many texts each, and a dialogue of [vqa.dialogues] has "
                "as many images and tokens as its data say; `mmtrain profile` measures its steps"
            )
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


def planned_teachers(loss: LossSection) -> dict[str, PlannedTeacher]:
    """What the terms learn from, by its path.

    Raises:
        UsageError: it is not there.
    """
    found: dict[str, PlannedTeacher] = {}
    for term in loss.terms:
        if term.teacher is None:
            continue
        package = read_package(term.teacher, key="loss.terms: teacher")
        found[term.teacher] = PlannedTeacher(
            config=package.config,
            context_length=package.tokenizer.context_length,
            image_size=package.preprocess.image_size,
            autocasts=term.precision == "bf16",
        )
    return found


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
