"""Checkpoints: whole or not there, verified, free of pickles, loaded at any layout."""

import json
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.checkpoint.planner import LoadItemType, ReadItem
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from mmtrain.checkpoint.checkpoint import find_latest, load_checkpoint, read_state, save_checkpoint
from mmtrain.checkpoint.tensors import TensorsOnlyPlanner
from mmtrain.errors import UsageError
from tests.ranks import run_ranks

STATE = {"step": 3, "name": "naïve"}


def make_tensors(seed: int = 0) -> dict:
    """Every kind that a run has: matrices, scalars, bf16, whole numbers."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "model": {
            "weight": torch.randn(6, 4, generator=generator),
            "scale": torch.randn((), generator=generator),
            "half": torch.randn(5, generator=generator).bfloat16(),
        },
        "optimizer": {"weight": {"step": torch.tensor(7.0), "count": torch.tensor([1, 2])}},
    }


def zeros_like(tensors: dict) -> dict:
    """The same tree of zeros."""
    return {
        k: torch.zeros_like(v) if isinstance(v, Tensor) else zeros_like(v)
        for k, v in tensors.items()
    }


def save(folder: Path, step: int = 3, *, keep: int = 2, seed: int = 0) -> Path:
    """Save the tensors."""
    return save_checkpoint(folder, step=step, tensors=make_tensors(seed), state=STATE, keep=keep)


def assert_equal(got: dict, want: dict) -> None:
    """Bit for bit."""
    for name, value in want.items():
        if isinstance(value, dict):
            assert_equal(got[name], value)
        else:
            assert torch.equal(got[name], value), name


def test_round_trip(tmp_path: Path) -> None:
    """Tensors come back bit for bit, and any safetensors reader finds the weights."""
    path = save(tmp_path)
    assert path.name == "step-00000003"
    target = zeros_like(make_tensors())
    assert load_checkpoint(path, target) == STATE == read_state(path)
    assert_equal(target, make_tensors())
    file = load_file(path / "rank-00000.safetensors")
    assert torch.equal(file["model.weight"], make_tensors()["model"]["weight"])
    assert not any(p.suffix in (".pt", ".pkl", ".distcp") or p.name == ".metadata"
                   for p in path.iterdir())  # fmt: skip


def test_keeps_the_newest(tmp_path: Path) -> None:
    """keep = 2 of four; nothing hidden is left behind."""
    for step in (1, 2, 3, 4):
        save(tmp_path, step)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000003", "step-00000004"]


@pytest.mark.parametrize("name", ["rank-00000.safetensors", "state.json", "tensors.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_damage_is_seen_and_the_one_before_used(tmp_path: Path, name: str, damage: str) -> None:
    """A flipped bit, a lost end, a lost file: named aloud, never loaded."""
    older, newer = save(tmp_path, 1), save(tmp_path, 2, seed=1)
    file = newer / name
    content = bytearray(file.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 4
        file.write_bytes(content)
    elif damage == "cut":
        file.write_bytes(content[:-1])
    else:
        file.unlink()
    lines: list[str] = []
    assert find_latest(tmp_path, warn=lines.append) == older
    assert len(lines) == 1 and str(newer) in lines[0] and name in lines[0]
    with pytest.raises(UsageError, match="damaged checkpoint"):
        load_checkpoint(newer, zeros_like(make_tensors()))


def test_all_damaged_is_an_error_and_none_is_none(tmp_path: Path) -> None:
    """No checkpoint at all is a fresh run; only damaged ones is an error."""
    assert find_latest(tmp_path) is None
    (save(tmp_path) / "manifest.json").write_text("{}")
    with pytest.raises(UsageError, match="all 1 checkpoints are damaged"):
        find_latest(tmp_path, warn=lambda line: None)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda t: t["model"].pop("scale"), "has tensor model.scale that this run does not"),
        (lambda t: t["model"].update(new=torch.ones(2)), "lacks tensor model.new"),
        (lambda t: t["model"].update(weight=torch.ones(6, 5)), r"is \[6, 4\], but \[6, 5\]"),
        (lambda t: t["model"].update(half=torch.ones(5)), "torch.bfloat16, but torch.float32"),
    ],
    ids=["left over", "missing", "shape", "dtype"],
)
def test_another_model_is_refused(tmp_path: Path, change, complaint: str) -> None:
    """What differs is named with the remedy."""
    path, target = save(tmp_path), zeros_like(make_tensors())
    change(target)
    with pytest.raises(UsageError, match=complaint):
        load_checkpoint(path, target)


class Payload:
    """Leaves a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def seal_again(path: Path) -> None:
    """A forger forges the manifest too."""
    import hashlib

    manifest = json.loads((path / "manifest.json").read_text())
    for file in path.iterdir():
        if file.name != "manifest.json":
            content = file.read_bytes()
            sha256 = hashlib.sha256(content).hexdigest()
            manifest["files"][file.name] = {"size": len(content), "sha256": sha256}
    (path / "manifest.json").write_text(json.dumps(manifest))


