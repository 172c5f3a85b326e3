"""The objective of visual question answering: from a batch to gradients, over any schedule.

Its loss is a sum over questions, divided by their number in the *global* batch, which is known
before the forward. So one pass does under every schedule, unlike the contrastive loss's two.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mmtrain.data.order.randomness import uniform
from mmtrain.data.questions.batches import NO_ANSWER, VqaBatch, label_mask
from mmtrain.errors import UsageError
from mmtrain.losses.answer import (
    choice_loss,
    num_right_tokens,
    soft_targets,
    writing_loss,
)
from mmtrain.losses.config import AnswerLossConfig
from mmtrain.losses.vocabulary import VocabularyShares
from mmtrain.models.vqa import Vqa, VqaLogits
from mmtrain.nn.transformer import depth_keep
from mmtrain.parallel import Layout, PipelineSchedule
from mmtrain.peft.lora import DROPOUT_KEYS
from mmtrain.train.adapting import lora_keys
from mmtrain.train.step import LocalSchedule

_CHOICE, _WRITING, _RIGHT, _COLUMNS = 0, 1, 2, 3


class AnswerObjective:
    """Draws a step's random choices, weighs questions and tokens, computes loss and gradients."""

    def __init__(self, model: Vqa, config: AnswerLossConfig, *, layout: Layout, seed: int) -> None:
        self.config, self.layout, self.seed = config, layout, seed
        self.clip_config = model.clip
        classify, generate = model.config.classify, model.config.generate
        self.num_answers = None if classify is None else classify.num_answers
        self.writes = generate is not None
        self.draws_lora_dropout = False
        self.shares = None
        if generate is not None and (group := layout.group("tp")) is not None:
            assert generate.vocab_size is not None
            self.shares = VocabularyShares(group=group, vocab_size=generate.vocab_size)
        self._right = torch.zeros(2)

    def parameters(self) -> dict[str, nn.Parameter]:
        """It has none of its own."""
        return {}

    def clamp(self) -> None:
        """Nothing has a range."""

    def figures(self) -> dict[str, float]:
        """Share of right choices (of right tokens where nothing is chosen) in the last batch."""
        right, total = self._right.tolist()
        return {"answer_accuracy": right / max(total, 1)}

    def rows(self, batch: VqaBatch) -> dict[str, Tensor]:
        """Per-row tensors for every stage: tokens, lengths, answers and random choices."""
        vision, text = self.clip_config.vision, self.clip_config.text.transformer
        rows = {
            "tokens_QT": batch.tokens_QT,
            "question_length_Q": batch.question_length_Q,
            "length_Q": batch.length_Q,
            "answer_id_QK": batch.answer_id_QK,
            "answer_score_QK": batch.answer_score_QK,
            "valid_Q": batch.valid_Q,
        }
        if vision.patch_dropout:
            draw_BP = self._draw(batch, batch.position_B, "patch dropout", vision.num_patches)
            rows["kept_BP"] = draw_BP.argsort(1)[:, : vision.num_kept].sort(1).values
        num_slots = batch.valid_Q.size(0) // batch.num_rows
        slot_N = torch.arange(num_slots, device=batch.valid_Q.device)
        position_Q = (batch.position_B[:, None] * num_slots + slot_N).flatten()
        for name, core, position in (
            ("vision_keep_BL2", vision.transformer, batch.position_B),
            ("text_keep_QL2", text, position_Q),
        ):
            if core.stochastic_depth:
                draw = self._draw(batch, position, name, 2 * core.num_layers)
                draw_L2 = draw.unflatten(1, (core.num_layers, 2))
                rows[name] = depth_keep(draw_L2, rate=core.stochastic_depth)
        if self.draws_lora_dropout:
            rows[DROPOUT_KEYS] = lora_keys(batch, seed=self.seed)
        return rows

    def _draw(self, batch: VqaBatch, position: Tensor, purpose: str, num: int) -> Tensor:
        return uniform(
            seed=self.seed, epoch=batch.epoch, position_B=position, purpose=purpose, num=num
        )

    def criterion(self, logits: VqaLogits, rows: dict[str, Tensor]) -> Tensor:
        """Each question: its losses of choice and of writing, how much was right, [Q, 3]."""
        valid_Q = rows["valid_Q"]
        columns = [torch.zeros(valid_Q.size(0), device=valid_Q.device)] * _COLUMNS
        if logits.next_QTV is not None:
            tokens_QT, start_Q = rows["tokens_QT"], rows["question_length_Q"]
            mask_QT = label_mask(tokens_QT, start_Q, rows["length_Q"]) & valid_Q[:, None]
            written = (logits.next_QTV, tokens_QT, mask_QT)
            columns[_WRITING] = writing_loss(*written, shares=self.shares)
            columns[_RIGHT] = num_right_tokens(*written, shares=self.shares)
        if logits.choice_QA is not None:
            target_QA = soft_targets(
                rows["answer_id_QK"], rows["answer_score_QK"], logits.choice_QA.size(1)
            )
            loss_Q = choice_loss(logits.choice_QA, target_QA, kind=self.config.classify)
            columns[_CHOICE] = loss_Q * valid_Q
            best_Q1 = logits.choice_QA.argmax(1, keepdim=True)
            columns[_RIGHT] = target_QA.gather(1, best_Q1)[:, 0] * valid_Q
        dtype = torch.promote_types(columns[_CHOICE].dtype, columns[_WRITING].dtype)
        return torch.stack([column.to(dtype) for column in columns], dim=1)

    def step(
        self,
        schedule: LocalSchedule | PipelineSchedule,
        batch: VqaBatch,
        *,
        loss_scale: float = 1.0,
    ) -> Tensor:
        """Loss and gradients of one global batch; the gradients are times `loss_scale`.

        Raises:
            UsageError: on every rank, nothing in the batch is to be learnt from.
        """
        num_questions, num_tokens, num_images = self._count(batch)
        if not (num_questions if self.num_answers is not None else num_tokens):
            raise UsageError(
                f"no question about the {int(num_images)} images of this batch ({batch.keys[0]} is "
                "the first) has an answer to learn from; lower vqa.min_count or mend the answers"
            )
        # FSDP averages over the data-parallel ranks; each has its share of the sum.
        share = self.layout.size("dp")
        weight_3 = torch.zeros(_COLUMNS, dtype=torch.float64)
        if self.num_answers is not None:
            weight_3[_CHOICE] = share / num_questions
        if self.writes and num_tokens:
            weight = self.config.generate_weight if self.num_answers is not None else 1.0
            weight_3[_WRITING] = weight * share / num_tokens
        weight_3 = weight_3.to(self.layout.device)
        gradient_Q3 = (weight_3 * loss_scale).expand(batch.valid_Q.size(0), -1)
        out_Q3 = schedule.step(batch.images_BCHW, self.rows(batch), gradient_Q3)
        total_3 = torch.zeros(_COLUMNS, dtype=torch.float64, device=self.layout.device)
        if out_Q3 is not None:
            total_3 = out_Q3.double().sum(0)
        self._sum(total_3)
        counted = num_questions if self.num_answers is not None else num_tokens
        self._right = torch.stack([total_3[_RIGHT], torch.tensor(counted).to(total_3)])
        return (total_3 * weight_3).sum() / share

    def _count(self, batch: VqaBatch) -> tuple[float, float, float]:
        """Questions with an answer, supervised tokens and images of the global batch."""
        known_Q = batch.valid_Q
        if self.config.classify == "ce":
            # Without a right answer in the vocabulary there is no softmax to ask for.
            known_Q = known_Q & (batch.answer_id_QK != NO_ANSWER).any(1)
        tokens_QT = batch.label_mask_QT & batch.valid_Q[:, None]
        counts = torch.stack([known_Q.sum(), tokens_QT.sum(), batch.valid_B.sum()])
        if (group := self.layout.group("dp")) is not None:
            dist.all_reduce(counts, group=group)
        questions, tokens, images = counts.tolist()
        return questions, tokens, images

    def _sum(self, total_3: Tensor) -> None:
        """Over the data-parallel ranks, then from the last pipeline stage to all."""
        if (group := self.layout.group("dp")) is not None:
            dist.all_reduce(total_3, group=group)
        if (group := self.layout.group("pp")) is not None:
            source = dist.get_global_rank(group, self.layout.last_stage_rank)
            dist.broadcast(total_3, source, group=group)
