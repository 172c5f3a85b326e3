"""`data.stream = true`: recipes on what can only be read from its beginning."""

import json
import shlex

import pytest

from mmtrain.cli import main
from mmtrain.data.config import DataConfig
from mmtrain.errors import UsageError
from tests.data.shard_files import build_data, write_set
from tests.data.test_stream import theirs

STREAM = ("--data.stream", "true", "--data.allow_pipe", "true")


@pytest.fixture
def folder(tmp_path):
    write_set(tmp_path / "set", (9, 5, 12, 7))
    return tmp_path / "set"


def piped(folder):
    return f"pipe:cat {shlex.quote(str(folder))}/{{000..003}}.tar"


def opened(folder, **options):
    settings = {"train": piped(folder), "stream": True, "allow_pipe": True, **options}
    return build_data(**settings)


@pytest.mark.parametrize(
    ("world_size", "workers"),
    [(1, 0), (2, 2), *(pytest.param(*one, marks=pytest.mark.slow) for one in ((1, 2), (2, 0)))],
)
def test_batches_have_webdataset_s_samples_each_once(folder, world_size, workers):
    """Of all processes together; the pixels of a sample are in tests of the reader."""
    expected = theirs([str(path) for path in sorted(folder.glob("*.tar"))])
    seen = []
    for rank in range(world_size):
        options = {"rank": rank, "world_size": world_size, "workers": workers}
        data = opened(folder, batch_size=world_size, stream_buffer=4, **options)
        data.keeps_texts = True
        for batch in data.iterate(0, 200):
            (key,), (text,) = batch.keys, batch.texts
            assert text.encode() == expected[key]["txt"] and batch.valid_B.all()
            seen.append((rank, key))
    assert {key for _, key in seen} == set(expected)
    if (world_size, workers) == (1, 0):
        first, second = ([key for _, key in seen[start : start + 33]] for start in (0, 33))
        assert sorted(first) == sorted(second) == sorted(expected) and first != second


def test_the_order_is_the_seed_s(folder):
    keys = [
        [key for batch in data.iterate(0, 3) for key in batch.keys]
        for data in (opened(folder, batch_size=11, seed=seed) for seed in (0, 0, 1))
    ]
    assert keys[0] == keys[1] != keys[2] and len(set(keys[0])) == 33


def test_a_run_from_beginning_to_end_and_beyond(folder, tmp_path, capsys):
    run = tmp_path / "run"
    words = ["train", "configs/debug_clip.toml", "--run-dir", str(run), "--data.train"]
    words += [piped(folder), *STREAM, "--data.workers", "2", "--train.batch_size", "8"]
    assert main([*words, "--train.steps", "6"]) == 0
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5, 6]
    assert (run / "export").is_dir()
    assert main(["data", "quarantine", str(run)]) == 0
    assert "of a stream nobody knows how many" in capsys.readouterr().out
    more = ["--train.steps", "9", "--resume", "--resume-with-changes"]
    assert main([*words, *more, "--data.workers", "1"]) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert "2 processes (ranks x data.workers) shared out the shards, and now there are 1" in told
    assert main([*words, *more]) == 0
    assert "of the epoch" in capsys.readouterr().err
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [*range(1, 10)]


def test_a_checkpoint_that_says_no_place_is_refused(folder):
    data = opened(folder, batch_size=2)
    assert [*data.take_up(None)] == []
    with pytest.raises(UsageError, match="the checkpoint of step 6 does not say which shards"):
        next(data.iterate(6, 9))


