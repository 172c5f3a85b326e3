"""The long list of layouts: each gives the single process's numbers (fp64, 1e-9).

As test_seams.py, with every pipeline schedule and every pair of axes, and with recompute. Towers
have two layers, in pipelines four, for four stages, or two ranks with two each.
"""

from collections.abc import Callable
from functools import cache, partial

import pytest

from mmtrain.losses.config import LossConfig
from mmtrain.models import ClipConfig
from mmtrain.parallel.mesh import ParallelConfig
from mmtrain.parallel.recompute import RecomputeConfig
from tests.parallel.tiny_clip import (
    SIGMOID,
    SOFTMAX,
    Result,
    Trained,
    modern_config,
    siglip_config,
    tiny_config,
)
from tests.ranks import run_ranks

STEPS = 2
OPENAI = partial(tiny_config, patch_dropout=0.25)
MODERN, SIGLIP = modern_config, siglip_config
FULL = RecomputeConfig(kind="full")
EVERY_2 = RecomputeConfig(kind="full", every=2)
SELECTIVE = RecomputeConfig(kind="selective")
MATMUL = RecomputeConfig(kind="selective", keep=("matmul",))
DDP, ZERO1 = ParallelConfig(dp_kind="ddp"), ParallelConfig(dp_kind="zero1")
Case = tuple[Callable[[int], ClipConfig], LossConfig, ParallelConfig, int]
"""Model of so many layers, loss, layout, microbatches."""
INTERLEAVED = ("Interleaved1F1B", "LoopedBFS", "InterleavedZeroBubble", "ZBVZeroBubble")
TWO_RANKS: list[Case] = [
    (OPENAI, SOFTMAX, ParallelConfig(pp=2, schedule="GPipe"), 2),
    (OPENAI, SIGMOID, ParallelConfig(pp=2, schedule="1F1B"), 8),
    *((OPENAI, SOFTMAX, ParallelConfig(pp=2, schedule=name), 4) for name in INTERLEAVED),
    (MODERN, SOFTMAX, ParallelConfig(pp=2, schedule="ZBVZeroBubble"), 4),
    (SIGLIP, SIGMOID, ParallelConfig(pp=2, schedule="InterleavedZeroBubble"), 2),
    (OPENAI, SOFTMAX, ParallelConfig(reshard_after_forward=False), 2),
    (MODERN, SOFTMAX, ParallelConfig(dp_shard=2), 2),
    (SIGLIP, SIGMOID, ParallelConfig(dp_replicate=2), 2),
    (MODERN, SOFTMAX, DDP, 1),
    (SIGLIP, SIGMOID, DDP, 4),
    (OPENAI, SOFTMAX, ParallelConfig(dp_kind="ddp", recompute=FULL), 2),
    (MODERN, SOFTMAX, ZERO1, 4),
    (SIGLIP, SIGMOID, ZERO1, 1),
    (OPENAI, SOFTMAX, ParallelConfig(dp_kind="zero1", recompute=SELECTIVE), 2),
    (MODERN, SOFTMAX, ParallelConfig(tp=2, sequence=False), 1),
    (SIGLIP, SIGMOID, ParallelConfig(tp=2), 2),
    (OPENAI, SOFTMAX, ParallelConfig(tp=2, recompute=FULL), 2),
    (MODERN, SOFTMAX, ParallelConfig(tp=2, sequence=False, recompute=SELECTIVE), 2),
    (SIGLIP, SIGMOID, ParallelConfig(tp=2, recompute=MATMUL), 1),
    (OPENAI, SOFTMAX, ParallelConfig(recompute=SELECTIVE), 4),
    (MODERN, SOFTMAX, ParallelConfig(dp_replicate=2, recompute=EVERY_2), 2),
    (OPENAI, SOFTMAX, ParallelConfig(pp=2, recompute=MATMUL), 4),
    *(
        (OPENAI, SOFTMAX, ParallelConfig(pp=2, schedule=name, recompute=FULL), 4)
        for name in INTERLEAVED
    ),
]
FOUR_RANKS: list[Case] = [
    (OPENAI, SOFTMAX, ParallelConfig(dp_shard=4), 2),
    (OPENAI, SIGMOID, ParallelConfig(dp_shard=4, reshard_after_forward=False), 1),
    (OPENAI, SOFTMAX, ParallelConfig(dp_replicate=4), 1),
    (OPENAI, SOFTMAX, ParallelConfig(dp_replicate=2, dp_shard=2), 2),
    (OPENAI, SOFTMAX, DDP, 2),
    (MODERN, SIGMOID, ZERO1, 2),
    (OPENAI, SIGMOID, ParallelConfig(tp=4), 1),
    (OPENAI, SOFTMAX, ParallelConfig(tp=4, sequence=False), 2),
    (OPENAI, SOFTMAX, ParallelConfig(dp_shard=2, tp=2), 2),
    (MODERN, SOFTMAX, ParallelConfig(dp_replicate=2, tp=2), 1),
    (SIGLIP, SIGMOID, ParallelConfig(dp_shard=2, tp=2, sequence=False), 1),
    (OPENAI, SOFTMAX, ParallelConfig(pp=4), 8),
    (SIGLIP, SIGMOID, ParallelConfig(pp=4, schedule="GPipe"), 4),
    (OPENAI, SOFTMAX, ParallelConfig(pp=2, tp=2), 4),
    (MODERN, SOFTMAX, ParallelConfig(pp=2, tp=2, schedule="Interleaved1F1B"), 2),
    (OPENAI, SIGMOID, ParallelConfig(pp=2, dp_shard=2), 2),
    (OPENAI, SOFTMAX, ParallelConfig(pp=2, dp_shard=2, schedule="ZBVZeroBubble"), 4),
    (SIGLIP, SIGMOID, ParallelConfig(pp=2, dp_replicate=2), 2),
    (OPENAI, SOFTMAX, ParallelConfig(pp=2, tp=2, recompute=FULL), 4),
    (MODERN, SOFTMAX, ParallelConfig(pp=2, tp=2, recompute=SELECTIVE), 2),
    (OPENAI, SIGMOID, ParallelConfig(pp=2, dp_shard=2, recompute=EVERY_2), 4),
    (OPENAI, SOFTMAX, ParallelConfig(dp_shard=2, tp=2, recompute=SELECTIVE), 2),
]
EIGHT_RANKS: list[Case] = [  # with the ranks of test_random_layouts.py
    (OPENAI, SOFTMAX, ParallelConfig(pp=2, dp_shard=2, tp=2), 2),
    (OPENAI, SIGMOID, ParallelConfig(pp=2, dp_shard=2, tp=2, schedule="Interleaved1F1B"), 4),
    (OPENAI, SOFTMAX, ParallelConfig(dp_replicate=2, dp_shard=2, tp=2), 1),
    (OPENAI, SOFTMAX, ParallelConfig(pp=2, dp_shard=2, tp=2, recompute=FULL), 4),
]
CASES = {2: TWO_RANKS, 4: FOUR_RANKS}


@cache
def reference(config: ClipConfig, loss: LossConfig) -> Result:
    """A single process in one pass."""
    return Trained(config, loss).train(num_steps=STEPS)


def compare(rank: int, cases: list[Case]) -> None:
    """Every case, on all ranks."""
    for model, loss, parallel, microbatches in cases:
        config = model(2 if parallel.pp == 1 else 4)
        trained = Trained(config, loss, parallel=parallel, num_microbatches=microbatches)
        result = trained.train(num_steps=STEPS)
        result.check(reference(config, loss), f"{parallel}, {microbatches} microbatches")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("num_ranks", CASES)
def test_layouts_give_the_single_process_result(num_ranks: int) -> None:
    run_ranks(compare, num_ranks, CASES[num_ranks])
