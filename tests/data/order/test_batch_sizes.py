"""Batches whose size changes: the order of samples goes on, whatever batches it is cut into."""

import itertools
import random
from collections import Counter

import numpy as np
import pytest

from mmtrain.data.accounts import EpochAccounts, taken_by
from mmtrain.data.config import DataConfig
from mmtrain.data.mixture import MixtureSource, WeightChange
from mmtrain.data.order.batch_sizes import BatchSizes, SizedBatches
from mmtrain.data.order.batches import BatchPlan
from mmtrain.data.order.plan import PADDING, EpochPlan
from mmtrain.data.row_plan import build_row_plan
from mmtrain.errors import UsageError

SIZES = [17, 40, 3, 33]
NUM = sum(SIZES)


def sized(*parts: tuple[int, int]) -> BatchSizes:
    return BatchSizes([SizedBatches(first=first, batch_size=size) for first, size in parts])


def drawn(seed: int, *, multiple: int) -> BatchSizes:
    """Four sizes that change behind a few batches each, in the midst of epochs or at their end."""
    draw, first, parts = random.Random(seed), 0, []
    for _ in range(4):
        parts.append((first, multiple * draw.randint(1, 40 // multiple)))
        first += draw.randint(1, 9)
    return sized(*parts)


@pytest.mark.parametrize("last", ["drop", "mask"])
@pytest.mark.parametrize("lanes", [1, 4])
@pytest.mark.parametrize("seed", range(4))
def test_every_epoch_is_cut_without_a_gap(last, lanes, seed):
    """Each lane gives its samples one after another; what an epoch's batches leave is told, and the
    accounts add up; a batch says how many it has."""
    sizes = drawn(seed, multiple=4)
    order = EpochPlan(SIZES, seed=seed, shuffle_group=2, lanes=lanes)
    plan = BatchPlan(order, batch_size=sizes, last=last)
    accounts = EpochAccounts([""], [NUM])
    epoch, next_L = 0, order.lane_bounds(0)[:-1].copy()
    for number in range(40):
        rows = plan.rows(number)
        assert rows.position_B.size == sizes.size(number)
        assert plan.samples_in(number) == (rows.position_B != PADDING).sum()
        if rows.epoch != epoch:
            assert rows.epoch == epoch + 1
            epoch, next_L = rows.epoch, order.lane_bounds(rows.epoch)[:-1].copy()
        for lane, part in enumerate(np.split(rows.place_B, lanes)):
            real = part[part != PADDING]
            assert real.tolist() == list(range(next_L[lane], next_L[lane] + real.size))
            next_L[lane] += real.size
        accounts.record(taken_by(rows, ()))
        accounts.settle(plan, number + 1)
    if last == "mask":
        assert all(plan.left_out(0, each).size == 0 for each in range(epoch))
    assert accounts.figures()["epoch_accounts"]["data"]["epochs"] >= epoch


@pytest.mark.parametrize("last", ["drop", "mask"])
@pytest.mark.parametrize("cuts", [(5,), (3, 9, 30), (8, 16)])
def test_one_size_in_several_parts_is_one_plan(last, cuts):
    """Also where a part ends with an epoch's last batch."""
    order = EpochPlan(SIZES, seed=1)
    whole = BatchPlan(order, batch_size=12, last=last)
    cut = BatchPlan(order, batch_size=sized(*((first, 12) for first in (0, *cuts))), last=last)
    for number in range(40):
        one, other = whole.rows(number), cut.rows(number)
        assert vars(one).keys() == vars(other).keys()
        assert all(np.array_equal(getattr(one, k), getattr(other, k)) for k in vars(one))
        assert whole.epochs_done(number) == cut.epochs_done(number)
    assert all(np.array_equal(whole.left_out(0, each), cut.left_out(0, each)) for each in range(3))


@pytest.mark.parametrize("mixed", [False, True])
def test_ranks_divide_batches_of_all_sizes(mixed):
    """Also of a mixture, which takes up a change of weights at the rows of its step."""
    sizes = drawn(2, multiple=4)
    sources = (
        MixtureSource(
            name="a", train="a", weight=3, weight_changes=(WeightChange(from_step=5, weight=1),)
        ),
        MixtureSource(name="b", train="b", weight=1),
    )
    config = DataConfig(mixture=sources, mixture_end="repeat") if mixed else DataConfig(train="a")
    shards = [SIZES, [50, 9]] if mixed else [SIZES]

    def plan(rank, world_size):
        return build_row_plan(
            config,
            shard_sizes=shards,
            seed=3,
            batch_size=sizes,
            rank=rank,
            world_size=world_size,
        )

    alone, ranks = plan(0, 1), [plan(rank, 4) for rank in range(4)]
    positions, counted = Counter(), Counter()
    for number in range(30):
        whole, parts = alone.rows(number), [each.rows(number) for each in ranks]
        for name in ("position_B", "sample_B", "source_B", "source_epoch_B"):
            joined = np.concatenate([getattr(part, name) for part in parts])
            assert joined.tolist() == getattr(whole, name).tolist()
        positions.update((whole.epoch, p) for p in whole.position_B.tolist() if p != PADDING)
        counted.update(whole.source_B[whole.position_B != PADDING].tolist())
        if mixed:
            assert alone.counts(number + 1).tolist() == [counted[0], counted[1]]
    assert positions.most_common(1)[0][1] == 1, "a position keys what is drawn, once an epoch"


def test_rows_and_batches_are_counted():
    """Forward and back."""
    sizes = drawn(5, multiple=2)
    total = list(itertools.accumulate((sizes.size(n) for n in range(50)), initial=0))
    assert [sizes.rows_before(n) for n in range(51)] == total
    for rows in range(total[-1]):
        assert sizes.whole(rows) == sum(end <= rows for end in total[1:])
        assert sizes.covering(rows) == sum(start < rows for start in total[:-1])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"world_size": 4}, r"train\.phase\[1\]: batch_size = 6 must be a multiple of the 4"),
        ({"lanes": 4}, r"data\.lanes = 4 must divide train\.phase\[1\]: batch_size = 6"),
        ({"big": 1000}, r"train\.phase\[1\]: batch_size = 1000 is larger than the data \(93"),
    ],
)
def test_a_size_that_does_not_fit_is_named(options, told):
    sizes = BatchSizes(
        [
            SizedBatches(first=0, batch_size=8),
            SizedBatches(
                first=4, batch_size=options.pop("big", 6), key="train.phase[1]: batch_size"
            ),
        ]
    )
    order = EpochPlan(SIZES, seed=0, lanes=options.pop("lanes", 1))
    with pytest.raises(UsageError, match=told):
        BatchPlan(order, batch_size=sizes, **options)


def test_batches_of_one_source_each_are_of_one_size():
    sources = tuple(MixtureSource(name=name, train=name, weight=1) for name in "ab")
    config = DataConfig(mixture=sources, mixture_batches="single")
    with pytest.raises(UsageError, match='mixture_batches = "single" deals batches of one size'):
        build_row_plan(
            config,
            shard_sizes=[SIZES, SIZES],
            seed=0,
            batch_size=sized((0, 4), (3, 8)),
            rank=0,
            world_size=1,
        )
