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
    save_and_load_at_ranks,
    save_at_ranks,
    save_one,
)

MUON = ("--optim.kind", "muon")
"""AdamW for what is no hidden matrix, Muon for the rest."""


@pytest.mark.slow
def test_one_and_two_ranks_load_each_other(tmp_path: Path) -> None:
    """All 20 ordered pairs of 1 rank, FSDP 2, tp 2, pp 2 and ZeRO-1 2, with both optimizers'
    state."""
    two = ["fsdp2", "tp2", "pp2", "zero2"]
    save_one("one", tmp_path, *MUON)
    run_ranks(save_and_load_at_ranks, 2, two, str(tmp_path), ["one", *two], *MUON)
    load_all("one", tmp_path, two, *MUON)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_all_layouts_load_each_other(tmp_path: Path, kind: str) -> None:
    """All 56 ordered pairs of eight layouts, and each with itself."""
    names = {n: [name for name, ranks in NUM_RANKS.items() if ranks == n] for n in (1, 2, 4)}
    assert sum(map(len, names.values())) == len(LAYOUTS) == 8
    words = ("--optim.kind", kind)
    save_one("one", tmp_path, *words)
    for ranks in (2, 4):
        run_ranks(save_at_ranks, ranks, names[ranks], str(tmp_path), *words)
    load_all("one", tmp_path, list(LAYOUTS), *words)
    for ranks in (2, 4):
        run_ranks(load_at_ranks, ranks, names[ranks], str(tmp_path), list(LAYOUTS), *words)
