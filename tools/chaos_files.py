"""Rows of chaos.py about a checkpoint's files: savers killed, damage, forgery, a full disk."""

import contextlib
import hashlib
import io
import json
import logging
import os
import pickle
import random
import resource
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import LoadItemType, ReadItem
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load

from mmtrain.checkpoint.background_save import BackgroundSave
from mmtrain.checkpoint.checkpoint import find_latest, load_checkpoint, save_checkpoint
from mmtrain.checkpoint.tensors import TensorsOnlyPlanner
from mmtrain.errors import UsageError

_ELEMENTS = 1 << 20
_MANIFEST = "manifest.json"


def _save(folder: Path, step: int) -> Path:
    tensors = {"model": {"weight": torch.full((_ELEMENTS,), float(step))}}
    return save_checkpoint(folder, step=step, tensors=tensors, state={"step": step}, keep=2)


def _is_whole(path: Path, step: int) -> bool:
    """Whether it loads and holds what was saved at that step."""
    target = {"model": {"weight": torch.zeros(_ELEMENTS)}}
    state = load_checkpoint(path, target)
    return state == {"step": step} and bool((target["model"]["weight"] == step).all())


def _saver(folder: Path, start: int, pipe: int, *, background: bool) -> None:
    """Save without end; a step goes into the pipe when its save is acknowledged."""
    saves = BackgroundSave()
    for step in range(start, 1 << 20):
        if background:
            tensors = {"model": {"weight": torch.full((_ELEMENTS,), float(step))}}
            saves.begin(folder, step=step, tensors=tensors, state={"step": step}, keep=2)
            saves.wait()
        else:
            _save(folder, step)
        os.write(pipe, step.to_bytes(4, "little"))


def kill_savers(folder: Path, times: int) -> tuple[bool, str]:
    """Fork a process that saves, kill it, look; the next goes on from what was found."""
    draw, step, lost, unreadable = random.Random(0), 0, 0, 0
    for number in range(times):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            _saver(folder / "checkpoints", step + 1, writer, background=number % 2 == 1)
            os._exit(1)
        os.close(writer)
        acknowledged = int.from_bytes(os.read(reader, 4), "little")
        time.sleep(draw.random() * 0.15)
        os.kill(child, signal.SIGKILL)
        while more := os.read(reader, 4):
            acknowledged = int.from_bytes(more, "little")
        os.close(reader)
        os.waitpid(child, 0)
        try:
            latest = find_latest(folder / "checkpoints", warn=lambda line: None)
            assert latest is not None
            step = int(latest.name.removeprefix("step-"))
            unreadable += not _is_whole(latest, step)
        except UsageError:
            unreadable += 1
            step = acknowledged
        lost += step < acknowledged
    return unreadable == lost == 0, f"{unreadable} unreadable, {lost} lost, {step} saves"


def _damage(folder: Path, times: int, damage: str) -> tuple[bool, str]:
    older, newer = _save(folder, 1), _save(folder, 2)
    draw, seen, used = random.Random(times), 0, 0
    for _ in range(times):
        file = draw.choice(sorted(newer.iterdir()))
        whole = file.read_bytes()
        place = draw.randrange(len(whole))
        if damage == "flip":
            changed = bytearray(whole)
            changed[place] ^= 1 << draw.randrange(8)
            file.write_bytes(changed)
        else:
            file.write_bytes(whole[:place])
        lines: list[str] = []
        used += find_latest(folder, warn=lines.append) == older
        seen += len(lines) == 1 and str(newer) in lines[0]
        file.write_bytes(whole)
    whole_again = find_latest(folder) == newer and _is_whole(older, 1)
    good = seen == used == times and whole_again
    return good, f"{seen} of {times} seen, {used} times the one before used"


def flip_bits(folder: Path, times: int) -> tuple[bool, str]:
    """One bit of one file, manifest included."""
    return _damage(folder, times, "flip")


def cut_files(folder: Path, times: int) -> tuple[bool, str]:
    """One file cut short, manifest included."""
    return _damage(folder, times, "cut")


@contextlib.contextmanager
def _small_disk(folder: Path) -> Iterator[str]:
    """A tmpfs of 8 MiB at `folder`; where none may be mounted, a limit on the size of a file."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    if not mounted:
        resource.setrlimit(resource.RLIMIT_FSIZE, (6 << 20, before[1]))
    try:
        yield "a tmpfs of 8 MiB" if mounted else "a limit on file sizes"
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def full_disk(folder: Path, times: int) -> tuple[bool, str]:
    """Saving at once and in the background, each where its second checkpoint does not fit."""
    said: list[str] = []
    for name in ("at once", "in the background"):
        disk = folder / name
        disk.mkdir()
        with _small_disk(disk) as kind:
            older = _save(disk / "checkpoints", 1)
            large = {"model": {"weight": torch.zeros(2 * _ELEMENTS)}}
            try:
                if name == "at once":
                    save_checkpoint(disk / "checkpoints", step=2, tensors=large, state={}, keep=2)
                else:
                    saves = BackgroundSave()
                    saves.begin(disk / "checkpoints", step=2, tensors=large, state={}, keep=2)
                    saves.wait()
                return False, f"{name}: it was written on {kind}"
            except UsageError as error:
                said.append(str(error))
            if find_latest(disk / "checkpoints") != older or not _is_whole(older, 1):
                return False, f"{name}: the older one was lost"
    good = all("cannot be written" in line and "older" in line for line in said)
    reason = said[0].partition("(")[2].partition(")")[0]
    return good, f'on {kind}: "{reason}"; the older one loads'


class _Payload:
    """Leaves a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


def crafted_pickle(folder: Path, times: int) -> tuple[bool, str]:
    """Both holes of torch's own checkpoint reader: `.metadata`, and objects among the tensors.

    The payload is shown to be live: torch's own reader runs it.
    """
    path, mark = _save(folder / "checkpoints", 1), folder / "ran"
    payload = pickle.dumps(_Payload(mark))
    for name in (".metadata", "__0_0.distcp"):
        (path / name).write_bytes(payload)
    manifest = json.loads((path / _MANIFEST).read_bytes())
    for file in path.iterdir():
        if file.name != _MANIFEST:
            content = file.read_bytes()
            entry = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            manifest["files"][file.name] = entry
    (path / _MANIFEST).write_text(json.dumps(manifest))
    index = MetadataIndex("extra")
    size = torch.Size((0,))
    item = ReadItem(LoadItemType.BYTE_IO, index, size, index, size, size)

    ours = _is_whole(path, 1)
    refused = False
    try:
        TensorsOnlyPlanner().load_bytes(item, io.BytesIO(payload))
    except UsageError:
        refused = True
    quiet = not mark.exists()

    live = 0
    torch.save(_Payload(mark), folder / "object.pt")
    planner = DefaultLoadPlanner(flatten_state_dict=False)
    planner.set_up_planner({"extra": None})
    stored = io.BytesIO((folder / "object.pt").read_bytes())
    for theirs in (
        lambda: dcp_load({"weight": torch.zeros(1)}, checkpoint_id=path, no_dist=True),
        lambda: planner.load_bytes(item, stored),
    ):
        # It tells of the failure that follows at length.
        with contextlib.suppress(BaseException), contextlib.redirect_stderr(io.StringIO()):
            logging.disable()
            theirs()
        logging.disable(logging.NOTSET)
        live += mark.exists()
        mark.unlink(missing_ok=True)
    return ours and refused and quiet and live == 2, (
        f"not run, refused as an object; torch's own reader runs {live} of 2"
    )
