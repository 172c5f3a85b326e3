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
from mmtrain.models.model import Cuts, Model, Stack, Stage, Tower, tower_stacks
from mmtrain.models.slices import balance, longest, slice_tower
from mmtrain.models.text import TextTower
from mmtrain.models.vision import VisionConfig, VisionTower
from mmtrain.nn import HostLengths
from mmtrain.nn.front_door import FrontDoor, FrontDoorConfig, add_front_doors
from mmtrain.nn.regions import region

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


class VqaStage(Stage):
    """The model, or a slice of it, as one module of a schedule.

    The first stage takes uint8 images [B, 3, H, W]; all that is small per row comes as keyword
    arguments. Stages of the towers come first and hand on what `takes` of the next one names: the
    tokens of images and of questions; the heads' stages hand on those and the decoder's. The
    criterion has the last word, so that logits need not outlive a microbatch.
    """

    vision: VisionTower | None
    text: TextTower | None
    classify: AnswerClassifier | None
    generate: AnswerGenerator | None

    def __init__(
        self,
        vision: VisionTower | None,
        text: TextTower | None,
        classify: AnswerClassifier | None,
        generate: AnswerGenerator | None,
    ) -> None:
        super().__init__()
        self.vision, self.text = vision, text
        self.classify, self.generate = classify, generate
        self.takes: tuple[str, ...] = ("image",)
        self.gives: tuple[str, ...] = ()
        """What goes to the next stage; nothing: the criterion follows."""
        self.question_length: int | None = None
        """Tokens that questions are cut to. None: the longest of the microbatch."""

    def forward(
        self,
        *inputs: Tensor,
        tokens_QT: Tensor,
        question_length_Q: Tensor,
        length_Q: Tensor,
        kept_BP: Tensor | None = None,
        vision_keep_BL2: Tensor | None = None,
        text_keep_QL2: Tensor | None = None,
        host_lengths: HostLengths | None = None,
        **rows: Tensor,
    ) -> Tensor | tuple[Tensor, ...]:
        """[Q, C], what the criterion makes of the logits; or the tokens for the next stage."""
        asked = Asked(tokens_QT=tokens_QT, question_length_Q=question_length_Q, length_Q=length_Q)
        x = dict(zip(self.takes, inputs, strict=True))
        if self.vision is not None:
            with region("forward: vision"):
                x["image"] = self.vision(x["image"], kept_BP=kept_BP, keep_BL2=vision_keep_BL2)
        if self.text is not None:
            with region("forward: text"):
                x["question"] = self.read(asked, x.get("question"), text_keep_QL2, host_lengths)
        with region("forward: heads"):
            x |= self._answer(x, asked)
        if self.gives:
            return tuple(x[name] for name in self.gives)
        assert self._criterion is not None, "a stage trains; Vqa.logits is for the rest"
        return self._criterion(x, rows | vars(asked))

    def read(
        self,
        asked: Asked,
        x_QTD: Tensor | None = None,
        keep_QL2: Tensor | None = None,
        host_lengths: HostLengths | None = None,
    ) -> Tensor:
        """The question encoder, over tokens or what the stage before made of them, [Q, T, D]."""
        assert self.text is not None
        # Cut to the questions: answers that follow for the other head must not be seen.
        known = host_lengths or HostLengths(asked.question_length_Q)
        longest = self.question_length or known.longest
        x = asked.tokens_QT[:, :longest] if x_QTD is None else x_QTD
        x = self.text(x, length_B=asked.question_length_Q, keep_BL2=keep_QL2)
        return self.text.without_context(x)

    def _answer(self, x: dict[str, Tensor], asked: Asked) -> dict[str, Tensor]:
        """The heads, or this stage's slice of them -> what they change of `x`."""
        made: dict[str, Tensor] = {}
        if self.generate is not None:
            begin = x["image"] if self.generate.connector is not None else x["written"]
            made["written"] = self.generate(
                begin,
                asked.tokens_QT,
                asked.question_length_Q,
                asked.length_Q,
                tied_VD=x.get("tied"),
            )
            tied_VD = self.generate.decoder.matrix_to_hand_on(begin)
            if tied_VD is not None:
                made["tied"] = tied_VD
        if self.classify is not None:
            out = self.classify(x["image"], x["question"], asked.question_length_Q)
            if isinstance(out, tuple):
                made["image"], made["question"] = out
            else:
                made["choice"] = out
        return made

    def logits(
        self, image_BTD: Tensor, asked: Asked, *, text_keep_QL2: Tensor | None = None
    ) -> VqaLogits:
        """Of both heads, for the tokens that the vision tower made of the images; whole models."""
        x = {"image": image_BTD}
        if self.text is not None:
            x["question"] = self.read(asked, None, text_keep_QL2)
        made = self._answer(x, asked)
        return VqaLogits(choice_QA=made.get("choice"), next_QTV=made.get("written"))

    def stacks(self) -> dict[str, Stack]:
        """The towers', then the heads'."""
        return self._tower_stacks() | self._head_stacks()

    def cuts(self) -> Cuts:
        """Towers first, then heads: as often as the longest of either have layers."""
        first, then = self._tower_stacks(), self._head_stacks()
        most = longest([*first.values()]) + longest([*then.values()])
        return Cuts(most=most, what=f"the {most} layers of the longest tower and the longest head")

    def _tower_stacks(self) -> dict[str, Stack]:
        return tower_stacks(vision=self.vision, text=self.text)

    def _head_stacks(self) -> dict[str, Stack]:
        found: dict[str, Stack] = {}
        if self.classify is not None:
            text = self.text
            tokens = self.question_length if text is None else text.config.context_length
            assert tokens is not None, "a slice knows how long questions are"
            found["classify.fusion"] = Stack(
                blocks=self.classify.fusion, key="vqa.classify.fusion", tokens=tokens
            )
        if self.generate is not None:
            decoder = self.generate.decoder
            found["generate.decoder.transformer"] = Stack(
                blocks=decoder.transformer,
                key="vqa.generate.transformer",
                tokens=decoder.config.context_length,
            )
        return found

    def _cut(self, index: int, num_stages: int) -> "VqaStage":
        """Of the towers, or of the heads that follow them."""
        if num_stages == 1:
            return self
        first, then = self._tower_stacks(), self._head_stacks()
        num_towers = balance([*first.values()], [*then.values()], num_stages)
        assert self.vision is not None, "a slice is not cut again"
        if index < num_towers:
            text = self.text and slice_tower(self.text, index, num_towers)
            part = VqaStage(slice_tower(self.vision, index, num_towers), text, None, None)
        else:
            place, num = index - num_towers, num_stages - num_towers
            classify = self.classify and self.classify.slice(place, num)
            generate = self.generate and self.generate.slice(place, num)
            part = VqaStage(None, None, classify, generate)
        if self.text is not None:
            part.question_length = self.text.config.context_length
        if index > 0:
            part.takes = self._handed_on(index - 1, num_towers)
        if index < num_stages - 1:
            part.gives = self._handed_on(index, num_towers)
        return part

    def _handed_on(self, index: int, num_towers: int) -> tuple[str, ...]:
        """Names of what stage `index` of the whole hands on, in order."""
        choosing = ("image", "question") if self.classify is not None else ()
        if index < num_towers:
            return choosing or ("image",)
        if self.generate is None:
            return choosing
        tied = ("tied",) if self.generate.decoder.config.tied_head else ()
        return (*choosing, "written", *tied)


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