def test_forged_metadata_pickle_does_not_run(tmp_path: Path) -> None:
    """DCP's own storage unpickles `.metadata`; here nothing reads it."""
    path, mark = save(tmp_path), tmp_path / "ran"
    (path / ".metadata").write_bytes(pickle.dumps(Payload(mark)))
    (path / "__0_0.distcp").write_bytes(pickle.dumps(Payload(mark)))
    seal_again(path)
    target = zeros_like(make_tensors())
    load_checkpoint(path, target)
    assert_equal(target, make_tensors())
    assert not mark.exists()


@pytest.mark.parametrize(
    ("key", "value"), [("file", "__0_0.distcp"), ("file", "../x.safetensors"), ("dtype", "OBJECT")]
)
def test_forged_index_is_refused(tmp_path: Path, key: str, value: str) -> None:
    """The index may name only tensors in safetensors files of its own folder."""
    path, mark = save(tmp_path), tmp_path / "ran"
    (path / "__0_0.distcp").write_bytes(pickle.dumps(Payload(mark)))
    index = json.loads((path / "tensors.json").read_text())
    entry = index["model.weight"]
    (entry if key == "dtype" else entry["pieces"][0])[key] = value
    (path / "tensors.json").write_text(json.dumps(index))
    seal_again(path)
    with pytest.raises(UsageError, match="is no tensor"):
        load_checkpoint(path, zeros_like(make_tensors()))
    assert not mark.exists()


def test_objects_are_refused_by_the_planner() -> None:
    """DCP's default planner loads objects with weights_only=False; ours loads none."""
    from torch.distributed.checkpoint.metadata import MetadataIndex

    index = MetadataIndex("extra")
    item = ReadItem(LoadItemType.BYTE_IO, index, torch.Size((0,)), index, torch.Size((0,)),
                    torch.Size((0,)))  # fmt: skip
    with pytest.raises(UsageError, match="extra is no tensor"):
        TensorsOnlyPlanner().load_bytes(item, None)


def test_write_error_leaves_the_older_ones(tmp_path: Path, monkeypatch) -> None:
    """A full disk is one line; what was saved before still loads."""
    save(tmp_path, 1)

    def full(self: Path, *args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(
        UsageError, match=r"No space left on device.*older checkpoints are untouched"
    ):
        save(tmp_path, 2)
    monkeypatch.undo()
    assert find_latest(tmp_path) == tmp_path / "step-00000001"
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]


SAVER = """
import os, sys, torch
from pathlib import Path
from mmtrain.checkpoint.checkpoint import save_checkpoint
for first in sys.stdin:
    child = os.fork()
    if child == 0:
        print("process", os.getpid(), flush=True)
        weight = torch.zeros(1 << 20)
        for step in range(int(first), 1 << 20):
            what = {"tensors": {"model": {"weight": weight.fill_(step)}}, "state": {"step": step}}
            save_checkpoint(Path(sys.argv[1]), step=step, keep=2, **what)
            print(step, flush=True)
    os.waitpid(child, 0)
    print("gone", flush=True)
"""
"""A process that saves for each line, begun from one that has loaded torch."""


