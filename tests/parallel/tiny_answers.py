"""Small models that answer or write, and batches for them: a VQA model and a decoder alone.

An odd vocabulary, questions and answers of unequal length, empty slots, dictionaries that have a
say from the start.
"""

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from mmtrain.data.batch import ImageTextBatch
from mmtrain.data.questions.batches import NO_ANSWER, VqaBatch, label_mask
from mmtrain.losses.answer import writing_loss
from mmtrain.losses.config import AnswerLossConfig
from mmtrain.losses.vocabulary import VocabularyShares
from mmtrain.models import Clip, ClipConfig, Decoder, DecoderConfig
from mmtrain.models.classify_answers import ClassifyConfig
from mmtrain.models.connector import ConnectorConfig
from mmtrain.models.generate_answers import GenerateConfig
from mmtrain.models.parameters import hidden_matrix_names, lock_tower, no_decay_names
from mmtrain.models.vqa import Vqa, VqaConfig
from mmtrain.nn import TransformerConfig
from mmtrain.nn.front_door import FrontDoor, FrontDoorConfig
from mmtrain.optim.config import OptimConfig
from mmtrain.optim.optimizer import build_optimizers
from mmtrain.parallel.apply import parallelize
from mmtrain.parallel.mesh import Layout, ParallelConfig, build_layout
from mmtrain.tasks.answering import answer_objective
from mmtrain.tasks.objective import Objective
from mmtrain.train.step import build_schedule
from tests.parallel.tiny_clip import CPU, Trained, make_batch, modern_config, tiny_config

VOCAB = 61
QUESTION, ANSWER = 11, 4
SLOTS = 2
BCE, CE = AnswerLossConfig(), AnswerLossConfig(classify="ce")
CORE = TransformerConfig(dim=32, num_layers=2, num_heads=4)
MODERN = dataclasses.replace(
    CORE, num_kv_heads=2, activation="swiglu", norm="rms", qk_norm="rms", qkv_bias=False
)
DECODER = DecoderConfig(
    transformer=dataclasses.replace(
        MODERN,
        mask="causal",
        local_window=3,
        local_layers=(0, 2),
        norm_order="sandwich",
        attention_scale=0.4,
        attention_cap=3.0,
        num_layers=3,
    ),
    vocab_size=VOCAB,
    context_length=QUESTION,
    local_rope_theta=100.0,
    tied_head=True,
    logit_cap=2.0,
)
"""Layers that see a window beside layers that see all; two key heads; tied; as Gemma 2 and 3."""
GPT = DecoderConfig(
    transformer=dataclasses.replace(CORE, mask="causal", num_layers=3),
    vocab_size=VOCAB,
    context_length=QUESTION,
    positions="learned",
)


def both_heads(num_layers: int = 2) -> tuple[ClipConfig, VqaConfig]:
    """Choose and write, a front door before each; the decoder's head is tied, its mask `block`."""
    blocks = dataclasses.replace(MODERN, num_layers=num_layers, mask="block")
    return tiny_config(num_layers, patch_dropout=0.25), VqaConfig(
        front_door=FrontDoorConfig(entries=5),
        classify=ClassifyConfig(
            fusion=dataclasses.replace(CORE, num_layers=num_layers), num_answers=7
        ),
        generate=GenerateConfig(
            transformer=blocks, vocab_size=VOCAB, text_length=QUESTION + ANSWER
        ),
    )


def choosing(num_layers: int = 2) -> tuple[ClipConfig, VqaConfig]:
    """Choose alone, questions that see both ways; two layers of separate front doors."""
    return modern_config(num_layers), VqaConfig(
        connector=ConnectorConfig(kind="mlp"),
        front_door=FrontDoorConfig(entries=6, num_layers=2, shared=False),
        classify=ClassifyConfig(
            fusion=dataclasses.replace(MODERN, dim=48, head_dim=8, num_layers=num_layers),
            num_answers=5,
        ),
    )


