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


@pytest.mark.parametrize(("world_size", "workers"), [(1, 0), (1, 2), (2, 0), (2, 2)])
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


def test_a_run_from_beginning_to_end_and_no_resume(folder, tmp_path, capsys):
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
    assert main([*words, *more]) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert "data.stream = true: a stream cannot be gone on with at step 6" in told


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((), "pipe: is not read by ranges; a recipe reads it with data.stream = true"),
        (("--data.stream", "true"), "runs a command; data.allow_pipe = true lets it"),
        (("--data.allow_pipe", "true"), "data.allow_pipe has no effect without stream = true"),
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
