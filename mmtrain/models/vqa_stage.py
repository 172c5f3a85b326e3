"""The stage of a schedule that answers questions: towers and heads, or a slice of them."""

from dataclasses import dataclass

from torch import Tensor

from mmtrain.models.classify_answers import AnswerClassifier
from mmtrain.models.generate_answers import AnswerGenerator
from mmtrain.models.model import Cuts, Stack, Stage, tower_stacks
from mmtrain.models.slices import balance, longest, slice_tower
from mmtrain.models.text import TextTower
from mmtrain.models.vision import VisionTower
from mmtrain.nn import HostLengths
from mmtrain.nn.regions import region


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
