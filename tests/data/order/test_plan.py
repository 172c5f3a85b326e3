"""The order of samples: exactly once, asked in any order, the same for any number of ranks."""

import pickle

import numpy as np
import pytest

from mmtrain.data.order import plan as order_plan
from mmtrain.data.order.batches import BatchPlan
from mmtrain.data.order.plan import PADDING, EpochPlan
from mmtrain.errors import UsageError

SIZES = [5, 0, 7, 1, 12, 3, 3, 9, 0]
NUM = sum(SIZES)


def order(plan: EpochPlan, epoch: int) -> list[int]:
    return plan.samples(epoch, np.arange(plan.num_samples)).tolist()


@pytest.mark.parametrize("group", [1, 2, 4, 100])
def test_every_epoch_has_every_sample_once(group):
    plan = EpochPlan(SIZES, seed=3, shuffle_group=group)
    epochs = [order(plan, epoch) for epoch in range(5)]
    assert all(sorted(epoch) == list(range(NUM)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 5


def test_positions_are_asked_in_any_order():
    plan = EpochPlan(SIZES, seed=3, shuffle_group=2)
    expected = [order(plan, epoch) for epoch in range(6)]
    rng = np.random.default_rng(0)
    for asked in (EpochPlan(SIZES, seed=3, shuffle_group=2), pickle.loads(pickle.dumps(plan))):
        for epoch, position in zip(rng.integers(0, 6, 300), rng.integers(0, NUM, 300), strict=True):
            assert asked.sample(int(epoch), int(position)) == expected[epoch][position]


def test_a_thread_beside_may_drive_out_what_was_kept(monkeypatch: pytest.MonkeyPatch):
    """One that looks ahead in the same plan, between any two steps of one that reads."""
    expected = [order(EpochPlan(SIZES, seed=3, shuffle_group=2), epoch) for epoch in range(3)]
    monkeypatch.setattr(order_plan, "_remember", lambda *_: None)
    plan = EpochPlan(SIZES, seed=3, shuffle_group=2)
    assert [order(plan, epoch) for epoch in range(3)] == expected
    assert plan.sample(1, 7) == expected[1][7]


def test_the_order_of_a_seed_never_changes():
    """Pinned: another version of anything must not move a run that is half done."""
    assert order(EpochPlan([3, 4, 5], seed=0, shuffle_group=2), 0) == PINNED
    assert order(EpochPlan([3, 4, 5], seed=1, shuffle_group=2), 0) != PINNED


PINNED = [11, 8, 6, 10, 5, 3, 7, 4, 9, 0, 1, 2]


def test_without_shuffling_the_order_is_that_of_the_shards():
    plan = EpochPlan(SIZES, seed=3, shuffle=False)
    assert order(plan, 0) == order(plan, 1) == list(range(NUM))


def test_samples_are_mixed_within_a_group_of_shards():
    sizes = [50] * 8
    plan = EpochPlan(sizes, seed=0, shuffle_group=2)
    shards = np.array(order(plan, 0)) // 50
    for group in range(4):
        part = shards[group * 100 : (group + 1) * 100]
        assert len(set(part.tolist())) == 2
        assert 20 < np.count_nonzero(np.diff(part)) < 80  # a fair mix changes shard half the time


def test_seeking_in_many_samples_keeps_few_of_them():
    plan = EpochPlan([10_000] * 40_000, seed=0, shuffle_group=4)
    positions = np.random.default_rng(0).integers(0, plan.num_samples, 20)
    found = plan.samples(7, positions)
    assert [plan.sample(7, int(p)) for p in positions] == found.tolist()
    assert sum(piece.mixed.size for piece in plan._pieces.values()) <= 40_000


@pytest.mark.parametrize("last", ["drop", "mask"])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 6, 12])
def test_ranks_divide_one_global_order(last, world_size):
    plan = EpochPlan(SIZES, seed=3, shuffle_group=2)
    alone = BatchPlan(plan, batch_size=12, last=last)
    ranks = [
        BatchPlan(
            EpochPlan(SIZES, seed=3, shuffle_group=2),
            batch_size=12,
            last=last,
            rank=rank,
            world_size=world_size,
        )
        for rank in range(world_size)
    ]
    for number in range(3 * alone.batches_per_epoch):
        parts = [rank.rows(number) for rank in ranks]
        whole = alone.rows(number)
        epoch = number // alone.batches_per_epoch
        assert {part.epoch for part in parts} == {whole.epoch} == {epoch}
        for name in ("position_B", "sample_B"):
            joined = np.concatenate([getattr(part, name) for part in parts])
            assert joined.tolist() == getattr(whole, name).tolist()


def test_the_rest_is_dropped_or_padded():
    plan = EpochPlan(SIZES, seed=3)
    dropping, masking = (BatchPlan(plan, batch_size=12, last=last) for last in ("drop", "mask"))
    assert (dropping.batches_per_epoch, masking.batches_per_epoch) == (NUM // 12, NUM // 12 + 1)
    last = masking.rows(2 * masking.batches_per_epoch - 1)
    rest = NUM % 12
    assert last.epoch == 1
    assert last.position_B.tolist() == [*range(NUM - rest, NUM), *[PADDING] * (12 - rest)]
    assert (last.sample_B[rest:] == PADDING).all()
    for epoch in range(2):
        numbers = range(epoch * masking.batches_per_epoch, (epoch + 1) * masking.batches_per_epoch)
        seen = np.concatenate([masking.rows(number).sample_B for number in numbers])
        assert sorted(seen[seen != PADDING].tolist()) == list(range(NUM))
    exact = BatchPlan(EpochPlan([12, 12], seed=0), batch_size=12, last="mask")
    assert exact.batches_per_epoch == 2
    assert (exact.rows(1).position_B != PADDING).all()


def test_batches_that_do_not_fit_are_refused_in_one_line():
    plan = EpochPlan(SIZES, seed=3)
    with pytest.raises(UsageError, match=r"train.batch_size = 10 .* multiple of the 4 .*; use 12$"):
        BatchPlan(plan, batch_size=10, world_size=4)
    with pytest.raises(UsageError, match=r"train.batch_size = 41 is larger than the data \(40 sam"):
        BatchPlan(plan, batch_size=41)
    assert BatchPlan(plan, batch_size=41, last="mask").batches_per_epoch == 1
