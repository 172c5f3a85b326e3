"""2,000 requests to a server that fails as real ones do: no wrong byte, and no wait without end."""

import random
import time

import pytest

from mmtrain.data.shards.source import ShardSource
from tests.data.shard_files import write_set
from tests.data.storage.fault_server import FAULTS, dice, serving


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Eight shards, 65 samples: an epoch is eight batches."""
    folder = tmp_path_factory.mktemp("shards") / "set"
    write_set(folder, (9, 8, 7, 9, 8, 7, 9, 8))
    return folder


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_thousand_requests_with_faults(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    local, rng = ShardSource(str(folder)), random.Random(0)
    expected = [local.read(sample) for sample in range(local.num_samples)]
    longest = 0.0
    with serving(folder, fault=dice(seed=4, share=0.15), stall=0.1) as web:
        source = ShardSource(f"{web.url}/{{000..007}}.tar", retry_seconds=60)
        while web.requests["GET"] < 2000:
            begin, sample = time.monotonic(), rng.randrange(local.num_samples)
            assert source.read(sample) == expected[sample]
            longest = max(longest, time.monotonic() - begin)
    assert all(web.requests[fault] > 20 for fault in FAULTS)
    assert longest < 30


@pytest.mark.slow
def test_a_server_that_stalls_for_longer_than_is_waited_is_asked_again(
    folder, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with serving(folder) as web:
        source = ShardSource(f"{web.url}/000.tar", retry_seconds=30)
        faults = iter(["stall"])
        web.fault, web.stall = (lambda path, number: next(faults, "")), 20.0
        begin = time.monotonic()
        assert source.read(3) == ShardSource(str(folder / "000.tar")).read(3)
        assert 9 < time.monotonic() - begin < 19
