"""The seams of parallelism hold on the real CLIP: every layout gives the single process's numbers.

In fp64, per tensor: gradients, and weights after three AdamW steps, within 1e-9 (relative norm).
"""

import pytest

from mmtrain.parallel import ParallelConfig
from mmtrain.train.contrastive import LossConfig
from tests.parallel.tiny_clip import Trained, reference, tiny_config, train, worst
from tests.ranks import run_ranks

TOLERANCE = 1e-9
STEPS = 3
LOSSES = {
    "softmax, attract": LossConfig(kind="clip", positives="attract"),
    "sigmoid, ignore": LossConfig(kind="siglip", positives="ignore"),
}
LAYOUTS = {
    "fsdp 2, two microbatches": (ParallelConfig(dp_shard=2), 2),
    "replicas 2": (ParallelConfig(dp_replicate=2), 1),
    "tp 2 with sequence parallel, 17 tokens": (ParallelConfig(tp=2), 1),
    "tp 2 without sequence parallel, two microbatches": (ParallelConfig(tp=2, sequence=False), 2),
    "pp 2, 1F1B": (ParallelConfig(pp=2, schedule="1F1B"), 4),
}


def check(name: str, trained: Trained, want: tuple) -> None:
    """Compare what this rank holds with the single process."""
    losses, gradients, weights = train(trained, num_steps=STEPS)
    want_losses, want_gradients, want_weights = want
    assert losses == pytest.approx(want_losses, rel=TOLERANCE), name
    assert set(gradients) <= set(want_gradients) and len(gradients) > 10, name
    for kind, got, expected in (
        ("gradient", gradients, want_gradients),
        ("weight", weights, want_weights),
    ):
        error, tensor = worst(got, expected)
        assert error <= TOLERANCE, f"{name}: {kind} of {tensor} is off by {error:.1e}"


def compare_layouts(rank: int) -> None:
    """Every layout and loss on two ranks."""
    config = tiny_config(patch_dropout=0.25)
    odd = tiny_config()
    for loss_name, loss in LOSSES.items():
        wants = {
            False: reference(odd, loss, num_steps=STEPS),
            True: reference(config, loss, num_steps=STEPS),
        }
        for name, (parallel, microbatches) in LAYOUTS.items():
            drops = parallel.tp == 1
            trained = Trained(
                config if drops else odd, loss, parallel=parallel, num_microbatches=microbatches
            )
            check(f"{name}, {loss_name}", trained, wants[drops])


def test_layouts_give_the_single_process_result() -> None:
    """FSDP with accumulation, tensor + sequence parallel with an odd token count, a 1F1B pipeline."""
    run_ranks(compare_layouts, 2)


@pytest.mark.parametrize("microbatches", [2, 4, 8])
@pytest.mark.parametrize("loss_name", LOSSES)
def test_accumulation_has_the_big_batch_gradients(microbatches: int, loss_name: str) -> None:
    """Two passes over microbatches equal one pass, patch dropout and stochastic depth on."""
    config = tiny_config(patch_dropout=0.25)
    want = reference(config, LOSSES[loss_name], num_steps=STEPS)
    trained = Trained(config, LOSSES[loss_name], num_microbatches=microbatches)
    check(f"{microbatches} microbatches", trained, want)
