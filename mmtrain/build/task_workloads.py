"""What each task asks of the ranks that train it: its model, and what comes with an image."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

from mmtrain.errors import UsageError
from mmtrain.loading import read_package
from mmtrain.models import Clip, ClipConfig, ClipStage
from mmtrain.models.connector import num_image_tokens
from mmtrain.models.vqa import Vqa
from mmtrain.models.vqa_stage import VqaStage
from mmtrain.nn import HostLengths, Ragged, TransformerConfig
from mmtrain.parallel.mesh import Layout
from mmtrain.plan.teachers import PlannedTeacher
from mmtrain.plan.workload import Workload
from mmtrain.tasks.answering import answer_objective
from mmtrain.tasks.answering_start import build_answering
from mmtrain.tasks.config import LossSection, VqaSection
from mmtrain.tasks.dialogues import dialogue_objective
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
        return self.clip.text.max_ids

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
        found["tokens_BT"] = torch.zeros(num_images, text.max_ids, dtype=torch.int64)
        found["length_B"] = torch.full((num_images,), text.max_ids)
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
        return self.section.data.per_image * self.clip.text.max_ids

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
            stage.question_length = self.clip.text.max_ids

    def rows(self, num_images: int) -> dict[str, Tensor]:
        """Questions and answers, and what is dropped."""
        text, generate = self.clip.text, self.section.generate
        found = _image_draws(self.clip, num_images)
        length = text.max_ids
        if generate is not None:
            assert generate.text_length is not None
            length = generate.text_length
        questions = num_images * self.section.data.per_image
        if layers := _dropped_layers(text.transformer):
            found["text_keep_QL2"] = torch.ones(questions, layers, 2)
        return found | {
            "tokens_QT": torch.zeros(questions, length, dtype=torch.int64),
            "question_length_Q": torch.full((questions,), text.max_ids),
            "length_Q": torch.full((questions,), length),
            "answer_id_QK": torch.zeros(questions, _RIGHT_ANSWERS, dtype=torch.int64),
            "answer_score_QK": torch.ones(questions, _RIGHT_ANSWERS),
            "valid_Q": torch.ones(questions, dtype=torch.bool),
        }


@dataclass(frozen=True, kw_only=True)
class Talking(Answering):
    """A vision tower and a decoder that goes on with dialogues: what their data may be at most.

    Each has all tokens that it may have, its images in as many pieces as there may be, and all else
    is learnt. Such rows have no padding, so it is the same whether they are packed.
    """

    num_images: int = 1
    """Of a dialogue."""

    def with_images(self, num: int) -> "Talking":
        """Dialogues of so many images each."""
        return replace(self, num_images=num)

    @property
    def num_ids(self) -> int:
        """Of a dialogue."""
        assert self.section.dialogues is not None
        return self.section.dialogues.max_length

    @property
    def images_per_row(self) -> int:
        """Pieces of the images, of which there is room for the tokens.

        Raises:
            UsageError: there is room for less than a piece of each.
        """
        most = 1 if self.section.tiles is None else self.section.tiles.most_pieces
        # A question and an answer have a token each at least.
        room = (self.num_ids - 2) // self._tokens_per_piece
        if room < self.num_images:
            images = "an image" if self.num_images == 1 else f"each of {self.num_images} images"
            raise UsageError(
                f"vqa.dialogues.max_length = {self.num_ids} has no room beside the "
                f"{self._tokens_per_piece} tokens of {images}; raise it, or make fewer tokens of "
                "an image by vqa.connector"
            )
        return min(most * self.num_images, room)

    @property
    def row_told(self) -> str:
        """The dialogue."""
        pieces = self.images_per_row
        num = self.num_images
        images, more = ("one image", ", --images for more") if num == 1 else (f"{num} images", "")
        if pieces > num:
            images += f" of {pieces} pieces"
        return (
            f"dialogues of {self.num_ids:,} tokens with {images} x {self._tokens_per_piece} "
            f"tokens{more}, all else learnt (mmtrain profile measures those of the data)"
        )

    @property
    def _tokens_per_piece(self) -> int:
        return num_image_tokens(self.section.connector, self.clip.vision)

    def prepare(self, model: Vqa, stages: Sequence[Any], layout: Layout) -> None:
        """The last stage gives losses."""
        objective = dialogue_objective(model, layout=layout, seed=0)
        pieces = self.images_per_row

        def ragged(_: nn.Module, inputs: tuple[Tensor], rows: dict[str, Any]) -> Any:
            (x,) = inputs
            return (Ragged(x, [pieces] * (x.size(0) // pieces)),), rows

        for stage in stages:
            stage.set_criterion(objective.criterion)
            stage.packs = False
            stage.register_forward_pre_hook(ragged, with_kwargs=True)

    def rows(self, num_images: int) -> dict[str, Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Dialogues and what is dropped; their lengths are the host's, whatever else is not
        there."""
        pieces, length = self.images_per_row, self.num_ids
        image_BT = torch.zeros(num_images, length, dtype=torch.bool)
        found: dict[str, Any] = {
            "tokens_BT": torch.zeros(num_images, length, dtype=torch.int64),
            "image_BT": image_BT,
            "trained_BT": torch.zeros_like(image_BT),
            "length_B": torch.full((num_images,), length),
            "valid_B": torch.ones(num_images, dtype=torch.bool),
        }
        counts = [pieces] * num_images
        num = num_images * pieces
        found["place_N2"] = Ragged(torch.zeros(num, 2, dtype=torch.int64), counts)
        if layers := _dropped_layers(self.clip.vision.transformer):
            found["keep_NL2"] = Ragged(torch.ones(num, layers, 2), counts)
        learnt = length - 1 - pieces * self._tokens_per_piece
        with unset_fake_temporarily():
            for name, size in (("host_lengths", length), ("host_trained", learnt)):
                found[name] = HostLengths(torch.full((num_images,), size))
        return found


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
