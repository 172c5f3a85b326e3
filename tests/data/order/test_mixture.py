"""Mixtures of orders: exactly-once epochs a source, ends, single batches, changes at a step."""

import random
from fractions import Fraction

import numpy as np
import pytest

from mmtrain.data.order.mixture import Mixed, MixturePlan
from mmtrain.data.order.plan import PADDING, EpochPlan
from mmtrain.data.order.stream import Stream
from mmtrain.errors import UsageError

SIZES = {"a": [40, 30, 31], "b": [7, 12], "c": [300]}


def mixture(weights=("0.5", "0.2", "0.3"), *, epochs=None, lanes=1, **options) -> MixturePlan:
    """Sources a, b, c of 101, 19 and 300 samples; `weights` may be a schedule."""
    settings = {"end": "repeat", "batches": "mixed", "batch_size": 12} | options
    schedule = weights if isinstance(weights, list) else [(0, weights)]
    return MixturePlan(
        [
            Mixed(
                name=name,
                plan=EpochPlan(sizes, seed=3, shuffle_group=2, lanes=lanes, name=name),
                max_epochs=epochs and epochs.get(name),
            )
            for name, sizes in SIZES.items()
        ],
        [(step, tuple(map(Fraction, weights))) for step, weights in schedule],
        **settings,
    )


def met(plan: MixturePlan, first: int, stop: int) -> dict[int, list[tuple[int, int]]]:
    """Epoch and sample of each row by source, in the order of the run."""
    found: dict[int, list[tuple[int, int]]] = {0: [], 1: [], 2: []}
    for number in range(first, stop):
        rows = plan.rows(number)
        columns = (rows.source_B, rows.source_epoch_B, rows.sample_B)
        for source, epoch, sample in zip(*(column.tolist() for column in columns), strict=True):
            if sample != PADDING:
                found[source].append((epoch, sample))
    return found


@pytest.mark.parametrize("options", [{}, {"batches": "single"}, {"lanes": 4}], ids=str)
def test_every_source_has_exactly_once_epochs_of_its_own(options):
    plan = mixture(**options)
    found = met(plan, 0, 260)
    for source, sizes in enumerate(SIZES.values()):
        num = sum(sizes)
        done = len(found[source]) // num - 1
        assert done >= 2
        for epoch in range(done):
            samples = [sample for own, sample in found[source] if own == epoch]
            assert sorted(samples) == list(range(num))
        order = [[s for own, s in found[source] if own == epoch] for epoch in (0, 1)]
        assert order[0] != order[1]
    assert [len(each) for each in found.values()] == plan.counts(260).tolist()


@pytest.mark.parametrize("options", [{}, {"batches": "single"}, {"lanes": 4}], ids=str)
def test_ranks_share_the_same_rows(options):
    whole = mixture(**options)
    for world in (2, 4):
        ranks = [mixture(rank=rank, world_size=world, **options) for rank in range(world)]
        for number in (0, 1, 7, 150):
            rows, parts = whole.rows(number), [plan.rows(number) for plan in ranks]
            for name in ("position_B", "sample_B", "source_B", "source_epoch_B", "place_B"):
                joined = np.concatenate([getattr(part, name) for part in parts])
                assert (joined == getattr(rows, name)).all(), name
            assert rows.position_B.tolist() == list(range(12 * number, 12 * number + 12))


def test_single_batches_are_of_one_source_and_by_weight():
    plan = mixture(batches="single")
    sources = [set(plan.rows(number).source_B.tolist()) for number in range(1000)]
    assert all(len(each) == 1 for each in sources)
    assert np.bincount([each.pop() for each in sources]).tolist() == [500, 200, 300]


def test_stop_ends_with_the_first_source_that_has_done_its_epochs():
    """b has 19 samples, a fifth of all: it lasts for some 95 samples an epoch."""
    for epochs, last in ((1, "drop"), (1, "mask"), (3, "mask")):
        plan = mixture(epochs={"a": 9, "b": epochs, "c": 9}, end="stop", last=last)
        num = plan.num_batches
        found = met(plan, 0, num)
        if last == "mask":
            assert len(found[1]) == 19 * epochs
            assert plan.rows(num - 1).source_B[plan.samples_in(num - 1) - 1] == 1
        assert 19 * epochs - 3 <= len(found[1]) <= 19 * epochs
        assert sum(map(len, found.values())) == sum(plan.samples_in(n) for n in range(num))
        with pytest.raises(UsageError, match=rf"b \(19 samples\) has done its {epochs} epoch"):
            plan.check_length(num + 1, key="train.steps = 99")
        plan.check_length(num, key="")


