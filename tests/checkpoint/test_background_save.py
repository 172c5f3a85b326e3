"""Checkpoints written while training goes on are those that a pause would have written."""

import json
import threading
from pathlib import Path

import pytest
import torch

from mmtrain.checkpoint.background_save import BackgroundSave
from mmtrain.checkpoint.checkpoint import find_latest, load_checkpoint
from mmtrain.checkpoint.tensors import TensorWriter
from mmtrain.cli import main
from mmtrain.errors import UsageError
from mmtrain.tasks.objective import Objective

RECIPE = "configs/debug_clip.toml"
EVERY_TWO = ("--train.steps", "8", "--train.checkpoint_every", "2", "--train.keep_checkpoints", "9")


class SlowDisk:
    """Lets no write begin until `open`; may fail instead."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gate, self.waiting, self.error = threading.Event(), threading.Event(), None
        write = TensorWriter._write

        def slow(writer: TensorWriter, *args):
            self.waiting.set()
            assert self.gate.wait(60)
            if self.error is not None:
                raise self.error
            return write(writer, *args)

        monkeypatch.setattr(TensorWriter, "_write", slow)


def begin(saves: BackgroundSave, folder: Path, step: int, weight: torch.Tensor) -> None:
    """Begin to save one tensor."""
    saves.begin(folder, step=step, tensors={"w": weight}, state={"step": step}, keep=9)


def test_saves_the_state_of_its_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors and state that change before the disk takes them are saved as they were."""
    disk, saves, weight = SlowDisk(monkeypatch), BackgroundSave(), torch.arange(6.0)
    state: dict = {"counts": {"bad": 1}}
    saves.begin(tmp_path, step=1, tensors={"model": {"w": weight}}, state=state, keep=1)
    assert disk.waiting.wait(60)
    weight.zero_()
    state["counts"]["bad"] = 2
    assert find_latest(tmp_path) is None  # nothing is sealed before it is all there
    disk.gate.set()
    saves.wait()
    target = {"model": {"w": torch.empty(6)}}
    assert load_checkpoint(tmp_path / "step-00000001", target) == {"counts": {"bad": 1}}
    assert torch.equal(target["model"]["w"], torch.arange(6.0))


def test_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second one begins when the first is sealed."""
    disk, saves = SlowDisk(monkeypatch), BackgroundSave()
    begin(saves, tmp_path, 1, torch.ones(2))
    begun = threading.Thread(target=begin, args=(saves, tmp_path, 2, torch.ones(2)))
    begun.start()
    begun.join(0.2)
    assert begun.is_alive() and not (tmp_path / ".tmp-step-00000002").exists()
    disk.gate.set()
    begun.join()
    assert (tmp_path / "step-00000001/manifest.json").exists()
    saves.wait()
    assert find_latest(tmp_path) == tmp_path / "step-00000002"


def test_failure_is_handed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`failed` says so, `wait` raises it once, the older checkpoint stays."""
    disk, saves = SlowDisk(monkeypatch), BackgroundSave()
    disk.gate.set()
    begin(saves, tmp_path, 1, torch.ones(2))
    saves.wait()
    disk.error = OSError(28, "No space left on device")
    begin(saves, tmp_path, 2, torch.zeros(2))
    with pytest.raises(UsageError, match=r"step-00000002.*No space left.*older .* untouched"):
        saves.wait()
    saves.wait()
    assert not saves.failed and [p.name for p in tmp_path.iterdir()] == ["step-00000001"]


def test_run_gives_the_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole run: every checkpoint's tensor files have the hashes of a run that paused for them,
    though each was written after further steps."""
    assert main(["train", RECIPE, "--run-dir", str(tmp_path / "pause"), *EVERY_TWO]) == 0
    steps, lag = [], []
    write, step = TensorWriter._write, Objective.step

    def count(*args, **kwargs):
        steps.append(1)
        return step(*args, **kwargs)

    def late(writer: TensorWriter, *args):
        begun = len(steps)
        while len(steps) == begun < 8:
            threading.Event().wait(0.005)
        lag.append(len(steps) - begun)
        return write(writer, *args)

    monkeypatch.setattr(Objective, "step", count)
    monkeypatch.setattr(TensorWriter, "_write", late)
    words = (*EVERY_TWO, "--train.async_checkpoint", "true")
    assert main(["train", RECIPE, "--run-dir", str(tmp_path / "go on"), *words]) == 0
    assert len(lag) == 4 and min(lag[:3]) >= 1
    for number in (2, 4, 6, 8):
        hashes = [
            {name: entry["sha256"] for name, entry in manifest["files"].items()
             if name != "state.json"}  # it has the recipe in it
            for run in ("pause", "go on")
            if (manifest := json.loads(
                (tmp_path / run / f"checkpoints/step-{number:08d}/manifest.json").read_text()))
        ]  # fmt: skip
        assert len(hashes[0]) == 2 and hashes[0] == hashes[1]


def test_run_stops_when_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The failure in the background is one line; the run resumes from the one before."""
    run, write = tmp_path / "run", TensorWriter._write

    def full(writer: TensorWriter, *args):
        if writer.folder.name >= ".tmp-step-00000004":
            raise OSError(28, "No space left on device")
        return write(writer, *args)

    with monkeypatch.context() as patch:
        patch.setattr(TensorWriter, "_write", full)
        words = (*EVERY_TWO, "--train.async_checkpoint", "true")
        assert main(["train", RECIPE, "--run-dir", str(run), *words]) == 2
    errors = capsys.readouterr().err
    assert "step-00000004: the checkpoint cannot be written (No space left" in errors
    assert "Traceback" not in errors
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000002"]
    assert main(["train", RECIPE, "--run-dir", str(run), *words, "--resume"]) == 0