@pytest.mark.parametrize("taken", [1, 10, 40])
@pytest.mark.parametrize(("world_size", "workers"), [(1, 0), (1, 2), (2, 0)])
def test_what_is_gone_on_with_misses_nothing(folder, world_size, workers, taken):
    """Each rank stops behind so many batches of one row; then what is left of its epoch, and more;
    a state knows the newest place of every process, whichever rank wrote it before."""
    shares = {"workers": workers, "world_size": world_size, "stream_buffer": 4}

    def opened_on(rank):
        return opened(folder, batch_size=world_size, rank=rank, **shares)

    def merged(ranks):
        states = [json.loads(json.dumps(data.stream_state())) for data in ranks]
        return states[0] | {"places": {k: v for s in states for k, v in s["places"].items()}}

    def take(data, start, stop):
        return [key for batch in data.iterate(start, stop) for key in batch.keys]

    ranks = [opened_on(rank) for rank in range(world_size)]
    before = [key for data in ranks for key in take(data, 0, taken)]
    state = merged(ranks)
    behind = {shard for place in state["places"].values() for shard in place["done"]}
    starts, sizes = (0, 9, 14, 26), (9, 5, 12, 7)
    of_shard = [{f"{starts[n] + m:05}" for m in range(sizes[n])} for n in range(4)]
    if taken < 16:
        assert all(of_shard[shard] <= set(before) for shard in behind)
    again = [opened_on(rank) for rank in range(world_size)]
    for data in again:
        (told,) = data.take_up(state)
        assert f"{len(behind)} of 4 shards are behind" in told
    assert merged(again) == state
    after = [key for data in again for key in take(data, taken, taken + 34)]
    assert {*before, *after} == set.union(*of_shard)
    newer = merged(again)["places"]
    assert newer.keys() == {str(n) for n in range(world_size * max(1, workers))}
    assert all(newer[n] != place for n, place in state["places"].items())


def test_what_is_behind_does_not_come_again_in_its_epoch(folder):
    data = opened(folder, batch_size=1, stream_buffer=1, seed=2)
    before = [key for batch in data.iterate(0, 20) for key in batch.keys]
    state = json.loads(json.dumps(data.stream_state()))
    again = opened(folder, batch_size=1, stream_buffer=1, seed=2)
    [*again.take_up(state)]
    done = state["places"]["0"]["done"]
    left = 33 - sum((9, 5, 12, 7)[shard] for shard in done)
    assert 1 <= len(done) <= 3 and state["places"]["0"]["epoch"] == 0
    rest = [key for batch in again.iterate(20, 20 + left) for key in batch.keys]
    straight = opened(folder, batch_size=1, stream_buffer=1, seed=2)
    whole = [key for batch in straight.iterate(0, 33) for key in batch.keys]
    assert rest == whole[33 - left :] and set(rest) | set(before) == set(whole)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "pipe: is not read by ranges; a recipe reads it with data.stream = true"),
        (("--data.stream", "true"), "runs a command; data.allow_pipe = true lets it"),
        (("--data.allow_pipe", "true"), "data.allow_pipe has no effect without stream = true"),
        (
            ("--data.allow_pipe", "true", "--data.stream_buffer", "7"),
            "data: allow_pipe, stream_buffer have no effect without stream = true; leave them out",
        ),
        ((*STREAM, "--data.lanes", "2"), "data.lanes needs shards that are read by ranges"),
        ((*STREAM, "--data.verify", "true"), "data.verify needs shards that are read by ranges"),
        ((*STREAM, "--data.workers", "5"), "4 are fewer than 1 ranks with data.workers = 5"),
        ((*STREAM, "--data.label_key", "nothing"), "data.label_key = nothing: none of the first"),
        ((*STREAM, "--train.epochs", "1", "--train.steps", "none"), "use train.steps"),
    ],
)
def test_mistakes_are_told_in_one_line(folder, tmp_path, capsys, words, told):
    run = ["train", "configs/debug_clip.toml", "--run-dir", str(tmp_path / "run")]
    if "--data.label_key" in words:
        words = (*words, "--loss.positives", "attract")
    assert main([*run, "--data.train", piped(folder), "--train.batch_size", "8", *words]) == 2
    error = capsys.readouterr().err.strip()
    assert told in error.splitlines()[-1] and "Traceback" not in error


@pytest.mark.parametrize("command", ["bench", "show"])
def test_what_looks_at_numbers_refuses(folder, capsys, command):
    words = ["data", command, "configs/debug_clip.toml", "--data.train", piped(folder), *STREAM]
    assert main([*words, *(["--step", "1"] if command == "show" else [])]) == 2
    assert "a stream has no numbered samples" in capsys.readouterr().err


@pytest.mark.parametrize("train", ["s3://bucket/a.tar", "/nowhere/a.tar", "/nowhere/*.tar"])
def test_what_is_no_stream_is_told(train):
    with pytest.raises(UsageError, match=r"^data.train = .*: (a store is|there is no)"):
        build_data(train, stream=True)
    with pytest.raises(ValueError, match="stream_buffer"):
        DataConfig(train="pipe:x", stream=True, stream_buffer=0)
