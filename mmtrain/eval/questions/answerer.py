"""A model that answers questions, and how it is run."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch.distributed import ProcessGroup

from mmtrain.collectives import rank_and_size
from mmtrain.data.dialogues.config import DialogueDataConfig
from mmtrain.data.dialogues.tokens import DialogueText
from mmtrain.data.images.transforms import PreprocessConfig
from mmtrain.data.questions.answers import AnswerVocabulary
from mmtrain.data.text.tokenizer import Tokenizer
from mmtrain.errors import UsageError
from mmtrain.eval.forward_size import FIXED_BATCH
from mmtrain.models.connector import num_image_tokens
from mmtrain.models.fused import fused_vqa
from mmtrain.models.vqa import Head, Vqa
from mmtrain.parallel.precision import Precision, product_dtype

Choose = Literal["letter", "text"]
"""By the likelihood of each option's letter, or by that of its text."""
_CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Answerer:
    """A model and how it is asked."""

    model: Vqa
    """In eval mode; its weights do not change any more."""
    tokenizer: Tokenizer
    """Of questions and answers."""
    preprocess: PreprocessConfig
    """What images go through."""
    vocabulary: AnswerVocabulary | None
    """What `classify` chooses among."""
    answer_length: int
    """Tokens of a written answer at most."""
    head: Head | None = None
    """Which head answers. None: classify where it is there."""
    choose: Choose | None = None
    """Choose among a question's options by their likelihood. None: write an answer."""
    device: torch.device = _CPU
    """Where the model is."""
    precision: Precision = "fp32"
    """Number format of the forward passes."""
    batch_size: int = FIXED_BATCH
    """Images per rank and forward pass."""
    workers: int = 0
    """Processes per rank that read and decode."""
    group: ProcessGroup | None = None
    """The ranks, which share out the images. None: one process."""
    progress: Callable[[int, int], None] | None = None
    """Told how many images of a set are through, on this rank, of how many."""

    @property
    def chosen_head(self) -> Head:
        """The head that answers.

        Raises:
            UsageError: the model has not the one asked for.
        """
        has = [name for name in ("classify", "generate") if getattr(self.model, name) is not None]
        head = self.head or ("generate" if self.choose else has[0])
        if self.choose and (head, *has).count("generate") < 2:
            raise UsageError(
                f"choose = {self.choose} is by likelihood, which only the head generate tells; "
                f"leave it out{'' if 'generate' in has else ', the model has not that head'}"
            )
        if head not in has:
            raise UsageError(f"head = {head}: the model has only {has[0]}")
        return head  # pyright: ignore[reportReturnType]

    @property
    def is_fixed(self) -> bool:
        """Whether a set's forwards are of fixed shapes, so that answers depend on nothing else."""
        return self.batch_size == FIXED_BATCH

    @cached_property
    def fused(self) -> Vqa:
        """The model as it answers: with fused blocks, where they are whole ones."""
        return fused_vqa(self.model, dtype=product_dtype(self.precision))

    @cached_property
    def dialogue_text(self) -> DialogueText:
        """What makes tokens of a question to a model of dialogues."""
        config = self.model.config
        assert config.generate is not None and config.generate.text_length is not None
        return DialogueText(
            self.tokenizer,
            DialogueDataConfig(max_length=config.generate.text_length),
            tokens_per_piece=self.tokens_per_piece,
        )

    @property
    def tokens_per_piece(self) -> int:
        """That an image, or a piece of one, becomes."""
        return num_image_tokens(self.model.config.connector, self.model.clip.vision)

    @property
    def is_main(self) -> bool:
        """Whether this rank writes."""
        return rank_and_size(self.group)[0] == 0
