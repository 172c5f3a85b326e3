"""Checkpoints looked at from outside a run: what there is, what is whole, what may go."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from mmtrain.checkpoint.checkpoint import read_state
from mmtrain.checkpoint.sealed_folder import CHECKPOINTS, MANIFEST_FILE, remove, steps_in, verify
from mmtrain.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class CheckpointFacts:
    """A line of `mmtrain checkpoint ls`."""

    path: Path
    step: int
    size: int
    """Bytes of its files."""
    saved: datetime | None
    """When it was sealed; None where it is not."""
    problems: list[str]
    """What is wrong with it, hashes aside; empty: sealed and complete."""
    layout: str
    """Ranks that it was saved from, by axis of the mesh."""
    loss: float | None
    """Of its step; None where that was not finite, or nobody knows."""


def checkpoints_in(path: Path) -> list[Path]:
    """The checkpoints that a path means, oldest first: a run's, a folder's, or itself.

    Raises:
        UsageError: there is none.
    """
    if (path / MANIFEST_FILE).exists():
        return [path]
    folder = path / CHECKPOINTS if (path / CHECKPOINTS).is_dir() else path
    found = [found for _, found in sorted(steps_in(folder).items())]
    if not found:
        raise UsageError(f"{path}: no checkpoint is here; name a run folder or its checkpoints/")
    return found


def run_of(path: Path) -> Path:
    """The run folder, as far as there is one, of a path that `checkpoints_in` takes."""
    if (path / MANIFEST_FILE).exists():
        path = path.parent
    return path.parent if path.name == CHECKPOINTS else path


def problems_of(path: Path) -> list[str] | None:
    """What is wrong with a checkpoint, by its hashes; None: its run has dropped it meanwhile."""
    problems = verify(path)
    return None if problems and not path.exists() else problems


def describe_checkpoint(path: Path) -> CheckpointFacts | None:
    """What a checkpoint says of itself; its files are counted, not hashed. None: its run has
    dropped it meanwhile."""
    try:
        facts = _describe(path)
    except FileNotFoundError:
        if path.exists():
            raise
        return None
    return None if facts.problems and not path.exists() else facts


def _describe(path: Path) -> CheckpointFacts:
    problems = verify(path, hashes=False)
    try:
        state: Any = read_state(path)
    except (OSError, ValueError):
        state = {}
    manifest = path / MANIFEST_FILE
    axes = {
        name: size
        for name, size in _table(_table(state, "environment"), "layout").items()
        if isinstance(size, int)
    }
    layout = " x ".join(f"{name} {size}" for name, size in axes.items() if size > 1)
    loss = state.get("loss") if isinstance(state, dict) else None
    return CheckpointFacts(
        path=path,
        step=_step(path, state),
        size=sum(file.stat().st_size for file in path.iterdir()),
        saved=datetime.fromtimestamp(manifest.stat().st_mtime) if manifest.exists() else None,
        problems=problems,
        layout=layout or ("1 rank" if axes else "?"),
        loss=loss if isinstance(loss, int | float) else None,
    )


def _step(path: Path, state: Any) -> int:
    """What the state says; of a damaged one the folder's name."""
    step = state.get("step") if isinstance(state, dict) else None
    if isinstance(step, int):
        return step
    last = path.name.rpartition("-")[2]
    return int(last) if last.isdecimal() else 0


def _table(value: Any, key: str) -> dict[str, Any]:
    """The table under a key of what may be damaged, and then none."""
    inner = value.get(key) if isinstance(value, dict) else None
    return inner if isinstance(inner, dict) else {}


def prune_verified(folder: Path, *, keep: int) -> list[Path]:
    """Delete what is older than the newest `keep` whole checkpoints, by their hashes.

    Damaged ones between them stay, since they were not what was asked about.

    Returns:
        What was deleted, newest first.

    Raises:
        UsageError: none is whole; nothing is deleted.
    """
    paths = list(reversed(checkpoints_in(folder)))
    whole = 0
    for index, path in enumerate(paths):
        whole += not verify(path)
        if whole == keep:
            older = paths[index + 1 :]
            for path in older:
                remove(path)
            return older
    if whole == 0:
        raise UsageError(
            f"{folder}: none of {len(paths)} checkpoints is whole (mmtrain checkpoint verify says "
            "why); nothing was deleted"
        )
    return []
