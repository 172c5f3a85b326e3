"""Models that answer and write, under every layout: the single process's numbers.

As test_seams.py, for VQA models with either head and both, and for a causal decoder alone: in fp64
the gradients, their clipped norm and the weights after two AdamW steps, within 1e-9.
"""

from functools import cache
from typing import Any

import pytest

from mmtrain.parallel.mesh import ParallelConfig
from mmtrain.parallel.recompute import RecomputeConfig
from tests.parallel.tiny_answers import (
    BCE,
    CE,
    DECODER,
    GPT,
    TrainedDecoder,
    TrainedVqa,
    both_heads,
    choosing,
    in_the_tower,
    writing,
)
from tests.parallel.tiny_clip import Result, Trained
from tests.ranks import run_ranks

STEPS = 2
FULL = RecomputeConfig(kind="full")
MODELS: dict[str, Any] = {
    "both heads": (both_heads, BCE),
    "choosing": (choosing, CE),
    "doors in the tower": (in_the_tower, CE),
    "writing": (writing, BCE),
    "decoder, tied": (DECODER,),
    "gpt": (GPT,),
}
DECODERS = ("decoder, tied", "gpt")
Case = tuple[str, ParallelConfig, int]
"""Model, layout, microbatches."""
FAST: list[Case] = [
    ("both heads", ParallelConfig(tp=2), 1),
    ("both heads", ParallelConfig(pp=2), 2),
    ("doors in the tower", ParallelConfig(dp_shard=2), 2),
    ("decoder, tied", ParallelConfig(tp=2), 1),
    ("decoder, tied", ParallelConfig(pp=2), 2),
]
TWO_RANKS: list[Case] = [
    *((name, ParallelConfig(tp=2), 2) for name in MODELS if name != "doors in the tower"),
    *((name, ParallelConfig(tp=2, sequence=False), 1) for name in ("both heads", *DECODERS)),
    *((name, ParallelConfig(pp=2), 4) for name in MODELS),
    *((name, ParallelConfig(dp_shard=2), 2) for name in ("both heads", "writing", "gpt")),
    *((name, ParallelConfig(dp_kind="ddp"), 2) for name in ("both heads", "decoder, tied")),
    *((name, ParallelConfig(dp_kind="zero1"), 1) for name in ("choosing", "decoder, tied")),
    ("doors in the tower", ParallelConfig(dp_kind="ddp"), 2),
    ("doors in the tower", ParallelConfig(dp_shard=2, recompute=FULL), 1),
    ("doors in the tower", ParallelConfig(pp=2, schedule="ZBVZeroBubble"), 4),
    ("both heads", ParallelConfig(pp=2, schedule="GPipe"), 4),
    ("both heads", ParallelConfig(pp=2, schedule="Interleaved1F1B"), 4),
    ("both heads", ParallelConfig(pp=2, schedule="InterleavedZeroBubble"), 4),
    ("both heads", ParallelConfig(pp=2, schedule="ZBVZeroBubble"), 4),
    ("choosing", ParallelConfig(pp=2, schedule="LoopedBFS"), 2),
    ("writing", ParallelConfig(pp=2, schedule="ZBVZeroBubble"), 4),
    ("both heads", ParallelConfig(dp_replicate=2), 1),
]
FOUR_RANKS: list[Case] = [
    *((name, ParallelConfig(tp=2, dp_shard=2), 2) for name in ("both heads", *DECODERS)),
    ("both heads", ParallelConfig(tp=4), 1),
    ("writing", ParallelConfig(tp=4), 1),
    ("decoder, tied", ParallelConfig(tp=4, sequence=False), 2),
    ("both heads", ParallelConfig(pp=2, tp=2), 4),
    ("decoder, tied", ParallelConfig(pp=2, tp=2), 2),
    ("both heads", ParallelConfig(pp=2, dp_shard=2, schedule="ZBVZeroBubble"), 4),
    ("choosing", ParallelConfig(pp=2, dp_shard=2), 2),
    ("both heads", ParallelConfig(pp=4), 4),
    ("writing", ParallelConfig(dp_replicate=2, tp=2), 1),
]
CASES = {2: TWO_RANKS, 4: FOUR_RANKS}


def build(name: str, **layout: Any) -> Trained:
    """A training of a model, laid out."""
    config, *loss = MODELS[name]
    if not loss:
        return TrainedDecoder(config, **layout)
    return TrainedVqa(config(), *loss, **layout)


@cache
def reference(name: str) -> Result:
    """A single process in one pass."""
    return build(name).train(num_steps=STEPS)


def compare(rank: int, cases: list[Case]) -> None:
    """Every case, on all ranks."""
    for name, parallel, microbatches in cases:
        result = build(name, parallel=parallel, num_microbatches=microbatches).train(
            num_steps=STEPS
        )
        result.check(reference(name), f"{name}; {parallel}, {microbatches} microbatches")


def test_two_ranks_give_the_single_process_result() -> None:
    """Tensor and sequence parallelism with a shared vocabulary, and a pipeline."""
    run_ranks(compare, 2, FAST)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("num_ranks", CASES)
def test_layouts_give_the_single_process_result(num_ranks: int) -> None:
    run_ranks(compare, num_ranks, CASES[num_ranks])
