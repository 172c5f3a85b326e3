"""A run on remote shards, killed and resumed at other world sizes: the same samples, once each."""

import itertools
import json
import os
import random
import shutil
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from mmtrain.cli import main
from mmtrain.data.storage.place import open_place
from mmtrain.train.copy_checkpoints import sealed_in
from mmtrain.train.loop import Loop
from tests.data.shard_files import write_set
from tests.data.storage.conftest import Bucket, s3, s3_url  # noqa: F401
from tests.data.storage.fault_server import serving
from tests.ranks import start_job
from tests.train.recorded import read_keys, record
from tools.chaos_jobs import free_port

SIZES = (17, 9, 14, 11, 23, 6)
NUM_SAMPLES, STEPS, PER_EPOCH = sum(SIZES), 15, 5
TOLERANCE = 1e-9
"""Of a loss in fp64, relative: the world size changes the order of sums and nothing else."""
RECIPE = (
    *("train", "configs/debug_clip.toml", "--train.steps", str(STEPS), "--train.log_every", "1"),
    *("--train.checkpoint_every", "2", "--train.precision", "fp64", "--train.microbatches", "1"),
    *("--model.text.transformer.num_layers", "1", "--model.vision.transformer.num_layers", "1"),
)


class Job:
    """Ranks of one run on this machine, which end together."""

    def __init__(self, records: Path, words: tuple[str, ...], *, world: int) -> None:
        port = free_port()
        self._log = (records.parent / "output.txt").open("a+")
        self._ranks = []
        for rank in range(world):
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_PORT": port}
            named = {} if world == 1 else {name: str(value) for name, value in place.items()}
            self._ranks.append(
                start_job(
                    [*words],
                    output=self._log,
                    environment=named | {"MASTER_ADDR": "127.0.0.1"},
                    prepare=record,
                    args=(records, 0.2),
                )
            )

    def kill_when(self, holds) -> None:
        """SIGKILL all, workers too, as soon as something holds."""
        end = time.monotonic() + 200
        while not holds():
            self._log.seek(0)
            ended = [one.exitcode for one in self._ranks if not one.is_alive()]
            assert not ended and time.monotonic() < end, f"{ended}: {self._log.read()[-4000:]}"
            time.sleep(0.02)
        for one in self._ranks:
            os.killpg(one.pid, signal.SIGKILL)
        for one in self._ranks:
            one.join()
        self._log.close()


def in_process(monkeypatch: pytest.MonkeyPatch, records: Path, words: tuple[str, ...]) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_step", Loop._step)  # what `record` puts there goes again
        record(records, 0.0)
        assert main(list(words)) == 0


def check(phases: list[dict[int, list[str]]], want: dict[int, list[str]]) -> None:
    """Each step's samples are the straight run's, those that came again too; none twice, all."""
    for phase in phases:
        assert phase == {step: want[step] for step in phase}
    last = {step: keys for phase in phases for step, keys in phase.items()}
    assert last.keys() == set(range(STEPS))
    for first in range(0, STEPS, PER_EPOCH):
        counts = Counter(itertools.chain(*(last[first + i] for i in range(PER_EPOCH))))
        missed, doubled = NUM_SAMPLES - len(counts), counts.total() - len(counts)
        assert (missed, doubled) == (0, 0)


class Places:
    """The same shards on a disk, in a store and on a web server."""

    def __init__(self, folder: Path, bucket: Bucket, web: str) -> None:
        self.disk = str(folder)
        self.s3 = bucket.upload(folder, "all")
        self.http = f"{web}/{{000..005}}.tar"


@pytest.fixture
def places(tmp_path, monkeypatch, s3):  # noqa: F811
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "indexes"))
    write_set(tmp_path / "set", SIZES)
    with serving(tmp_path / "set") as web:
        yield Places(tmp_path / "set", s3, web.url)


def killed_and_resumed(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    places: Places,
    *,
    sources: tuple[str, str, str],
    lanes: int,
    workers: int,
    mirror: str | None,
    seed: int,
) -> None:
    """1 rank, killed; 2 ranks, killed; 1 rank to the end. With a mirror, the folder goes too."""
    shared = (*RECIPE, "--data.lanes", str(lanes))
    reference, run = tmp_path / "reference", tmp_path / "run"
    on_disk = ("--data.train", places.disk, "--run-dir", str(reference))
    in_process(monkeypatch, tmp_path / "straight", (*shared, *on_disk))

    words = (*shared, "--run-dir", str(run), "--data.workers", str(workers), "--resume")
    words += ("--data.cache_dir", str(tmp_path / "cache"), "--data.cache_gb", "0.01")
    words += () if mirror is None else ("--run.mirror", mirror)
    kept = open_place(mirror or str(run), key="to")
    draw, begun, phases = random.Random(seed), 0, []
    for world, source in zip((1, 2), sources, strict=False):
        records, until = tmp_path / f"records{world}", begun + draw.randint(3, 5)
        job = Job(records, (*words, "--data.train", getattr(places, source)), world=world)

        def is_due(until: int = until, begun: int = begun) -> bool:
            is_kept = max(sealed_in(kept.sizes()), default=0) > begun
            return is_kept and max(losses_so_far(run), default=0) >= until

        job.kill_when(is_due)
        phases.append(read_keys(records))
        assert min(phases[-1]) == begun, "resumed where the newest checkpoint is"
        if mirror is not None:
            shutil.rmtree(run)
        begun = max(sealed_in(kept.sizes()))
    last = (*words, "--data.train", getattr(places, sources[2]))
    in_process(monkeypatch, tmp_path / "records", last)
    phases.append(read_keys(tmp_path / "records"))
    assert min(phases[-1]) == begun
    check(phases, read_keys(tmp_path / "straight"))
    assert losses_so_far(run) == pytest.approx(losses_so_far(reference), rel=TOLERANCE)


def losses_so_far(run: Path) -> dict[int, float]:
    """Of a run that may be writing its last line."""
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    whole = map(json.loads, (line for line in lines if line.endswith("\n")))
    return {one["step"]: one["loss"] for one in whole}


def test_killed_and_resumed_elsewhere(tmp_path, monkeypatch, places, s3) -> None:  # noqa: F811
    killed_and_resumed(
        tmp_path,
        monkeypatch,
        places,
        sources=("s3", "http", "s3"),
        lanes=2,
        workers=0,
        mirror=f"{s3.url}/runs/first",
        seed=0,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sources", "lanes", "workers", "mirrored"),
    [
        (("s3",) * 3, 2, 2, True),
        (("http",) * 3, 1, 0, True),
        (("http", "s3", "disk"), 2, 2, False),
    ],
)  # each alone and by turns; data/storage/test_everywhere.py has all of the loader's
def test_killed_and_resumed_anywhere(
    tmp_path,
    monkeypatch,
    places,
    s3,  # noqa: F811
    sources,
    lanes,
    workers,
    mirrored,
) -> None:
    killed_and_resumed(
        tmp_path,
        monkeypatch,
        places,
        sources=sources,
        lanes=lanes,
        workers=workers,
        mirror=f"{s3.url}/runs/first" if mirrored else None,
        seed=lanes + 2 * workers + mirrored,
    )
