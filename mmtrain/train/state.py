"""What a run consists of between two steps, and how it goes into a checkpoint and comes back."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmtrain.checkpoint.background_save import BackgroundSave
from mmtrain.checkpoint.checkpoint import (
    Tensors,
    find_latest,
    load_checkpoint,
    read_state,
    save_checkpoint,
)
from mmtrain.checkpoint.sealed_folder import CHECKPOINTS
from mmtrain.data.accounts import EpochAccounts
from mmtrain.data.bad_samples import BadSampleLog
from mmtrain.data.fingerprint import same_data
from mmtrain.data.phases import Phase
from mmtrain.errors import UsageError
from mmtrain.optim.ema import Ema
from mmtrain.optim.loss_scale import LossScale
from mmtrain.optim.optimizer import Optimizers
from mmtrain.parallel.apply import gather_tensors
from mmtrain.parallel.mesh import Layout
from mmtrain.parallel.pipeline import PipelineSchedule
from mmtrain.train.objective import Objective
from mmtrain.train.step import LocalSchedule

_IDENTITY_KEYS = {
    "seed": "run.seed",
    "batch_size": "train.batch_size",
    "num_samples": "samples in data.train",
    "data_fingerprint": "fingerprint of data.train",
    "tokenizer": "fingerprint of the tokenizer's ids",
}


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What the meaning of a step hangs on: a run is resumed only where all of it is the same."""

    seed: int
    """run.seed: of weights, data order and every random choice."""
    batch_size: int
    """train.batch_size: rows of a global batch."""
    num_samples: int
    """Samples of data.train."""
    data_fingerprint: str
    """Of the shards' sizes, keys and order, and of their contents where all have checksums."""
    tokenizer: str | None = None
    """Of the ids that texts become. None: nobody knows, as in older checkpoints."""
    teachers: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Models that are learnt from, by their key in the recipe: path and fingerprint."""

    def check(self, saved: dict[str, Any], path: Path) -> None:
        """Refuse a checkpoint of another run.

        Raises:
            UsageError: naming what differs.
        """
        if (differs := self.differs(saved)) is not None:
            key, now, before = differs
            raise UsageError(
                f"{key} = {now}, but {path} was saved with {before}: the same steps would see "
                "other samples; resume with the same value and data, or start a new run in another "
                "--run-dir"
            )
        for key, (where, fingerprint) in self.teachers.items():
            where_before, before = saved.get("teachers", {}).get(key, (where, fingerprint))
            if before != fingerprint:
                raise UsageError(
                    f"{key} = {where} is not the model that {path} learnt from, then at "
                    f"{where_before}: its weights, architecture, image size or tokenizer are "
                    "others; name the one that it was, wherever it is now, or start a new run in "
                    "another --run-dir"
                )

    def differs(self, saved: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
        """A key that is another than a checkpoint's, teachers aside, with both values; None: none.

        Args:
            saved: the checkpoint's identity.
        """
        for name, key in _IDENTITY_KEYS.items():
            now, before = getattr(self, name), saved.get(name)
            if name == "data_fingerprint":
                is_same = same_data(str(before), now)
            else:
                is_same = before == now or (name == "tokenizer" and before is None)
            if not is_same:
                return key, now, before
        return None


@dataclass(kw_only=True)
class RunState:
    """A run between two steps. All of it that changes is in the checkpoint; the rest is rebuilt.

    There is no state of a random generator to keep: every random choice is a function of the seed
    and the sample's position.
    """

    layout: Layout
    stages: Sequence[nn.Module]
    objective: Objective
    schedule: LocalSchedule | PipelineSchedule
    optimizers: Optimizers
    ema: Ema | None
    loss_scale: LossScale | None = None
    """With precision fp16."""
    bad_samples: BadSampleLog
    accounts: EpochAccounts
    identity: Identity
    step: int = 0
    """Updates done: batches consumed by the trainer, not those read ahead."""
    samples_seen: int = 0
    """Real samples in those batches, over all ranks."""
    held_back: int = 0
    """Of those the newest in a row that changed nothing, since they were not finite."""
    loss: Tensor | None = None
    """Of the last step: what a list of checkpoints shows."""
    stream: dict[str, Any] | None = None
    """Where a stream stood in the checkpoint that was gone on from."""

    def enter(self, phase: Phase) -> None:
        """Take the coming step as its phase says."""
        if isinstance(self.schedule, LocalSchedule):  # a pipeline has one form for all
            self.schedule.cut(phase.microbatches)

    def stage_parameters(self) -> dict[str, nn.Parameter]:
        """The towers' parameters that this rank holds, by their name in the whole model."""
        return {name: p for stage in self.stages for name, p in stage.named_parameters()}

    def tensors(self) -> dict[str, Tensors]:
        """Every tensor of the run that this rank holds, live: loading copies into them."""
        model = {**self.stage_parameters(), **self.objective.parameters()}
        tensors: dict[str, Tensors] = {
            "model": {name: parameter.detach() for name, parameter in model.items()},
            "optimizer": self.optimizers.state_dict(),
        }
        if self.ema is not None:
            tensors["ema"] = self.ema.state_dict()
        return tensors

    def whole_weights(self) -> dict[str, Tensor]:
        """The model's weights, averaged ones where EMA is on, whole and on every rank."""
        tensors = {**self.stage_parameters(), **self.objective.parameters()}
        if self.ema is None:
            return gather_tensors(dict(tensors), self.layout)
        with self.ema.applied(*self.stages):
            return gather_tensors(dict(tensors), self.layout)

    def save(
        self,
        run_dir: Path,
        *,
        keep: int,
        recipe: dict[str, Any],
        background: BackgroundSave | None = None,
        stream: dict[str, Any] | None = None,
    ) -> None:
        """Write and seal a checkpoint of this step, or begin to in the background.

        Args:
            run_dir: the run's folder.
            keep: how many checkpoints stay.
            recipe: of the run, as plain JSON.
            background: writes it while the run goes on.
            stream: where a stream stands on all ranks together; None: it is none.

        Raises:
            UsageError: this one, or the one before in the background, could not be written.
        """
        loss = None if self.loss is None else self.loss.item()
        state = {
            "loss": loss if loss is not None and math.isfinite(loss) else None,
            "step": self.step,
            "samples_seen": self.samples_seen,
            "held_back": self.held_back,
            "identity": vars(self.identity),
            "environment": environment(self.layout),
            "bad_samples": self.bad_samples.state_dict(),
            "accounts": self.accounts.state_dict(),
            "loss_scale": None if self.loss_scale is None else self.loss_scale.state_dict(),
            "recipe": recipe,
            **({} if stream is None else {"stream": stream}),
        }
        save = save_checkpoint if background is None else background.begin
        save(run_dir / CHECKPOINTS, step=self.step, tensors=self.tensors(), state=state, keep=keep)

    def resume(
        self,
        run_dir: Path,
        *,
        warn: Callable[[str], None],
        check: Callable[[Path, dict[str, Any]], None] | None = None,
        until: int | None = None,
    ) -> Path | None:
        """Continue from the newest whole checkpoint; None if there is none.

        Args:
            run_dir: the run folder.
            warn: gets a line for each damaged checkpoint and for whatever may change the last bits
                of what follows (another torch, layout or number of threads).
            check: gets the checkpoint and its state, and refuses what another recipe saved; before
                anything is taken from it.
            until: not from one of a later step.

        Raises:
            UsageError: all checkpoints are damaged, or they are of another model or data.
        """
        path = find_latest(run_dir / CHECKPOINTS, until=until, warn=warn)
        if path is None:
            return None
        state = read_state(path)
        if check is not None:
            check(path, state)
        self.identity.check(state["identity"], path)
        if self.identity.teachers and "teachers" not in state["identity"]:
            warn(f"{path} does not say what its teachers were: those of the recipe are taken")
        load_checkpoint(path, self.tensors(), verified=True)
        self.step, self.samples_seen = state["step"], state["samples_seen"]
        self.held_back = state.get("held_back", 0)  # absent where the checkpoint is older
        self.stream = state.get("stream")
        self.bad_samples.load_state_dict(state["bad_samples"])
        self.accounts.load_state_dict(state.get("accounts"), batches=self.step)
        # Absent where the checkpoint is older, or of a run at another precision: the scale begins.
        if self.loss_scale is not None and (saved_scale := state.get("loss_scale")) is not None:
            self.loss_scale.load_state_dict(saved_scale)
        now = environment(self.layout)
        for name, saved in state["environment"].items():
            if now.get(name) != saved:
                warn(
                    f"{name} was {saved} and is {now.get(name)}: the run goes on from the same "
                    "weights and data, but its last bits may differ"
                )
        return path

    def roll_back(self, run_dir: Path, *, until: int, warn: Callable[[str], None]) -> int | None:
        """Take every tensor from the newest whole checkpoint of step `until` or before.

        Step, samples seen and data position stay: what was not fit for training is not met again.

        Returns:
            The checkpoint's step; None if there is none.
        """
        path = find_latest(run_dir / CHECKPOINTS, until=until, warn=warn)
        return (
            None if path is None else load_checkpoint(path, self.tensors(), verified=True)["step"]
        )


def environment(layout: Layout) -> dict[str, Any]:
    """What the last bits of a result depend on beside the recipe."""
    sizes = {name: layout.size(name) for name in ("pp", "dp", "tp")}
    return {
        "torch": torch.__version__,
        "device": layout.device.type,
        "threads": torch.get_num_threads(),
        "layout": sizes | ({"dp_kind": layout.config.dp_kind} if layout.has_replicas else {}),
    }


def as_fp32(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Floating-point tensors as fp32: the form of evaluation and export."""
    return {n: t.float() if t.is_floating_point() else t for n, t in tensors.items()}
