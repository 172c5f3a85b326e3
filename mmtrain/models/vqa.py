"""Visual question answering: a vision tower, a connector, and one head or both.

`classify` chooses among known answers; `generate` writes an answer, the image's tokens being the
beginning of the decoder's text. Questions of an image come together: Q = B * N rows, and the image
is encoded once for its N.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from mmtrain.data.images.tiles import TilesConfig
from mmtrain.models.classify_answers import AnswerClassifier, ClassifyConfig
from mmtrain.models.clip import ClipConfig
from mmtrain.models.connector import ConnectorConfig
from mmtrain.models.dialogues import DialogueGenerator, DialogueStage
from mmtrain.models.generate_answers import AnswerGenerator, GenerateConfig
from mmtrain.models.model import Model, Tower
from mmtrain.models.text import TextTower
from mmtrain.models.vision import VisionConfig, VisionTower
from mmtrain.models.vqa_stage import Asked, VqaLogits, VqaStage
from mmtrain.nn.front_door import FrontDoor, FrontDoorConfig, add_front_doors

Head = Literal["classify", "generate"]


@dataclass(frozen=True, kw_only=True)
class VqaConfig:
    """What stands on the vision tower. At least one of the heads is there."""

    connector: ConnectorConfig = field(default_factory=ConnectorConfig)
    """From the image's patches to the heads' width; each head has its own."""
    front_door: FrontDoorConfig | None = None
    """Front-door causal attention (CATT) over the features that the heads read, or within the
    vision tower. None: off."""
    classify: ClassifyConfig | None = None
    """Choose among known answers."""
    generate: GenerateConfig | None = None
    """Write answers."""
    tiles: TilesConfig | None = None
    """Cut the images of dialogues into tiles. None: each is one square."""

    def __post_init__(self) -> None:
        self._check_dialogues()
        if self.classify is None and self.generate is None:
            raise ValueError("neither classify nor generate is there; give one of them a section")
        question = self.front_door is not None and "question" in self.front_door.places
        if question and self.classify is None:
            raise ValueError(
                'front_door.places has "question", but only classify has a question encoder; leave '
                "it out"
            )

    @property
    def reads_dialogues(self) -> bool:
        """Whether its decoder reads turns with images among them."""
        return self.generate is not None and self.generate.reads == "dialogues"

    def _check_dialogues(self) -> None:
        if self.tiles is not None and not self.reads_dialogues:
            raise ValueError(
                "tiles: a question's image is one square; only [vqa.dialogues] has images in "
                "pieces, leave [vqa.tiles] out"
            )
        if self.classify is not None and self.reads_dialogues:
            raise ValueError(
                "classify chooses the answer to one question, and dialogues are written; leave "
                "[vqa.classify] out"
            )


class Vqa(Model):
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
        if config.front_door is not None and "vision" in config.front_door.places:
            add_front_doors(self.vision.transformer, config.front_door)
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
            self.generate = _build_generator(config.generate, config, clip.vision)
        self.packs = False
        """Whether training puts the dialogues of a microbatch side by side in one row."""

    def towers(self) -> dict[str, Tower]:
        """Of images, and of questions where they are read by an encoder."""
        return {"vision": self.vision} | ({} if self.text is None else {"text": self.text})

    def stage(self) -> VqaStage | DialogueStage:
        """All parts as the one stage of a schedule; parameters are shared with this model."""
        if isinstance(self.generate, DialogueGenerator):
            return DialogueStage(self.vision, self.generate, packs=self.packs)
        return VqaStage(self.vision, self.text, self.classify, self.generate)

    def logits(self, images_BCHW: Tensor, asked: Asked) -> VqaLogits:
        """uint8 [B, 3, H, W] and the questions about them -> logits of the heads."""
        return self._asked_stage().logits(self.vision(images_BCHW), asked)

    def choose(self, image_BPD: Tensor, asked: Asked) -> Tensor:
        """The classifier's logits [Q, A], of the tokens that it made of the images; questions are
        as wide as they are given, whatever the longest is."""
        assert self.classify is not None, "the model has no classifier"
        stage, length_Q = self._asked_stage(), asked.question_length_Q
        stage.question_length = asked.tokens_QT.size(1)
        question_QTD = self.classify.question_tokens(stage.read(asked), length_Q)
        logits = self.classify.answer(image_BPD, question_QTD, length_Q)
        assert isinstance(logits, Tensor), "a whole model"
        return logits

    def _asked_stage(self) -> VqaStage:
        assert not self.config.reads_dialogues, "it goes on with dialogues and is asked by them"
        return VqaStage(self.vision, self.text, self.classify, self.generate)

    @torch.no_grad()
    def init_weights(self, seed: int) -> "Vqa":
        """Draw the initial weights of the heads and of front doors in the tower; the towers are
        drawn or read by the caller."""
        generator = torch.Generator().manual_seed(seed)
        for head in (self.classify, self.generate):
            if head is not None:
                head.init_weights(generator)
        for part in self.vision.modules():
            if isinstance(part, FrontDoor):
                part.init_weights(generator)
        return self


def _build_generator(
    generate: GenerateConfig, config: VqaConfig, vision: VisionConfig
) -> AnswerGenerator:
    parts: dict[str, Any] = {
        "vision": vision,
        "connector": config.connector,
        "front_door": config.front_door,
    }
    if generate.reads == "dialogues":
        return DialogueGenerator(generate, **parts, tiles=config.tiles)
    return AnswerGenerator(generate, **parts)
