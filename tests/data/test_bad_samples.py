"""Bad samples counted, named, limited; the same on all ranks and after a resume."""

import json

import pytest

from mmtrain.data.bad_samples import BAD_SAMPLES_FILE, BadSampleLog
from mmtrain.data.batch import BadSample
from mmtrain.errors import UsageError


def bad(position: int, reason: str = "no caption") -> BadSample:
    return BadSample(key=f"k{position}", shard="a.tar", reason=reason, position=position)


def rows(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_samples_are_named_and_counted(tmp_path):
    path = tmp_path / BAD_SAMPLES_FILE
    log = BadSampleLog(path, max_bad_fraction=0.1)
    log.record([], num_rows=8, step=0)
    assert not path.exists()
    log.record((bad(9), bad(11, "image truncated")), num_rows=8, step=1)
    log.record([bad(20)], num_rows=8, step=2)
    assert rows(path) == [
        {"step": 1, "key": "k9", "shard": "a.tar", "reason": "no caption", "position": 9},
        {"step": 1, "key": "k11", "shard": "a.tar", "reason": "image truncated", "position": 11},
        {"step": 2, "key": "k20", "shard": "a.tar", "reason": "no caption", "position": 20},
    ]
    assert (log.num_bad, log.reasons) == (3, {"no caption": 2, "image truncated": 1})


def test_the_run_stops_above_the_limit():
    log = BadSampleLog(None, max_bad_fraction=0.01)
    log.record([bad(i) for i in range(10)], num_rows=20, step=0)  # 10 of (at least) 1000
    message = (
        r"^data.max_bad_fraction = 0.01: 11 of the 51 samples read are bad \(no caption: 10, "
        r"json invalid: 1; the last is k30 in a.tar\), all named in bad_samples.jsonl .*allow more$"
    )
    with pytest.raises(UsageError, match=message):
        log.record([bad(30, "json invalid")], num_rows=20, step=1)


def test_of_many_samples_the_limit_is_their_fraction():
    log = BadSampleLog(None, max_bad_fraction=0.1)
    for step in range(100):
        log.record([bad(i) for i in range(10)], num_rows=90, step=step)
    with pytest.raises(UsageError, match="1001 of the 10001 samples"):
        log.record([bad(0)], num_rows=0, step=100)


def test_not_one_and_any_number():
    with pytest.raises(UsageError, match=r"data.max_bad_fraction = 0: 1 of the 101"):
        BadSampleLog(None, max_bad_fraction=0).record([bad(0)], num_rows=100, step=0)
    everything = BadSampleLog(None, max_bad_fraction=1)
    everything.record([bad(i) for i in range(5000)], num_rows=1, step=0)


def test_all_ranks_count_alike_and_stop_together(tmp_path):
    """Ranks 0 and 1 hold the same rows, rank 2 others; only rank 0 writes."""
    held = {0: (bad(0), bad(1)), 1: (bad(0), bad(1)), 2: (bad(8),)}
    paths = {rank: tmp_path / f"{rank}.jsonl" if rank == 0 else None for rank in held}
    for rank, own in held.items():
        gathered = []

        def gather(value, gathered=gathered):
            gathered.append(value)
            return list(held.values())

        log = BadSampleLog(paths[rank], max_bad_fraction=0.002, gather=gather)
        with pytest.raises(UsageError, match="3 of the 19 samples"):
            log.record(own, num_rows=16, step=0)
        assert gathered == [own]
    assert [row["position"] for row in rows(tmp_path / "0.jsonl")] == [0, 1, 8]


def test_a_resume_goes_on_counting(tmp_path):
    path = tmp_path / BAD_SAMPLES_FILE
    log = BadSampleLog(path, max_bad_fraction=0.01)
    for step in range(4):
        log.record([bad(step)], num_rows=8, step=step)
    state = json.loads(json.dumps(log.state_dict()))
    log.record([bad(4)], num_rows=8, step=4)
    with path.open("a") as stream:
        stream.write('{"step": 5, "key": "cut by a kil')

    resumed = BadSampleLog(path, max_bad_fraction=0.01)
    resumed.load_state_dict(state)
    assert [row["step"] for row in rows(path)] == [0, 1, 2, 3]
    assert resumed.num_bad == 4
    resumed.record([bad(4)], num_rows=8, step=4)
    resumed.record([], num_rows=8, step=5)
    log.record([], num_rows=8, step=5)
    assert resumed.state_dict() == log.state_dict()
    assert [row["step"] for row in rows(path)] == [0, 1, 2, 3, 4]
    with pytest.raises(UsageError, match="11 of the 67 samples"):
        resumed.record([bad(i) for i in range(6)], num_rows=8, step=6)
