"""Visual question answering: a vision tower, a connector, and one head or both.

`classify` chooses among known answers; `generate` writes an answer, the image's tokens being the
beginning of the decoder's text. Questions of an image come together: Q = B * N rows, and the image
is encoded once for its N.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from mmtrain.models.classify_answers import AnswerClassifier, ClassifyConfig
from mmtrain.models.clip import ClipConfig
from mmtrain.models.connector import ConnectorConfig
from mmtrain.models.generate_answers import AnswerGenerator, GenerateConfig
from mmtrain.models.text import TextTower
from mmtrain.models.vision import VisionTower
from mmtrain.nn.front_door import FrontDoorConfig

Head = Literal["classify", "generate"]


@dataclass(frozen=True, kw_only=True)
class VqaConfig:
    """What stands on the vision tower. At least one of the heads is there."""

    connector: ConnectorConfig = field(default_factory=ConnectorConfig)
    """From the image's patches to the heads' width; each head has its own."""
    front_door: FrontDoorConfig | None = None
    """Front-door causal attention (CATT) over the features that the heads read. None: off."""
    classify: ClassifyConfig | None = None
    """Choose among known answers."""
    generate: GenerateConfig | None = None
    """Write answers."""

    def __post_init__(self) -> None:
        if self.classify is None and self.generate is None:
            raise ValueError("neither classify nor generate is there; give one of them a section")
        question = self.front_door is not None and "question" in self.front_door.places
        if question and self.classify is None:
            raise ValueError(
                'front_door.places has "question", but only classify has a question encoder; use '
                '["image"]'
            )


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The questions of a batch of images, as rows of tokens: what both heads read."""

    tokens_QT: Tensor
    """A question's tokens, then (generate) its answer's."""
    question_length_Q: Tensor
    """Tokens of the question, at least 1."""
    length_Q: Tensor
    """Tokens of question and answer."""


@dataclass(frozen=True, kw_only=True)
class VqaLogits:
    """What the heads say; None for one that is not there."""

    choice_QA: Tensor | None
    """Of the vocabulary's answers."""
    next_QTV: Tensor | None
    """At t, of the token at t + 1."""


Criterion = Callable[[VqaLogits, dict[str, Tensor]], Tensor]
"""(logits, all per-row tensors) -> [Q, C]: what a training step wants of each question."""


class VqaStage(nn.Module):
    """The whole model as one module of a schedule.

    It takes uint8 images [B, 3, H, W]; all that is small per row comes as keyword arguments. The
    criterion has the last word, so that logits need not outlive a microbatch.
    """

    def __init__(
        self,
        vision: VisionTower,
        text: TextTower | None,
        classify: AnswerClassifier | None,
        generate: AnswerGenerator | None,
    ) -> None:
        super().__init__()
        self.vision, self.text = vision, text
        self.classify, self.generate = classify, generate
        self._criterion: Criterion | None = None

    def set_criterion(self, criterion: Criterion) -> None:
        """What `forward` makes of the logits; the training objective's."""
        self._criterion = criterion

    def forward(
        self,
        vision_x: Tensor,
        *,
        tokens_QT: Tensor,
        question_length_Q: Tensor,
        length_Q: Tensor,
        kept_BP: Tensor | None = None,
        vision_keep_BL2: Tensor | None = None,
        text_keep_QL2: Tensor | None = None,
        **rows: Tensor,
    ) -> Tensor:
        """[Q, C], what the criterion makes of the logits."""
        assert self._criterion is not None, "a stage trains; Vqa.logits is for the rest"
        image_BTD = self.vision(vision_x, kept_BP=kept_BP, keep_BL2=vision_keep_BL2)
        asked = Asked(tokens_QT=tokens_QT, question_length_Q=question_length_Q, length_Q=length_Q)
        logits = self.logits(image_BTD, asked, text_keep_QL2=text_keep_QL2)
        return self._criterion(logits, rows | vars(asked))

    def logits(
        self, image_BTD: Tensor, asked: Asked, *, text_keep_QL2: Tensor | None = None
    ) -> VqaLogits:
        """Of both heads, for the tokens that the vision tower made of the images."""
        choice, written = None, None
        if self.classify is not None and self.text is not None:
            # Cut to the questions: answers that follow for the other head must not be seen.
            longest = int(asked.question_length_Q.max())
            tokens_QT = asked.tokens_QT[:, :longest]
            question_QTD = self.text(
                tokens_QT, length_B=asked.question_length_Q, keep_BL2=text_keep_QL2
            )
            choice = self.classify(image_BTD, question_QTD, asked.question_length_Q)
        if self.generate is not None:
            written = self.generate(
                image_BTD, asked.tokens_QT, asked.question_length_Q, asked.length_Q
            )
        return VqaLogits(choice_QA=choice, next_QTV=written)


class Vqa(nn.Module):
    """A vision tower, a question encoder (for `classify`) and the heads.

    Args:
        clip: the towers' shapes, as a CLIP checkpoint has them. The text tower encodes questions;
            without `classify` it is not there.
        config: the rest.
    """

    def __init__(self, clip: ClipConfig, config: VqaConfig) -> None:
        super().__init__()
        self.clip, self.config = clip, config
        self.vision = VisionTower(clip.vision, embed_dim=clip.embed_dim)
        self.vision.head = None
        self.text: TextTower | None = None
        self.classify: AnswerClassifier | None = None
        self.generate: AnswerGenerator | None = None
        if config.classify is not None:
            self.text = TextTower(clip.text, embed_dim=clip.embed_dim)
            self.text.head = None
            self.classify = AnswerClassifier(
                config.classify,
                vision=clip.vision,
                text=clip.text,
                connector=config.connector,
                front_door=config.front_door,
            )
        if config.generate is not None:
            self.generate = AnswerGenerator(
                config.generate,
                vision=clip.vision,
                connector=config.connector,
                front_door=config.front_door,
            )

    def stage(self) -> VqaStage:
        """All parts as the one stage of a schedule; parameters are shared with this model."""
        return VqaStage(self.vision, self.text, self.classify, self.generate)

    def logits(self, images_BCHW: Tensor, asked: Asked) -> VqaLogits:
        """uint8 [B, 3, H, W] and the questions about them -> logits of the heads."""
        return self.stage().logits(self.vision(images_BCHW), asked)

    def choose(self, images_BCHW: Tensor, asked: Asked) -> Tensor:
        """The classifier's logits [Q, A]."""
        logits = self.stage().logits(self.vision(images_BCHW), asked).choice_QA
        assert logits is not None, "the model has no classifier"
        return logits

    @torch.no_grad()
    def init_weights(self, seed: int) -> "Vqa":
        """Draw the heads' initial weights; the towers are drawn or read by the caller."""
        generator = torch.Generator().manual_seed(seed)
        for head in (self.classify, self.generate):
            if head is not None:
                head.init_weights(generator)
        return self


def no_decay_names(model: nn.Module) -> set[str]:
    """Parameters that weight decay leaves alone: vectors, positions, learned tokens and queries,
    and the dictionaries of front-door attention, which stand for data."""
    tables = ("positional_embedding", "class_embedding", "registers", "query", "queries")
    return {
        name
        for name, parameter in model.named_parameters()
        if parameter.ndim <= 1 or name.rpartition(".")[2] in (*tables, "dictionary")
    }
