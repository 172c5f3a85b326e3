"""Lanes: ranks that own whole ones read their part of the shards, of the same batches."""

import numpy as np
import pytest

from mmtrain.data.order.batches import BatchPlan
from mmtrain.data.order.plan import PADDING, EpochPlan
from mmtrain.errors import UsageError

SIZES = [5, 0, 7, 1, 12, 3, 3, 9, 0, 40, 2]
NUM = sum(SIZES)


def batches(lanes: int, *, sizes=SIZES, group=2, **options) -> BatchPlan:
    order = EpochPlan(sizes, seed=3, shuffle_group=group, lanes=lanes)
    return BatchPlan(order, **{"batch_size": 16} | options)


@pytest.mark.parametrize("lanes", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("last", ["drop", "mask"])
def test_every_epoch_has_every_sample_once_for_any_world(lanes, last):
    whole = batches(lanes, last=last)
    assert whole.batches_per_epoch == NUM // 16 + (last == "mask")
    for epoch in range(3):
        seen = []
        for batch in range(whole.batches_per_epoch):
            number = epoch * whole.batches_per_epoch + batch
            rows = whole.rows(number)
            real = rows.sample_B != PADDING
            assert real.sum() == whole.samples_in(number)
            assert (rows.position_B[real] == batch * 16 + np.flatnonzero(real)).all()
            assert ((rows.position_B == PADDING) == ~real).all()
            seen += rows.sample_B[real].tolist()
            for world in (2, 4, 8):
                parts = [
                    batches(lanes, last=last, rank=rank, world_size=world).rows(number).sample_B
                    for rank in range(world)
                ]
                assert (np.concatenate(parts) == rows.sample_B).all()
        assert len(set(seen)) == len(seen) == NUM - (NUM % 16 if last == "drop" else 0)


def test_one_lane_is_the_order_without_lanes():
    plan = EpochPlan([3, 4, 5], seed=0, shuffle_group=2, lanes=1)
    assert plan.samples(0, np.arange(12)).tolist() == [11, 8, 6, 10, 5, 3, 7, 4, 9, 0, 1, 2]
    assert (batches(2).rows(0).sample_B != batches(1).rows(0).sample_B).any()


@pytest.mark.parametrize("world", [2, 4, 8])
def test_a_rank_touches_its_part_of_the_shards(world):
    """Of 64 shards of unlike sizes each rank touches 64 / world, and one at either end of a lane;
    without lanes, all."""
    sizes = np.random.default_rng(0).integers(20, 60, 64)
    ends = np.cumsum(sizes)

    def touched(lanes: int, rank: int) -> int:
        plan = batches(lanes, sizes=sizes, group=4, rank=rank, world_size=world)
        found = [plan.rows(number).sample_B for number in range(plan.batches_per_epoch)]
        return len(set(np.searchsorted(ends, np.concatenate(found), side="right").tolist()))

    for rank in range(world):
        assert touched(1, rank) >= 60
        # Sizes differ: so much as the smallest shards may be more.
        assert touched(8, rank) <= 64 / world * 1.3 + 2


def test_shards_are_mixed_within_a_lane():
    sizes = [50] * 16
    rows = [batches(2, sizes=sizes, group=4).rows(number).sample_B // 50 for number in range(20)]
    for lane in range(2):
        own = np.concatenate([batch[8 * lane : 8 * lane + 8] for batch in rows])
        assert len(set(own[:80].tolist())) == 4


def test_lanes_that_do_not_fit_the_batch_are_refused():
    with pytest.raises(UsageError, match=r"data.lanes = 6 must divide train.batch_size = 16"):
        batches(6)


def test_a_replacement_comes_from_the_shards_that_are_open():
    plan = EpochPlan([50] * 16, seed=3, shuffle_group=4, lanes=2)
    draws = np.random.default_rng(0).random(16).tolist()
    for place in (0, 199, 200, 399, 400, 799):
        group = plan.samples(1, np.arange(place // 200 * 200, place // 200 * 200 + 200))
        others = [*plan.others(1, place, draws)]
        assert len(others) == 16 and set(others[:8]) <= set(group.tolist())
        assert len({other // 50 for other in others[8:]}) > 4
        assert others == [*plan.others(1, place, draws)]


@pytest.mark.parametrize("lanes", [1, 2, 3, 8])
@pytest.mark.parametrize("sizes", [SIZES, [5, 4], [8, 8], [3]], ids=str)
def test_lanes_stay_together_over_any_number_of_epochs(lanes, sizes):
    """Also where samples do not divide: after as many epochs as lanes, all have given as many."""
    plan, num = EpochPlan(sizes, seed=3, shuffle_group=2, lanes=lanes), sum(sizes)
    for lane in range(lanes):
        given = [int(np.diff(plan.lane_bounds(epoch))[lane]) for epoch in range(3 * lanes)]
        for epochs in range(3 * lanes + 1):
            assert plan.given(lane, epochs) == sum(given[:epochs])
        assert plan.given(lane, lanes) == num
        found = zip(*plan.locate(lane, np.arange(3 * num)), strict=True)
        expected = [
            (epoch, plan.lane_bounds(epoch)[lane] + inside)
            for epoch, size in enumerate(given)
            for inside in range(size)
        ]
        assert [*found] == expected
    for epoch in range(lanes + 1):
        assert sorted(plan.samples(epoch, np.arange(num)).tolist()) == list(range(num))
