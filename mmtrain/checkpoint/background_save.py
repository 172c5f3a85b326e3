"""Checkpoints written while training goes on.

`begin` copies the state and returns; a thread of each rank writes and seals the copy. So what is
saved is the state of its step, bit for bit, and the price is one more copy of it in main memory.
"""

import json
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from mmtrain.checkpoint.checkpoint import Tensors, save_checkpoint
from mmtrain.ranks import is_alone


class BackgroundSave:
    """At most one checkpoint on its way to the disk. Collective to build, `begin` and `wait`.

    Its ranks agree through a process group of their own, since collectives of a thread may not mix
    with those of training. All see the same outcome, each at its own time: agree on `failed` (one
    rank's word counts) before acting on it.
    """

    def __init__(self) -> None:
        self._group: dist.ProcessGroup | None = None
        if not is_alone():
            group = dist.new_group(backend="gloo")
            assert not isinstance(
                group, int
            )  # the answer to ranks outside, of which there are none
            self._group = group
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def begin(
        self, folder: Path, *, step: int, tensors: Tensors, state: dict[str, Any], keep: int
    ) -> None:
        """Start writing `folder/step-N`, as `save_checkpoint` does, when the one before is sealed.

        Raises:
            UsageError: the one before could not be written.
        """
        self.wait()
        copied, frozen = copy_tensors(tensors), json.loads(json.dumps(state))
        self._thread = threading.Thread(
            target=self._run,
            args=(
                lambda: save_checkpoint(
                    folder, step=step, tensors=copied, state=frozen, keep=keep, group=self._group
                ),
            ),
            name="checkpoint",
            daemon=True,  # a crash of training ends the process; what is half written is not sealed
        )
        self._thread.start()

    def _run(self, save: Callable[[], object]) -> None:
        try:
            save()
        except BaseException as error:  # handed on to the main thread, by `wait`
            self._error = error

    @property
    def failed(self) -> bool:
        """Whether the last one is known here to have failed; `wait` raises why."""
        return self._error is not None

    def wait(self) -> None:
        """Return when nothing is on its way.

        Raises:
            UsageError: the last one could not be written; older ones are untouched.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error


@torch.no_grad()
def copy_tensors(tensors: Tensors) -> dict[str, Any]:
    """The same tree in main memory, sharded as it was, sharing nothing with the original."""
    return {
        name: copy_tensors(value)
        if isinstance(value, Mapping)
        else value.detach().to("cpu", copy=True)
        for name, value in tensors.items()
    }
