"""Orders by draws: the same whole, by pieces and by places."""

import numpy as np
import pytest

from mmtrain.data.order.permutation import Permutation, permutation
from mmtrain.data.order.plan import EpochPlan
from mmtrain.data.order.randomness import uniform

KEY = {"seed": 5, "epoch": 2, "purpose": "shuffle group 3"}


def drawn(size: int) -> np.ndarray:
    return uniform(**KEY, position_B=range(size), num=1)[:, 0].numpy()


def by_pieces(order: Permutation) -> list[np.ndarray]:
    """All pieces, each once, as their places name them."""
    pieces = np.unique(order.pieces_at(np.arange(order.size))).tolist()
    found = [order.piece(piece) for piece in pieces]
    ends = np.cumsum([numbers.size for numbers, _ in found])
    assert [first for _, first in found] == [0, *ends[:-1].tolist()]
    return [numbers for numbers, _ in found]


@pytest.mark.parametrize("size", [0, 1, 2, 7, 2048, 2049, 50_000, 1_500_000])
def test_a_permutation_is_the_order_of_draws(size: int):
    assert np.array_equal(permutation(size, **KEY), np.argsort(drawn(size), kind="stable"))


@pytest.mark.parametrize(
    ("size", "most"), [(1, 1), (9, 2), (4097, 4096), (100_000, 3000), (1_000_000, 1 << 17)]
)
def test_pieces_are_parts_of_the_whole(size: int, most: int):
    order, whole = Permutation(size, **KEY, most=most), np.argsort(drawn(size), kind="stable")
    pieces = by_pieces(order)
    assert np.array_equal(np.concatenate(pieces), whole)
    if size > 10_000:
        assert len(pieces) >= size / most and max(each.size for each in pieces) < 1.2 * most
    for place in np.random.default_rng(0).integers(0, size, 20).tolist():
        assert order.at(place) == whole[place]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.999999])
def test_what_is_wanted_first_is_found_while_all_draws_are_counted(share: float, monkeypatch):
    """Once over 400 million draws takes 1.5 s; the piece around a place is taken along."""
    passes, states = [], Permutation._states
    monkeypatch.setattr(Permutation, "_states", lambda self: passes.append(1) or states(self))
    whole = np.argsort(drawn(300_000), kind="stable")
    for near in range(-40, 40, 8):  # also where the guess is the piece beside it
        place = min(max(0, int(share * whole.size) + near), whole.size - 1)
        order = Permutation(whole.size, **KEY, most=7000)
        passes.clear()
        (piece,) = order.pieces_at(np.array([place])).tolist()
        numbers, first = order.piece(piece)
        assert numbers[place - first] == whole[place]
        assert len(passes) <= 2
        assert np.array_equal(numbers, whole[first : first + numbers.size])
        assert not order._found
    if share in (0.0, 0.999999):
        assert len(passes) == 1


@pytest.mark.parametrize("most", [1 << 20, 500])
@pytest.mark.parametrize("size", [3, 2048, 5000, 100_000])
def test_equal_draws_stand_by_number(size: int, most: int, monkeypatch: pytest.MonkeyPatch):
    """As if the generator drew few numbers, near each other and far apart."""
    few = np.random.default_rng(0).integers(0, 40, size).astype(np.uint64)
    draws = (few % np.uint64(7) << np.uint64(50)) + few
    monkeypatch.setattr(
        "mmtrain.data.order.permutation._draws", lambda state: state >> np.uint64(11)
    )
    monkeypatch.setattr(Permutation, "_draw", lambda self, number_N: draws[number_N])
    monkeypatch.setattr(Permutation, "_states", lambda self: [(0, draws << np.uint64(11))])
    order = np.concatenate(by_pieces(Permutation(size, **KEY, most=most)))
    assert np.array_equal(order, np.argsort(draws, kind="stable"))


@pytest.mark.parametrize("lanes", [1, 3])
@pytest.mark.parametrize("group", [2, 5, 40])
def test_a_plan_in_pieces_is_the_same_plan(group: int, lanes: int, monkeypatch: pytest.MonkeyPatch):
    """Its samples, and what replaces bad ones; and it keeps few pieces, however large a group."""
    sizes = np.random.default_rng(1).integers(0, 900, 37).tolist()

    def told(plan: EpochPlan) -> list[list[int]]:
        places = np.random.default_rng(2).permutation(plan.num_samples)
        samples = [plan.samples(4, some).tolist() for some in np.array_split(places, 5)]
        draws = np.random.default_rng(3).random(16).tolist()
        return [*samples, *([*plan.others(4, place, draws)] for place in places[:9].tolist())]

    make = {"seed": 7, "shuffle_group": group, "lanes": lanes, "name": "web"}
    expected = told(EpochPlan(sizes, **make))
    monkeypatch.setattr("mmtrain.data.order.plan.MOST_SHUFFLED", 256)
    monkeypatch.setattr("mmtrain.data.order.plan._LEAST_SHUFFLED", 64)
    plan = EpochPlan(sizes, **make)
    assert told(plan) == expected
    kept = plan._pieces.values()
    assert len(kept) <= lanes
    assert max(piece.mixed.size for piece in kept) < 400 / lanes**0.5
