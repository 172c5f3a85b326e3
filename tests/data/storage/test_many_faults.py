"""700 requests to a server that fails as real ones do: no wrong byte, and no wait without end."""

import random
import re
import time

import pytest

from mmtrain.data.shards.source import ShardSource
from mmtrain.data.storage import stores
from mmtrain.errors import UsageError
from tests.data.shard_files import build_data, write_set
from tests.data.storage.fault_server import FAULTS, dice, serving


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Eight shards, 65 samples: an epoch is eight batches."""
    folder = tmp_path_factory.mktemp("shards") / "set"
    write_set(folder, (9, 8, 7, 9, 8, 7, 9, 8))
    return folder


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A place for indexes, and the names of a store that is asked on loopback."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "known")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-of-the-test")
    stores._store.cache_clear()
    yield monkeypatch
    stores._store.cache_clear()


def address(scheme, web, own):
    """Of the set, as a web server or as an S3 store, whose objects lie where its files do."""
    own.setenv("AWS_ENDPOINT_URL", web.url)
    return f"{web.url}/set" if scheme == "http" else "s3://set"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("scheme", ["http", "s3"])
def test_hundreds_of_requests_with_faults(folder, own, scheme):
    local, rng = ShardSource(str(folder)), random.Random(0)
    expected = [local.read(sample) for sample in range(local.num_samples)]
    longest, changed = 0.0, 0
    fault = dice(seed=3, share=0.15, faults=(*FAULTS, "416", "etag"))
    with serving(folder.parent, fault=fault, stall=0.1) as web:
        start = address(scheme, web, own)
        web.fault = lambda path, number: ""
        source = ShardSource(f"{start}/{{000..007}}.tar", retry_seconds=60)
        web.fault = fault
        while web.requests["GET"] < 700:
            begin, sample = time.monotonic(), rng.randrange(local.num_samples)
            try:
                assert source.read(sample) == expected[sample]
            except UsageError as error:  # another file under the name is no fault that passes
                assert re.search(r"00\d.tar was changed while it was in use", str(error))
                changed += 1
            longest = max(longest, time.monotonic() - begin)
    assert all(web.requests[fault] > 5 for fault in (*FAULTS, "416", "etag"))
    assert changed > 3 and longest < 30


@pytest.mark.parametrize("scheme", ["http", "s3"])
@pytest.mark.parametrize("fault", ["503", "drop", "cut"])
def test_a_store_that_stays_away_ends_a_run_with_the_shard_s_name(folder, own, scheme, fault):
    with serving(folder.parent) as web:
        start = address(scheme, web, own)
        data = build_data(f"{start}/{{000..007}}.tar", retry_seconds=0.5, batch_size=4)
        web.fault = lambda path, number: fault
        begin = time.monotonic()
        with pytest.raises(UsageError, match=r"data.train: .*00\d.tar .*tried for 0.5 s"):
            data.batch(0)
        assert time.monotonic() - begin < 10


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