def in_the_tower(num_layers: int = 2) -> tuple[ClipConfig, VqaConfig]:
    """As `choosing`, with front doors behind the vision tower's blocks as well."""
    clip, config = choosing(num_layers)
    doors = FrontDoorConfig(entries=5, places=("vision", "question"))
    return clip, dataclasses.replace(config, front_door=doors)


def writing(num_layers: int = 2) -> tuple[ClipConfig, VqaConfig]:
    """Write alone, a head of its own, one key head, learned positions, Gemma's scale."""
    blocks = dataclasses.replace(CORE, num_kv_heads=1, mask="prefix", num_layers=num_layers)
    return tiny_config(num_layers), VqaConfig(
        connector=ConnectorConfig(kind="queries", num_queries=5),
        front_door=FrontDoorConfig(entries=5, places=("image",)),
        generate=GenerateConfig(
            transformer=blocks,
            vocab_size=VOCAB,
            text_length=QUESTION + ANSWER,
            tied_head=False,
            learned_positions=True,
            embed_scale=True,
        ),
    )


def make_questions(
    num_rows: int = 8,
    *,
    with_answers: bool,
    step: int = 0,
    longest: int = QUESTION,
    width: int = QUESTION,
) -> VqaBatch:
    """A global batch; one slot is empty, the last image is padding.

    Args:
        num_rows: images, a multiple of 8.
        with_answers: answers follow their questions.
        step: which batch.
        longest: tokens of a question at most.
        width: that questions are padded to, their answers behind it.
    """
    generator = torch.Generator().manual_seed(100 + step)
    num = num_rows * SLOTS
    question_Q = torch.randint(1, longest + 1, (num,), generator=generator)
    answer_Q = torch.randint(2, ANSWER + 1, (num,), generator=generator) * with_answers
    width += ANSWER * with_answers
    tokens = torch.randint(0, VOCAB, (num, width), generator=generator)
    tokens[torch.arange(width) >= (question_Q + answer_Q)[:, None]] = 0
    answer = torch.randint(0, 5, (num, 3), generator=generator)
    answer[:, 2] = NO_ANSWER
    valid = torch.ones(num, dtype=torch.bool)
    valid[1], valid[-SLOTS:] = False, False
    rows = make_batch(num_rows, step=step)
    return VqaBatch(
        images_BCHW=rows.images_BCHW,
        tokens_QT=tokens,
        question_length_Q=question_Q,
        length_Q=question_Q + answer_Q,
        answer_id_QK=answer,
        answer_score_QK=torch.rand(num, 3, generator=generator) / 2,
        valid_Q=valid,
        position_B=rows.position_B,
        valid_B=rows.valid_B,
        epoch=0,
        keys=rows.keys,
    )


class _Laid(Trained):
    """What both trainings share: a model laid out, in fp64."""

    def _lay_out(
        self,
        parallel: ParallelConfig | None,
        num_microbatches: int,
        *,
        batch_size: int = 8,
        **options: Any,
    ) -> None:
        self.layout = (
            Layout(device=CPU, config=ParallelConfig())
            if parallel is None
            else build_layout(parallel, CPU)
        )
        no_decay, hidden = no_decay_names(self.model), hidden_matrix_names(self.model)
        self.stages = parallelize(self.model, self.layout, precision="fp64", **options)
        self.objective = self._objective()
        for stage in self.stages:
            stage.set_criterion(self.objective.criterion)  # pyright: ignore[reportCallIssue]
        self.schedule = build_schedule(
            self.stages, self.layout, num_microbatches=num_microbatches, batch_size=batch_size
        )
        self.optimizers = build_optimizers(
            self.parameters().items(),
            OptimConfig(lr=1e-3),
            no_decay={self._prefix + name for name in no_decay},
            hidden_matrices={self._prefix + name for name in hidden},
            zero_group=self.layout.zero_group,
        )

    _prefix = ""

    def _objective(self) -> Any:
        raise NotImplementedError