def kill_while_saving(folder: Path, num_kills: int) -> None:
    """SIGKILL a saving process again and again: the newest checkpoint is whole, none is lost."""
    draw, step = random.Random(num_kills), 0
    with subprocess.Popen(
        [sys.executable, "-c", SAVER, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as savers:
        assert savers.stdin is not None and savers.stdout is not None
        for _ in range(num_kills):
            print(step + 1, file=savers.stdin, flush=True)
            process = int(savers.stdout.readline().removeprefix("process "))
            acknowledged = int(savers.stdout.readline())
            time.sleep(draw.random() * 0.1)
            os.kill(process, signal.SIGKILL)
            while (line := savers.stdout.readline()) != "gone\n":
                acknowledged = int(line)
            latest = find_latest(folder)
            assert latest is not None
            step = int(latest.name.removeprefix("step-"))
            assert step >= acknowledged
            target = {"model": {"weight": torch.zeros(1 << 20)}}
            assert load_checkpoint(latest, target) == {"step": step}
            assert bool((target["model"]["weight"] == step).all())


def test_sigkill_while_saving_loses_nothing(tmp_path: Path) -> None:
    """A few kills at random moments."""
    kill_while_saving(tmp_path / "checkpoints", 3)


@pytest.mark.slow
def test_sigkill_while_saving_loses_nothing_many_times(tmp_path: Path) -> None:
    """The same, often."""
    kill_while_saving(tmp_path / "checkpoints", 40)


def save_on_two_ranks(rank: int, folder: str) -> None:
    """A sharded and a replicated tensor."""
    mesh = init_device_mesh("cpu", (2,))
    tensors = make_tensors()["model"]
    model = {
        "weight": distribute_tensor(tensors["weight"], mesh, [Shard(0)]),
        "scale": distribute_tensor(tensors["scale"], mesh, [Replicate()]),
        "half": tensors["half"],
    }
    path = save_checkpoint(Path(folder), step=3, tensors={"model": model}, state=STATE, keep=2)
    for value in model.values():
        (value.to_local() if isinstance(value, DTensor) else value).zero_()
    assert load_checkpoint(path, {"model": model}) == STATE
    whole = {n: v.full_tensor() if isinstance(v, DTensor) else v for n, v in model.items()}
    assert_equal(whole, tensors)


def load_on_two_ranks(rank: int, path: str) -> None:
    """Columns instead of rows."""
    mesh = init_device_mesh("cpu", (2,))
    want = make_tensors()["model"]
    weight = distribute_tensor(torch.zeros(6, 4), mesh, [Shard(1)])
    model = {"weight": weight, "scale": torch.zeros(()), "half": torch.zeros(5).bfloat16()}
    load_checkpoint(Path(path), {"model": model})
    assert_equal(model | {"weight": weight.full_tensor()}, want)


def on_two_ranks(rank: int, folder: str, one: str) -> None:
    save_on_two_ranks(rank, folder)
    load_on_two_ranks(rank, one)


def test_layouts_read_each_other(tmp_path: Path) -> None:
    """Saved by rows on two ranks, loaded on one; saved on one, loaded by columns on two."""
    tensors = {"model": make_tensors()["model"]}
    one = save_checkpoint(tmp_path / "one", step=3, tensors=tensors, state=STATE, keep=1)
    run_ranks(on_two_ranks, 2, str(tmp_path / "two"), str(one))
    path = tmp_path / "two/step-00000003"
    assert len(list(path.glob("*.safetensors"))) == 2
    target = {"model": zeros_like(make_tensors()["model"])}
    load_checkpoint(path, target)
    assert_equal(target["model"], make_tensors()["model"])


def test_a_later_versions_checkpoint_is_not_called_damaged(tmp_path: Path) -> None:
    """It would be trained over."""
    save(tmp_path, step=3)
    newest = save(tmp_path, step=6)
    manifest = json.loads((newest / "manifest.json").read_text())
    (newest / "manifest.json").write_text(json.dumps(manifest | {"version": 2, "more": 1}))
    with pytest.raises(UsageError, match=r"version = 2 is unknown here .*; use the mmtrain that"):
        find_latest(tmp_path, warn=lambda line: None)
