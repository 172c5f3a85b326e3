"""What a process holds does not grow with the samples that it has read."""

import gc
import tracemalloc
from collections import deque
from collections.abc import Iterable
from pathlib import Path

import pytest

from mmtrain.data.accounts import EpochAccounts
from mmtrain.data.config import MixtureSource
from tests.data.shard_files import build_data, pairs, write_set, write_shard
from tests.data.storage.fault_server import serving

SIZES = (9, 8, 7, 9, 8, 7)
WARM, STEPS = 192, 624
"""Batches of four until everything was met once; of the whole reading."""
MOST = 64 * 4 * (STEPS - WARM)
"""Bytes: to keep anything of each sample, such as its key, takes more."""


def growth(batches: Iterable[object]) -> int:
    """Bytes that Python and numpy hold at the end beyond those at the end of the warming up."""
    tracemalloc.start()
    try:
        for number, _ in enumerate(batches, start=1):
            if number == WARM:
                gc.collect()
                before = tracemalloc.get_traced_memory()[0]
        gc.collect()
        return tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()


def write_bad(folder: Path) -> None:
    """A shard with three samples that cannot be used."""
    samples = pairs(0, SIZES[0])
    for number in (1, 4, 5):
        samples[number] = (samples[number][0], {"txt": "no image", "jpg": b"no image"})
    write_shard(folder / "000.tar", samples)


@pytest.mark.slow
@pytest.mark.parametrize("keeps", [False, True])
def test_memory_does_not_grow_with_what_is_read(tmp_path, monkeypatch, keeps):
    """Of two sources, one with bad samples, through a cache that drops pieces as it goes; `keeps`
    shows that the test would see a key being kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    for name in ("a", "b"):
        write_set(tmp_path / name, SIZES)
    write_bad(tmp_path / "a")
    size = sum(path.stat().st_size for path in (tmp_path / "a").glob("*.tar"))
    with serving(tmp_path) as web:
        web.log = deque(maxlen=0)  # of every request, in this process
        mixture = [
            MixtureSource(name=name, train=f"{web.url}/{name}/{{000..005}}.tar", weight=1.0)
            for name in ("a", "b")
        ]
        options = {"mixture": mixture, "mixture_end": "repeat", "caption_lines": False}
        build_data(None, **options)
        data = build_data(
            None, cache_dir=str(tmp_path / "c"), cache_gb=size / 1e9, shuffle_group=2, **options
        )
        accounts = EpochAccounts(["a", "b"], [each.num_samples for each in data.sources])
        kept = []

        def read():
            for number, batch in enumerate(data.iterate(0, STEPS), start=1):
                accounts.record(batch.taken)
                accounts.settle(data.plan, number)
                kept.extend(batch.keys if keeps else ())
                yield batch

        assert (growth(read()) > MOST) == keeps
    assert accounts.figures()["epoch_accounts"]["a"]["bad"] > 0
