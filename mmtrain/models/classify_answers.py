"""Choosing an answer: question tokens look at the image, the last one chooses."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from mmtrain.limits import check_counts
from mmtrain.models.connector import Connector, ConnectorConfig
from mmtrain.models.slices import shallow_copy, slice_blocks
from mmtrain.models.text import TextConfig
from mmtrain.models.tower import init_linears, reset_norms
from mmtrain.models.vision import VisionConfig
from mmtrain.nn import Mask, Transformer, TransformerConfig, pool_tokens
from mmtrain.nn.front_door import FrontDoor, FrontDoorConfig
from mmtrain.nn.masks import key_length_allowed


@dataclass(frozen=True, kw_only=True)
class ClassifyConfig:
    """A classifier over known answers."""

    fusion: TransformerConfig
    """Blocks of the question's tokens that look at the image; context_dim is filled in."""
    num_answers: int | None = None
    """Answers to choose among. None: the vocabulary's, which the data give."""

    def __post_init__(self) -> None:
        check_counts(self, "num_answers", most=1 << 30)
        self.fusion.check_blocks()
        if self.fusion.mask != "full":
            raise ValueError(f'fusion.mask = "{self.fusion.mask}" must be "full"')
        if self.fusion.context_dim not in (None, self.fusion.dim):
            raise ValueError(
                f"fusion.context_dim = {self.fusion.context_dim} is filled in; leave it out"
            )


class AnswerClassifier(nn.Module):
    """connector and question map -> front doors -> fusion -> norm -> one logit an answer.

    A pipeline stage holds None for what another stage has.
    """

    connector: Connector | None
    question_norm: nn.Module | None
    question: nn.Linear | None
    norm: nn.Module | None
    choose: nn.Linear | None

    def __init__(
        self,
        config: ClassifyConfig,
        *,
        vision: VisionConfig,
        text: TextConfig,
        connector: ConnectorConfig,
        front_door: FrontDoorConfig | None,
    ) -> None:
        super().__init__()
        assert config.num_answers is not None, "the vocabulary gives the number of answers"
        fusion = config.fusion
        dim, text_dim = fusion.dim, text.transformer.dim
        self.connector = Connector(connector, vision, dim=dim)
        self.question_norm = fusion.build_norm(text_dim)
        self.question = nn.Linear(text_dim, dim)
        places = () if front_door is None else front_door.places
        self.front_doors = nn.ModuleDict(
            {
                place: FrontDoor(front_door, dim=dim, num_heads=fusion.num_heads)
                for place in places
                if front_door is not None and place != "vision"
            }
        )
        self.fusion = Transformer(replace(fusion, context_dim=dim))
        self.norm = fusion.build_norm(dim)
        self.choose = nn.Linear(dim, config.num_answers)

    def forward(
        self, image_BTD: Tensor, question_QTD: Tensor, length_Q: Tensor
    ) -> Tensor | tuple[Tensor, Tensor]:
        """The towers' tokens of images and questions (or both as the stage before left them) ->
        logits [Q, A] (or both for the next stage)."""
        image_BPD = image_BTD
        if self.connector is not None:
            image_BPD = self.image_tokens(image_BTD)
            question_QTD = self.question_tokens(question_QTD, length_Q)
        return self.answer(image_BPD, question_QTD, length_Q)

    def answer(
        self, image_BPD: Tensor, question_QTD: Tensor, length_Q: Tensor
    ) -> Tensor | tuple[Tensor, Tensor]:
        """`forward` of what the fusion works on: [B, P, D] of the images, [Q, T, D] of the
        questions."""
        num_images, (num_questions, num_tokens) = image_BPD.size(0), question_QTD.shape[:2]
        own_Q1T = key_length_allowed(length_Q, num_tokens)
        # An image's questions stand in one row, so that its keys and values are made once.
        num_slots = num_questions // num_images
        x_BSD = question_QTD.reshape(num_images, num_slots * num_tokens, -1)
        slot_S = torch.arange(num_slots, device=x_BSD.device).repeat_interleave(num_tokens)
        same_SS = slot_S[:, None] == slot_S[None, :]
        allowed = same_SS[None] & own_Q1T.reshape(num_images, 1, -1)
        x_BSD = self.fusion(x_BSD, mask=Mask(allowed=allowed), context_BSD=image_BPD)
        x_QTD = x_BSD.reshape(num_questions, num_tokens, -1)
        if self.norm is None or self.choose is None:
            return image_BPD, x_QTD
        return self.choose(self.norm(pool_tokens(x_QTD, "end", length_B=length_Q)))

    def image_tokens(self, image_BTD: Tensor) -> Tensor:
        """The vision tower's tokens -> what questions look at, [B, P, D]."""
        assert self.connector is not None
        image_BPD = self.connector(image_BTD)
        if "image" in self.front_doors:
            image_BPD = self.front_doors["image"](image_BPD, Mask())
        return image_BPD

    def question_tokens(self, question_QTD: Tensor, length_Q: Tensor) -> Tensor:
        """The question encoder's tokens -> those that look at the image, [Q, T, D]."""
        assert self.question_norm is not None and self.question is not None
        question_QTD = self.question(self.question_norm(question_QTD))
        if "question" in self.front_doors:
            own_Q1T = key_length_allowed(length_Q, question_QTD.size(1))
            question_QTD = self.front_doors["question"](question_QTD, Mask(allowed=own_Q1T))
        return question_QTD

    def slice(self, index: int, num_stages: int) -> "AnswerClassifier":
        """Stage `index` of it, over the same parts."""
        part = shallow_copy(self)
        part.fusion = slice_blocks(self.fusion, index, num_stages)
        if index > 0:
            part.connector = part.question_norm = part.question = None
            part.front_doors = nn.ModuleDict()
        if index < num_stages - 1:
            part.norm = part.choose = None
        return part

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """Draw initial weights: linears U(+-fan_in^-.5), the rest by their own tables."""
        assert self.question is not None and self.choose is not None and self.connector is not None
        init_linears(self.question, generator)
        init_linears(self.choose, generator)
        reset_norms(self.question_norm, self.norm)
        self.connector.init_weights(generator)
        self.fusion.init_weights(generator)
        for door in self.front_doors.values():
            assert isinstance(door, FrontDoor)
            door.init_weights(generator)
