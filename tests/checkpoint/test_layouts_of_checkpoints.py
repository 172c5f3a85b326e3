"""A checkpoint of one layout loads at every other: bit for bit, then the same loss and samples.

It is written in the background while two more steps are taken, so the copy is proven with it. No
generator's state needs to be loaded: patch dropout and stochastic depth are on, and the next loss
holds only if they draw the same.
"""

from pathlib import Path

import pytest

from tests.ranks import run_ranks
from tests.train.layout_runs import (
    LAYOUTS,
    NUM_RANKS,
    load_all,
    load_at_ranks,
    save_at_ranks,
    save_one,
)

TURNS = {"adamw": (0, 1, 2, 4), "muon": (0, 3, 5, 6, 7)}
"""By optimizer: how far before a layout, in the list of them, those stand that it loads."""


def sources_of(kind: str) -> dict[str, list[str]]:
    """Layout -> those whose checkpoints it loads."""
    names = list(LAYOUTS)
    return {name: [names[place - turn] for turn in TURNS[kind]] for place, name in enumerate(names)}


def test_every_ordered_pair_is_tried() -> None:
    """Of the eight layouts, and each with itself by both optimizers."""
    tried = [
        {(source, name) for name, sources in sources_of(kind).items() for source in sources}
        for kind in TURNS
    ]
    assert len(tried[0] | tried[1]) == len(LAYOUTS) ** 2 == 64
    assert tried[0] & tried[1] == {(name, name) for name in LAYOUTS}


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", TURNS)
def test_layouts_load_each_other(tmp_path: Path, kind: str) -> None:
    """Muon is AdamW for what is no hidden matrix. What is saved has no trace of the layout, so
    that one optimizer's pairs speak for the other's."""
    words, sources = ("--optim.kind", kind), sources_of(kind)
    names = {n: [name for name, ranks in NUM_RANKS.items() if ranks == n] for n in (1, 2, 4)}
    assert sum(map(len, names.values())) == len(LAYOUTS)
    save_one("one", tmp_path, *words)
    for ranks in (2, 4):
        run_ranks(save_at_ranks, ranks, names[ranks], str(tmp_path), *words)
    load_all("one", tmp_path, sources["one"], *words)
    for ranks in (2, 4):
        run_ranks(load_at_ranks, ranks, names[ranks], str(tmp_path), sources, *words)
