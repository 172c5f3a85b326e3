"""Checkpoints of nothing much, and places that fail when a test wants it."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from mmtrain.checkpoint.checkpoint import save_checkpoint
from mmtrain.checkpoint.sealed_folder import CHECKPOINTS
from mmtrain.data.storage.place import FolderPlace


def save(run: Path, step: int, *, value: float = 1.0, keep: int = 9) -> Path:
    """A sealed checkpoint of a few small files, all of whose sizes hang on the step alone."""
    tensors = {"model": {"w": torch.full((1000,), value)}, "optimizer": {"m": torch.ones(9)}}
    state = {"step": step, "identity": {"seed": 0}, "recipe": {}}
    return save_checkpoint(run / CHECKPOINTS, step=step, tensors=tensors, state=state, keep=keep)


class Failing(FolderPlace):
    """A folder that counts what is put and deleted, and calls `before` ahead of each."""

    def __init__(self, path: Path, before: Callable[[int], None] = lambda number: None) -> None:
        super().__init__(str(path))
        self.before, self.calls = before, 0
        self.put_names: list[str] = []

    def put(self, name: str, content: Path | bytes) -> None:
        self._count()
        super().put(name, content)
        self.put_names.append(name)

    def delete(self, names: Sequence[str]) -> None:
        for name in names:
            self._count()
            super().delete([name])

    def _count(self) -> None:
        self.before(self.calls)
        self.calls += 1


class Killed(Exception):
    """The process is gone."""


def killed_at(wanted: int) -> Callable[[int], None]:
    """A `before` that kills at one call."""

    def before(number: int) -> None:
        if number == wanted:
            raise Killed

    return before
