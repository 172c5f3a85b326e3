"""docs/launch.md and the launch files beside it: they parse, and what can run here runs."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
import yaml

from mmtrain.cli import main
from mmtrain.errors import ExitStatus, UsageError, WorkerKilledError
from mmtrain.recipe import load_recipe
from tools.chaos_jobs import free_port

ROOT = Path(__file__).parents[1]
SBATCH = ROOT / "tools/slurm.sbatch"
DOC = (ROOT / "docs/launch.md").read_text(encoding="utf-8")
SRUN = """#!/bin/bash
# Two tasks, one after the other; the highest status is srun's.
while [[ $1 == --* ]]; do shift; done
highest=0
for task in 0 1; do
  status=0
  SLURM_PROCID=$task SLURM_LOCALID=$task SLURM_NTASKS=2 "$@" || status=$?
  if [ $status -gt $highest ]; then highest=$status; fi
done
exit $highest
"""
PYTHON = """#!/bin/bash
echo "rank $RANK of $WORLD_SIZE at $LOCAL_RANK, $MASTER_ADDR:$MASTER_PORT: $*" >> "$NOTES"
if [[ -n $MISTAKE && $RANK == 0 ]]; then
  echo '{"message": "m", "timestamp": 1, "status": 2}' > "$TORCHELASTIC_ERROR_FILE"