class TrainedVqa(_Laid):
    """A VQA model, its objective, schedule and optimizers.

    Args:
        config: the towers and what stands on them.
        loss: its loss.
        parallel: the layout; None: one process, though it may be a rank of a group.
        num_microbatches: parts of the batch.
        lock_vision: the vision tower's unlocked layers, None where all train.
        options: batch_size, and what `parallelize` takes.
    """

    def __init__(
        self,
        config: tuple[ClipConfig, VqaConfig],
        loss: AnswerLossConfig,
        *,
        parallel: ParallelConfig | None = None,
        num_microbatches: int = 1,
        lock_vision: int | None = None,
        **options: Any,
    ) -> None:
        self.loss = loss
        self.model = model = Vqa(*config).init_weights(0)
        towers = Clip(config[0]).init_weights(0)
        for name in ("vision", "text"):
            if (tower := getattr(model, name)) is not None:
                state = getattr(towers, name).state_dict().items()
                drawn = {n: v for n, v in state if not n.startswith("head.")}
                tower.load_state_dict(tower.state_dict() | drawn)
        let_front_doors_speak(model)
        model.double()
        if lock_vision is not None:
            lock_tower(model.vision, unlocked_layers=lock_vision)
        self._lay_out(parallel, num_microbatches, **options)

    def _objective(self) -> Objective:
        return answer_objective(self.model, self.loss, layout=self.layout, seed=3)

    def batch(self, step: int) -> VqaBatch:
        return make_questions(with_answers=self.model.config.generate is not None, step=step)


def let_front_doors_speak(model: nn.Module) -> None:
    """`fuse` starts at zero, which would hide whatever goes wrong behind it."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, FrontDoor):
            nn.init.normal_(module.fuse.weight, std=0.1, generator=generator)
            nn.init.normal_(module.dictionary, std=0.5, generator=generator)


class TextObjective:
    """The mean cross-entropy of next tokens over the global batch, as `answer_objective` has it."""

    def __init__(self, vocab_size: int, layout: Layout) -> None:
        self.layout, group = layout, layout.group("tp")
        self.shares = group and VocabularyShares(group=group, vocab_size=vocab_size)

    def parameters(self) -> dict[str, nn.Parameter]:
        return {}

    def clamp(self) -> None:
        pass

    def criterion(self, outputs: dict[str, Tensor], rows: dict[str, Tensor]) -> Tensor:
        tokens, length = rows["tokens_BT"], rows["length_B"]
        mask = label_mask(tokens, torch.ones_like(length), length)
        return writing_loss(outputs["written"], tokens, mask, shares=self.shares)[:, None]

    def step(self, schedule: Any, batch: ImageTextBatch) -> Tensor:
        rows = {"tokens_BT": batch.tokens_BT, "length_B": batch.text_length_B}
        num = (batch.text_length_B - 1).sum()
        if (group := self.layout.group("dp")) is not None:
            torch.distributed.all_reduce(num, group=group)
        weight = self.layout.size("dp") / num.double()
        out = schedule.step(batch.tokens_BT, rows, weight.expand(batch.num_rows, 1))
        loss = torch.zeros((), dtype=torch.float64) if out is None else out.sum() / num
        if group is not None:
            torch.distributed.all_reduce(loss, group=group)
        if (group := self.layout.group("pp")) is not None:
            source = torch.distributed.get_global_rank(group, self.layout.last_stage_rank)
            torch.distributed.broadcast(loss, source, group=group)
        return loss


class TrainedDecoder(_Laid):
    """A decoder with the cross-entropy of next tokens; arguments as TrainedVqa."""

    _prefix = "decoder."

    def __init__(
        self,
        config: DecoderConfig,
        *,
        parallel: ParallelConfig | None = None,
        num_microbatches: int = 1,
        **options: Any,
    ) -> None:
        self.model = Decoder(config).init_weights(torch.Generator().manual_seed(0)).double()
        self._lay_out(parallel, num_microbatches, **options)

    def _objective(self) -> TextObjective:
        return TextObjective(self.model.config.vocab_size, self.layout)