def test_a_source_drops_out_and_the_others_go_on_by_their_weights():
    plan = mixture(epochs={"a": 1, "b": 1, "c": 1}, end="drop_source", last="mask")
    found = met(plan, 0, plan.num_batches)
    assert {s: sorted(x for _, x in each) for s, each in found.items()} == {
        s: list(range(sum(sizes))) for s, sizes in enumerate(SIZES.values())
    }
    assert plan.num_batches == -(-420 // 12)
    # Behind b, a and c are as 5 to 3.
    counts = plan.counts(13) - plan.counts(9)
    assert counts[1] == 0 and abs(counts[0] - 48 * 5 / 8) <= 1


def test_drop_source_of_single_batches():
    plan = mixture(
        epochs={"a": 1, "b": 2, "c": 1}, end="drop_source", batches="single", last="mask"
    )
    found = met(plan, 0, plan.num_batches)
    assert [len(each) for each in found.values()] == [101, 38, 300]
    assert sum(plan.samples_in(number) for number in range(plan.num_batches)) == 439


def test_weights_change_at_a_step_and_sources_go_on_where_they_were():
    before, after = ("0.5", "0.2", "0.3"), ("0", "0.5", "0.5")
    plan, old = mixture([(0, before), (25, after)]), mixture(before)
    for number in range(25):
        assert (plan.rows(number).sample_B == old.rows(number).sample_B).all()
    assert (plan.counts(25) == old.counts(25)).all()
    changed = plan.counts(35) - plan.counts(25)
    assert changed.tolist() == [0, 60, 60]
    found, until = met(plan, 0, 35), met(old, 0, 25)
    assert found[0] == until[0] and found[2][: len(until[2])] == until[2]
    samples = [sample for epoch, sample in found[1] if epoch == 3]
    assert sorted(samples) == list(range(19))


def test_a_run_in_which_a_source_is_never_met_is_refused():
    for batches, what in (("mixed", "sample"), ("single", "batch")):
        plan = mixture((1, 1, "1e-6"), batches=batches)
        with pytest.raises(UsageError, match=rf"mixture\[c\] gets no {what} in train.steps = 9"):
            plan.check_length(9, key="train.steps = 9")
    with pytest.raises(UsageError, match="b has 19 samples in all its epochs, which fill no batch"):
        mixture(batches="single", batch_size=20, end="stop", epochs={"a": 1, "b": 1, "c": 1})


def test_any_mixture_has_no_sample_twice_in_an_epoch():
    """Sources, weights, lanes, ends and kinds of batches drawn at random."""
    rng = random.Random(7)
    for _ in range(24):
        lanes, end = rng.choice((1, 1, 2, 4)), rng.choice(("stop", "repeat", "drop_source"))
        last = rng.choice(("drop", "mask"))
        sources = [
            Mixed(
                name=f"s{number}",
                plan=EpochPlan(
                    [*(rng.randint(0, 9) for _ in range(rng.randint(3, 9))), 16],
                    seed=1,
                    shuffle_group=2,
                    lanes=lanes,
                    name=f"s{number}",
                ),
                max_epochs=None if end == "repeat" else rng.randint(1, 3),
            )
            for number in range(rng.randint(1, 4))
        ]
        weights = [tuple(Fraction(rng.randint(1, 9)) for _ in sources) for _ in range(2)]
        plan = MixturePlan(
            sources,
            [(0, weights[0]), (rng.randint(1, 12), weights[1])],
            end=end,
            batches=rng.choice(("mixed", "single")),
            batch_size=4 * rng.randint(1, 4),
            last=last,
        )
        stop = 40 if plan.num_batches is None else min(40, plan.num_batches)
        found = [set[tuple[int, int]]() for _ in sources]
        for number in range(stop):
            rows = plan.rows(number)
            real = rows.sample_B != PADDING
            assert real.sum() == plan.samples_in(number) and (last == "mask" or real.all())
            columns = (rows.source_B, rows.source_epoch_B, rows.sample_B)
            for source, *sample in zip(*(column[real].tolist() for column in columns), strict=True):
                assert tuple(sample) not in found[source]
                found[source].add(tuple(sample))
        assert plan.counts(stop).tolist() == [len(each) for each in found]
        for source, each in zip(sources, found, strict=True):
            if source.max_epochs is not None:
                assert len(each) <= source.max_epochs * source.plan.num_samples
            epochs = [epoch for epoch, _ in each]
            for epoch in range(max(epochs, default=0) - 1):
                assert epochs.count(epoch) == source.plan.num_samples


@pytest.mark.parametrize("steps", [1 << 62, (1 << 63) - 1, 1 << 70])
def test_a_run_beyond_counting_is_refused(steps):
    with pytest.raises(UsageError, match=r"train\.epochs = 9 is beyond the samples that can be"):
        mixture(end="repeat").check_length(steps, key="train.epochs = 9")


@pytest.mark.parametrize("end", ["stop", "drop_source"])
@pytest.mark.parametrize("tiny", ["1e-20", "1e-37"])
def test_a_weight_so_small_that_no_run_meets_it(end, tiny):
    """Its samples last for more of the stream than an int64 counts."""
    weights = (Fraction(1), Fraction(tiny))
    stream = Stream([(0, weights)], [7, 5], end=end)
    assert stream.counts(7).tolist() == [7, 0]
    assert (stream.end, stream.ended_by) == ((7, 0) if end == "stop" else (12, 1))