fi
exit $STATUS
"""
SCONTROL = """#!/bin/bash
if [[ $1 == show ]]; then echo node7; echo node8; else echo "scontrol $*" >> "$NOTES"; fi
"""


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    """A folder of stand-ins for srun, scontrol and python."""
    for name, text in (("srun", SRUN), ("python", PYTHON), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    return tmp_path


def submit(
    cluster: Path, status: int, failures: int = 0, *, mistake: bool = False
) -> tuple[int, list[str]]:
    """Run the script as SLURM would -> its exit status and what the stand-ins noted.

    `failures` is how often in a row the job has failed already.
    """
    notes, counted = cluster / "notes.txt", cluster / "mmtrain-41.failures"
    notes.unlink(missing_ok=True)
    counted.write_text("76\n" * failures)
    environment = {
        "PATH": f"{cluster}:{os.environ['PATH']}",
        "NOTES": str(notes),
        "STATUS": str(status),
        "MISTAKE": "1" * mistake,
        "SLURM_JOB_ID": "41",
        "SLURM_JOB_NODELIST": "node[7-8]",
    }
    words = ["recipe.toml", "runs/a", "--train.steps", "7"]
    done = subprocess.run(
        ["bash", str(SBATCH), *words],
        cwd=cluster,
        env=environment,
        capture_output=True,
        check=False,
    )
    return done.returncode, notes.read_text().splitlines()


def test_slurm_gives_every_task_its_place(cluster: Path) -> None:
    """Rank, size, rendezvous, and the words; a finished run is not requeued."""
    status, notes = submit(cluster, 0)
    words = "-m mmtrain train recipe.toml --run-dir runs/a --resume --train.steps 7"
    assert status == 0
    assert notes == [f"rank {rank} of 2 at {rank}, node7:20041: {words}" for rank in (0, 1)]


@pytest.mark.parametrize(
    ("status", "failures", "requeued", "counted"),
    [
        (75, 5, True, None),
        (76, 0, True, 1),
        (137, 4, True, 5),
        (137, 5, False, 6),
        (2, 0, False, 0),
    ],
)
def test_slurm_requeues(
    cluster: Path, status: int, failures: int, requeued: bool, counted: int | None
) -> None:
    """Always after a stop that was asked for, which ends the count of failures; some times after a
    failure; never after a mistake."""
    got, notes = submit(cluster, status, failures)
    assert got == status and (notes[-1] == "scontrol requeue 41") == requeued
    file = cluster / "mmtrain-41.failures"
    assert (len(file.read_text().splitlines()) if file.exists() else None) == counted


def test_slurm_sees_the_mistake_of_one_rank(cluster: Path) -> None:
    """The ranks that lose their peer end otherwise, with a higher status; an old mistake that was
    mended is no reason."""
    status, notes = submit(cluster, 76, mistake=True)
    assert status == 2 and "scontrol requeue 41" not in notes
    status, notes = submit(cluster, 76)
    assert status == 76 and notes[-1] == "scontrol requeue 41"


def attempts(folder: Path, count: int, *left: dict[str, object]) -> dict[str, str]:
    """What torchrun tells a rank of an attempt, and what the ranks of the one before left."""
    for rank, content in enumerate(left):
        file = folder / f"attempt_{count - 1}/{rank}/error.json"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(content))
    own = folder / f"attempt_{count}/0/error.json"
    own.parent.mkdir(parents=True)
    return {"TORCHELASTIC_RESTART_COUNT": str(count), "TORCHELASTIC_ERROR_FILE": str(own)}


@pytest.mark.parametrize(
    ("count", "statuses", "repeats"),
    [
        (1, (2,), True),
        (19, (2,), True),
        (3, (1, 2), True),
        (3, (76, 77), False),
        (3, (), False),
        (0, (2,), False),
    ],
)
def test_a_mistake_is_not_repeated(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    count: int,
    statuses: tuple[int, ...],
    repeats: bool,
) -> None:
    """A restarted rank ends with it at once, and hands it on to the next restart; after any other
    end it trains."""
    trained: list[dict[str, object]] = []
    monkeypatch.setattr("mmtrain.run.train_command", lambda **words: trained.append(words))
    left = [{"message": f"m{status}", "timestamp": 1, "status": status} for status in statuses]
    for name, value in attempts(tmp_path, count, *left).items():
        monkeypatch.setenv(name, value)
    assert main(["train", "configs/debug_clip.toml"]) == (2 if repeats else 0)
    assert bool(trained) != repeats and capsys.readouterr().err == ""
    own = tmp_path / f"attempt_{count}/0/error.json"
    assert (json.loads(own.read_bytes())["message"] if own.exists() else None) == (
        "m2" if repeats else None
    )


@pytest.mark.slow
def test_torchrun_does_not_repeat_a_mistake(tmp_path: Path) -> None:
    """Of 20 restarts none says it again, and the last line says what it was."""
    run = ["--run-dir", str(tmp_path / "run"), "--data.train", "nowhere.tar"]
    words = ["-m", "mmtrain", "train", "configs/debug_clip.toml", *run]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *launch, "--max-restarts", "20", *words],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.count("mmtrain: error: ") == 1, done.stderr
    assert "nowhere.tar" in done.stderr.rpartition("ChildFailedError")[2]


def test_slurm_parses() -> None:
    """By bash, and by shellcheck where it is."""
    subprocess.run(["bash", "-n", str(SBATCH)], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", str(SBATCH)], check=True)


def test_yaml_files_train_what_exists() -> None:
    """They parse, and their recipe and keys are real."""
    service, job = yaml.safe_load_all((ROOT / "tools/kubernetes.yaml").read_text())
    pod = job["spec"]["template"]["spec"]
    assert service["metadata"]["name"] == pod["subdomain"]
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == 2
    sky = yaml.safe_load((ROOT / "tools/skypilot.yaml").read_text())
    for command in (pod["containers"][0]["command"][-1], sky["run"]):
        words = re.findall(r'"[^"]*"|\S+', command.replace("\\\n", " "))
        assert "--resume" in words and "--max-restarts" in words
        recipe = words[words.index("train") + 1]
        start = words.index("--data.train")
        assert load_recipe(ROOT / recipe, [w.strip('"') for w in words[start : start + 2]])


def test_the_page_names_keys_that_exist() -> None:
    """Every `train.key` and `log.key` of the page is one of a recipe."""
    recipe = load_recipe(ROOT / "configs/debug_clip.toml")
    keys = set(re.findall(r"`(train|log)\.(\w+)", DOC))
    assert len(keys) >= 8
    for section, key in keys:
        assert hasattr(getattr(recipe, section), key), f"{section}.{key}"
    assert tomllib.loads((ROOT / "configs/clip_vit_b32.toml").read_text())


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_nodes_of_torchrun(tmp_path: Path) -> None:
    """The page's line for several machines, both of them this one; the second one's rank is killed,
    and both go on."""
    port = free_port()
    run = tmp_path / "run"
    words = ["-m", "mmtrain", "train", "configs/debug_clip.toml", "--run-dir", str(run), "--resume"]
    words += ["--train.steps", "30", "--train.checkpoint_every", "2", "--train.log_every", "1"]
    meet = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "two"]
    launch = ["-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    environment = {"OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    nodes = [
        subprocess.Popen(
            [sys.executable, *launch, "--max-restarts", "1", *meet, *words],
            cwd=ROOT,
            env={**os.environ, **environment},
        )
        for _ in range(2)
    ]
    try:
        metrics = run / "metrics.jsonl"
        while not metrics.exists() or len(metrics.read_text().splitlines()) < 3:
            assert [node.poll() for node in nodes] == [None, None]
            time.sleep(0.05)
        victim = json.loads((run / "heartbeats/rank-00001.json").read_bytes())["process"]
        os.kill(victim, signal.SIGKILL)
        assert [node.wait(500) for node in nodes] == [0, 0]
    finally:
        for node in nodes:  # SIGTERM, not SIGKILL: torchrun has ranks of its own to end
            if node.poll() is None:
                node.terminate()
            node.wait(60)
    assert len(metrics.read_text().splitlines()) == 30
    assert '"ranks": 2' in (run / "run.json").read_text()


def test_the_table_has_every_exit_status() -> None:
    """One table, and its statuses are those of the code; nobody else spells one out."""
    table = DOC.partition("## Exit statuses")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (\d+) \| (.+) \| .*\|$", table, re.MULTILINE)
    assert [int(number) for number, _ in rows] == sorted(map(int, ExitStatus.__members__.values()))
    assert len(re.findall(r"^\|.*\bstatus\b.*\|$", DOC, re.MULTILINE)) == 1
    for file in (ROOT / "mmtrain").rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        assert not re.search(r"(SystemExit|\bexit|_exit)\((\d+|\"|')", text), file


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UsageError("train.lr = 7:\nno"), 2),
        (WorkerKilledError("data.workers = 2: killed"), 77),
        (KeyboardInterrupt(), 130),
        (SystemExit(75), 75),
    ],
    ids=lambda value: type(value).__name__,
)
def test_how_a_command_ends(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    status: int,
) -> None:
    """Its status, one line on rank 0, and the error of any rank where the launcher looks for it."""

    def fail(**_: object) -> None:
        raise error

    monkeypatch.setattr("mmtrain.run.train_command", fail)
    left = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(left))
    for rank in ("0", "3"):
        monkeypatch.setenv("RANK", rank)
        left.unlink(missing_ok=True)
        try:
            ended = main(["train", "configs/debug_clip.toml"])
        except SystemExit as stop:
            ended = stop.code
        assert ended == status
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == (rank == "0" and status != 75)
        if isinstance(error, Exception):
            message = " ".join(str(error).splitlines())
            found = json.loads(left.read_bytes())
            assert (found["message"], found["status"]) == (message, status)
