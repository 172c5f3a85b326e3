"""A model of dialogues under every layout, side by side in one row or not: one process's numbers.

As test_answers.py: in fp64 the gradients, their clipped norm and the weights after three AdamW
steps, within 1e-9. Rows have other numbers of pieces, some none, and microbatches without any.
"""

from functools import cache

import pytest

from mmtrain.errors import UsageError
from mmtrain.parallel.mesh import ParallelConfig
from tests.parallel.tiny_clip import Result
from tests.parallel.tiny_dialogues import TrainedDialogues, make_dialogues, reading
from tests.ranks import run_ranks

STEPS = 3
Case = tuple[ParallelConfig, int, bool]
"""Layout, microbatches, side by side."""
FAST: list[Case] = [
    (ParallelConfig(tp=2), 1, True),
    (ParallelConfig(dp_kind="ddp"), 4, True),
]
SLOW: list[Case] = [
    (ParallelConfig(dp_shard=2), 2, False),
    (ParallelConfig(tp=2), 2, False),
    (ParallelConfig(tp=2, sequence=False), 2, True),
    (ParallelConfig(dp_shard=2), 4, True),
    (ParallelConfig(dp_kind="ddp"), 1, False),
    (ParallelConfig(dp_kind="zero1"), 2, True),
    (ParallelConfig(dp_replicate=2), 1, True),
]


@cache
def reference() -> Result:
    """A single process in one pass, rows padded."""
    return TrainedDialogues(reading()).train(num_steps=STEPS)


def compare(rank: int, cases: list[Case]) -> None:
    """Every case, on all ranks."""
    for parallel, microbatches, packs in cases:
        trained = TrainedDialogues(
            reading(), parallel=parallel, num_microbatches=microbatches, packs=packs
        )
        told = f"{parallel}, {microbatches} microbatches, packs = {packs}"
        trained.train(num_steps=STEPS).check(reference(), told)


@pytest.mark.parametrize(("microbatches", "packs"), [(4, False), (1, True), (2, True), (8, True)])
def test_one_process(microbatches: int, packs: bool) -> None:
    """Cut with their pieces, and side by side."""
    trained = TrainedDialogues(reading(), num_microbatches=microbatches, packs=packs)
    trained.train(num_steps=STEPS).check(reference(), f"{microbatches}, {packs}")


def test_logits_are_made_of_what_is_learnt_alone() -> None:
    trained, batch = TrainedDialogues(reading(), packs=True), make_dialogues()
    rows: list[int] = []
    generate = trained.model.generate
    assert generate is not None and generate.decoder.head is not None
    generate.decoder.head.register_forward_hook(
        lambda _, inputs, logits: rows.append(logits.shape[:2].numel())
    )
    trained.backward(batch)
    assert rows == [int(batch.trained_BT.sum())] and rows[0] < int(batch.length_B.sum()) / 2


def test_a_locked_tower_keeps_its_weights() -> None:
    want = TrainedDialogues(reading(), lock_vision=0)
    before = {n: p.clone() for n, p in want.model.vision.named_parameters()}
    result = want.train(num_steps=1)
    assert not any(name.startswith("vision.") for name in result.gradients)
    assert all(before[n].equal(p) for n, p in want.model.vision.named_parameters())
    packed = TrainedDialogues(reading(), lock_vision=0, packs=True).train(num_steps=1)
    packed.check(result, "locked")


@pytest.mark.slow
def test_two_ranks() -> None:
    run_ranks(compare, 2, FAST)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_ranks_in_other_layouts() -> None:
    run_ranks(compare, 2, SLOW)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_four_ranks() -> None:
    run_ranks(compare, 4, [(ParallelConfig(tp=2, dp_shard=2), 2, True)])


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_compiled_blocks() -> None:
    """The lengths of a row change in every step, and the code stays."""
    trained = TrainedDialogues(reading(), packs=True, num_microbatches=2, compile=True)
    trained.train(num_steps=STEPS).check(reference(), "compiled")


def cut(rank: int) -> None:
    with pytest.raises(UsageError, match=r"parallel.pp = 2 cuts dialogues"):
        TrainedDialogues(reading(), parallel=ParallelConfig(pp=2), num_microbatches=2)


@pytest.mark.slow
def test_a_pipeline_is_refused() -> None:
    run_ranks(cut, 2)
