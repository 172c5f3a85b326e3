"""Texts and images to features, over all data-parallel ranks.

Work is divided by whole batches: batch b belongs to rank b modulo the ranks. The last bits of a
product depend on its shape, not on a row's place in it, which tests/cli/test_same_bits.py holds. So
every forward is of FIXED_BATCH samples, a last batch being filled up, and texts stand with others
of as many tokens: a sample's features are a function of the sample and the weights alone, whatever
the batch size, the ranks, the workers or the order of the data. An encoder of another batch size
gives that up. All ranks run equally many forward passes (a sharded model's are collective), those
without a batch left over one that counts nowhere.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Protocol

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from mmtrain.collectives import rank_and_size
from mmtrain.data.images.transforms import PreprocessConfig
from mmtrain.data.sources.source import SampleSource
from mmtrain.data.text.tokenizer import Tokenizer
from mmtrain.errors import UsageError
from mmtrain.eval.forward_size import FIXED_BATCH
from mmtrain.eval.together import on_all_ranks, sum_of_all
from mmtrain.limits import MOST_PROCESSES, check_choices, check_counts
from mmtrain.models.clip import Clip
from mmtrain.models.fused import fused_clip
from mmtrain.nn import unit_norm
from mmtrain.nn.products import fast_products
from mmtrain.parallel.precision import Precision, autocast, product_dtype

_CPU = torch.device("cpu")
_TOKENISED_AT_ONCE = 4096
"""Texts whose ids are held to count them."""


class Towers(Protocol):
    """What an evaluation asks of a model: `Clip`, or whatever runs one that is cut up."""

    def encode_image(self, images_BCHW: Tensor, /) -> Tensor:
        """uint8 [B, 3, H, W] -> [B, E]."""
        ...

    def encode_text(self, tokens_BT: Tensor, /) -> Tensor:
        """Ids padded to the context, [B, T] -> [B, E]."""
        ...


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """A model and how an evaluation is to run it."""

    model: Towers
    """Set to eval mode by the caller where it has modes; its weights do not change any more."""
    tokenizer: Tokenizer
    """Texts to ids."""
    preprocess: PreprocessConfig
    """What images go through."""
    device: torch.device = _CPU
    """Where the model is."""
    precision: Precision = "fp32"
    """Number format of the forward passes; scores are fp32 in any case."""
    batch_size: int = FIXED_BATCH
    """Samples per rank and forward pass, from `forward_size`."""
    workers: int = 0
    """Processes per rank that read and decode."""
    group: ProcessGroup | None = None
    """The data-parallel ranks, which divide the samples among themselves. None: one process."""
    kept: Callable[[SampleSource], Tensor] | None = None
    """Gives the image features of a whole set from where they are kept, float32 [N, E] on the CPU,
    on every rank; collective. None: every evaluation encodes its images itself."""
    progress: Callable[[int, int], None] | None = None
    """Told how many images of a set are encoded, on all ranks together, of how many."""

    def __post_init__(self) -> None:
        try:
            check_choices(self)
            check_counts(self, "batch_size")
            check_counts(self, "workers", least=0, most=MOST_PROCESSES)
        except ValueError as error:
            raise UsageError(f"Encoder: {error}") from error

    @property
    def is_main(self) -> bool:
        """Whether this rank gathers what only one needs, such as pictures."""
        return rank_and_size(self.group)[0] == 0

    @property
    def is_fixed(self) -> bool:
        """Whether all forwards are of one size, so that features depend on nothing else."""
        return self.batch_size == FIXED_BATCH

    @cached_property
    def towers(self) -> Towers:
        """The model as it encodes: with fused blocks, where it is a whole one."""
        if not isinstance(self.model, Clip):
            return self.model
        return fused_clip(self.model, dtype=product_dtype(self.precision))


def own_batches(num_batches: int, group: ProcessGroup | None) -> Iterator[int | None]:
    """This rank's batch of each round; None where a round has fewer batches than ranks."""
    rank, ranks = rank_and_size(group)
    for first in range(0, num_batches, ranks):
        number = first + rank
        yield number if number < num_batches else None


@torch.no_grad()
def encode_texts(encoder: Encoder, texts: Sequence[str]) -> Tensor:
    """Unit-norm features of all texts, on every rank: float32 [M, E] on the encoder's device.

    Raises:
        UsageError: on every rank, the model gives something that is no number.
    """
    batches = _text_batches(encoder, texts)
    features_ME: Tensor | None = None
    with on_all_ranks(encoder.group, encoder.device):
        for number in own_batches(len(batches), encoder.group):
            some = [] if number is None else batches[number]
            batch = [texts[each] for each in some or [0]]
            rows_BE = _encode_text_batch(encoder, batch)[: len(some)]
            if features_ME is None:
                features_ME = rows_BE.new_zeros(len(texts), rows_BE.size(1))
            features_ME[some] = rows_BE
    assert features_ME is not None, "there are texts, so every rank has a round"
    features_ME = sum_of_all(features_ME, group=encoder.group)
    # A score that is no number is above none and below none: every rank would be the first.
    if not bool(features_ME.isfinite().all()):
        raise UsageError("the text features are not finite: the weights or the precision overflow")
    return features_ME


def _text_batches(encoder: Encoder, texts: Sequence[str]) -> list[list[int]]:
    """The texts' numbers by forward passes: those of as many tokens together, or, where forwards
    are of any size, of about as many bytes."""
    if encoder.is_fixed:
        length = _num_tokens(encoder, texts)
        order = sorted(range(len(texts)), key=length.__getitem__)
        alike = [list(some) for _, some in groupby(order, key=length.__getitem__)]
    else:
        alike = [sorted(range(len(texts)), key=lambda number: len(texts[number].encode()))]
    size = encoder.batch_size
    return [some[at : at + size] for some in alike for at in range(0, len(some), size)]


def _num_tokens(encoder: Encoder, texts: Sequence[str]) -> list[int]:
    """Of each text; none are told apart by a tower that reads all texts at one length."""
    if isinstance(encoder.model, Clip) and not encoder.model.text.config.cuts_padding:
        return [0] * len(texts)
    found: list[int] = []
    for start in range(0, len(texts), _TOKENISED_AT_ONCE):
        found += encoder.tokenizer.encode(texts[start : start + _TOKENISED_AT_ONCE])[1].tolist()
    return found


def _encode_text_batch(encoder: Encoder, texts: Sequence[str]) -> Tensor:
    tokens_BT = encoder.tokenizer(texts).to(encoder.device, non_blocking=True)
    with fast_products(encoder.device), autocast(encoder.precision, encoder.device):
        features_BE = encoder.towers.encode_text(filled_up(encoder, tokens_BT))
    return unit_norm(features_BE[: len(texts)]).float()


@torch.no_grad()
def encode_image_batch(encoder: Encoder, images_BCHW: Tensor) -> Tensor:
    """Unit-norm features of uint8 images: float32 [B, E] on the device."""
    images_BCHW = images_BCHW.to(encoder.device, non_blocking=True)
    with fast_products(encoder.device), autocast(encoder.precision, encoder.device):
        features_BE = encoder.towers.encode_image(filled_up(encoder, images_BCHW))
    return unit_norm(features_BE[: len(images_BCHW)]).float()


def filled_up(encoder: Encoder, rows: Tensor) -> Tensor:
    """[B, ...] with its first row again and again to the encoder's batch size, where forwards are
    of a fixed one."""
    missing = encoder.batch_size - len(rows)
    if not encoder.is_fixed or missing <= 0 or not len(rows):
        return rows
    return torch.cat([rows, rows[:1].expand(missing, *rows.shape[1:])])
