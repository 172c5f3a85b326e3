"""The seams of parallelism hold on the real CLIP: every layout gives the single process's numbers.

In fp64, per tensor: gradients, their global norm, and weights after three clipped AdamW steps,
within 1e-9 (relative norm). Patch dropout, stochastic depth, repeated labels, a padding row and
captions of unequal length are on everywhere; no token count is even.
"""

from dataclasses import replace
from functools import cache

import pytest
from torch._C._distributed_c10d import _get_work_registry_size

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

STEPS = 3
MODELS = {
    "openai, 13 tokens": tiny_config(patch_dropout=0.25),
    "openai, 17 tokens": tiny_config(),
    "modern, 15 tokens": modern_config(),
    "siglip, 11 tokens": siglip_config(),
    "stem, 13 tokens": tiny_config(patch_dropout=0.25, patch_size=8, stem_channels=(8, 12, 16)),
}
LOSSES = {"softmax, attract": SOFTMAX, "sigmoid, ignore": SIGMOID}
FSDP = (ParallelConfig(dp_shard=2), 2)
TENSOR_SEQUENCE = (ParallelConfig(tp=2), 1)
PIPELINE = (ParallelConfig(pp=2, schedule="1F1B"), 4)
DDP = (ParallelConfig(dp_kind="ddp"), 2)
ZERO1 = (ParallelConfig(dp_kind="zero1"), 2)
FULL, SELECTIVE = RecomputeConfig(kind="full"), RecomputeConfig(kind="selective")


def with_recompute(
    layout: tuple[ParallelConfig, int], recompute: RecomputeConfig
) -> tuple[ParallelConfig, int]:
    parallel, microbatches = layout
    return replace(parallel, recompute=recompute), microbatches


# Every layout, recompute and model with either loss by turns; test_layouts.py has the long list.
CASES = [
    ("openai, 13 tokens", "softmax, attract", with_recompute(FSDP, FULL)),
    ("openai, 13 tokens", "sigmoid, ignore", FSDP),
    ("openai, 13 tokens", "softmax, attract", with_recompute(TENSOR_SEQUENCE, SELECTIVE)),
    ("openai, 13 tokens", "sigmoid, ignore", TENSOR_SEQUENCE),
    ("openai, 13 tokens", "softmax, attract", with_recompute(PIPELINE, SELECTIVE)),
    ("openai, 13 tokens", "sigmoid, ignore", PIPELINE),
    ("openai, 17 tokens", "softmax, attract", with_recompute(TENSOR_SEQUENCE, FULL)),
    ("openai, 13 tokens", "softmax, attract", (ParallelConfig(dp_replicate=2), 1)),
    ("openai, 13 tokens", "sigmoid, ignore", (ParallelConfig(tp=2, sequence=False), 2)),
    ("openai, 13 tokens", "softmax, attract", DDP),
    ("openai, 13 tokens", "sigmoid, ignore", ZERO1),
    ("modern, 15 tokens", "softmax, attract", TENSOR_SEQUENCE),
    ("siglip, 11 tokens", "sigmoid, ignore", PIPELINE),
    ("stem, 13 tokens", "softmax, attract", FSDP),
    ("stem, 13 tokens", "sigmoid, ignore", TENSOR_SEQUENCE),
    ("stem, 13 tokens", "softmax, attract", (ParallelConfig(tp=2, sequence=False), 2)),
    ("stem, 13 tokens", "softmax, attract", with_recompute(PIPELINE, FULL)),
    ("stem, 13 tokens", "sigmoid, ignore", DDP),
]


@cache
def reference(config: ClipConfig, loss: LossConfig) -> Result:
    """A single process in one pass."""
    return Trained(config, loss).train(num_steps=STEPS)


def compare_layouts(rank: int) -> None:
    """Every case on two ranks."""
    for model, loss_name, (parallel, microbatches) in CASES:
        config, loss = MODELS[model], LOSSES[loss_name]
        trained = Trained(config, loss, parallel=parallel, num_microbatches=microbatches)
        name = f"{model}; {loss_name}; {parallel}, {microbatches} microbatches"
        trained.train(num_steps=STEPS).check(reference(config, loss), name)
        # A collective that nobody waited for would stay there, with its tensor, for ever.
        assert _get_work_registry_size() == 0, name


def test_layouts_give_the_single_process_result() -> None:
    """FSDP, DDP and ZeRO-1 with accumulation, tensor and sequence parallelism, replicas, a 1F1B
    pipeline."""
    run_ranks(compare_layouts, 2)


@pytest.mark.parametrize("microbatches", [2, 8])
@pytest.mark.parametrize("loss_name", LOSSES)
def test_accumulation_has_the_big_batch_gradients(microbatches: int, loss_name: str) -> None:
    """Two passes over microbatches equal one pass, patch dropout and stochastic depth on."""
    config, loss = MODELS["openai, 13 tokens"], LOSSES[loss_name]
    trained = Trained(config, loss, num_microbatches=microbatches)
    result = trained.train(num_steps=STEPS)
    result.check(reference(config, loss), f"{microbatches} microbatches")
