"""Two ranks under a real torchrun: a run with a mirror in a store, and one on streams."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from mmtrain.cli import main
from tests.data.shard_files import write_set
from tests.data.storage.conftest import s3, s3_url  # noqa: F401
from tests.train.test_mirrored_run import RECIPE, SMALL, losses, steps_at, train

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
SIZES = (9, 5, 12, 7)
STILL = ("--optim.schedule", "constant", "--optim.warmup_steps", "1")
STREAM = ("--data.stream", "true", "--data.allow_pipe", "true", "--train.batch_size", "4")


def torchrun(run: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """`torchrun --nproc-per-node 2 -m mmtrain train`, as a user types it."""
    return subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", "2", "-m", "mmtrain", "train", RECIPE),
            *("--run-dir", str(run), *SMALL, *words),
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )


def test_a_mirror_is_sent_once_and_both_ranks_go_on_from_it(tmp_path, s3) -> None:  # noqa: F811
    straight, run, url = tmp_path / "straight", tmp_path / "run", f"{s3.url}/runs/first"
    words = ("--run.mirror", url, "--train.keep_checkpoints", "2", *STILL)
    assert train(straight, *STILL) == 0
    done = torchrun(run, *words, "--train.steps", "4")
    assert done.returncode == 0, done.stderr
    assert max(steps_at(url)) == 4 and len(steps_at(url)) <= 2
    assert done.stderr.count("has everything") == 1
    shutil.rmtree(run)  # the machine is gone
    done = torchrun(run, *words, "--resume-with-changes")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(f"step 4 came from run.mirror = {url}") == 1
    assert 8 in steps_at(url) and len(steps_at(url)) == 2
    one, two = ({n: float.fromhex(x) for n, x in losses(r).items()} for r in (straight, run))
    assert two == pytest.approx(one, rel=1e-4)
    back = tmp_path / "back"
    assert main(["checkpoint", "pull", url, str(back), "--all"]) == 0
    assert main(["checkpoint", "verify", str(back)]) == 0


def test_ranks_share_out_the_shards_of_a_stream_and_go_on_behind_them(tmp_path, capsys) -> None:
    """Each shard is opened once an epoch by one of them; what is behind does not come again."""
    write_set(tmp_path / "set", SIZES)
    log, run = tmp_path / "log", tmp_path / "run"
    (script := tmp_path / "read.sh").write_text(
        f"echo $RANK $1 >> {log}; cat {tmp_path}/set/$1.tar\n"
    )
    read = f"pipe:sh {script} {{000..003}}"
    words = ("--data.train", read, *STREAM, "--data.stream_buffer", "1")

    def opened() -> Counter[tuple[str, ...]]:
        told = Counter(tuple(line.split()) for line in log.read_text().splitlines())
        log.unlink()
        return told

    done = torchrun(run, *words, "--train.steps", "4")
    assert done.returncode == 0, done.stderr
    first = opened()
    places = _places(run, 4)
    assert {rank for rank, _ in first} == {"0", "1"} and {*places} == {"0", "1"}
    for rank, place in places.items():
        assert place["epoch"] == 0
        assert {f"{n:03}" for n in place["done"]} <= {shard for who, shard in first if who == rank}
    done = torchrun(run, *words, "--train.steps", "6", "--resume-with-changes")
    assert done.returncode == 0, done.stderr
    assert "4 shards are behind" in done.stderr
    again = opened()
    later = _places(run, 6)
    for rank, place in places.items():
        behind = {(rank, f"{n:03}") for n in place["done"]}
        assert later[rank]["epoch"] > 0 or not behind & again.keys()
    alone = ["train", RECIPE, "--run-dir", str(run), *SMALL, *words, "--resume-with-changes"]
    assert main(alone) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert "2 processes (ranks x data.workers) shared out the shards, and now there are 1" in told


def _places(run: Path, step: int) -> dict[str, dict[str, list[int]]]:
    """Which shards each process has behind it."""
    state = json.loads((run / f"checkpoints/step-{step:08}/state.json").read_text())
    return _find(state, "places")


def _find(state: object, key: str):
    if isinstance(state, dict):
        if key in state:
            return state[key]
        for value in state.values():
            if (found := _find(value, key)) is not None:
                return found
    return None
