"""The sections [run] and [train] of a recipe."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from mmtrain.data.numbered import NumberedData
from mmtrain.data.phases import Phase
from mmtrain.errors import UsageError
from mmtrain.optim.loss_scale import LossScaleConfig
from mmtrain.parallel.compile import CompileSetting
from mmtrain.parallel.precision import Precision
from mmtrain.settings.paths import PathText


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Where a run lives and what makes it repeatable."""

    dir: PathText
    """The run folder; everything a run writes is in it."""
    seed: int = 0
    """Of the initial weights, the data order and every random choice."""
    mirror: PathText | None = None
    """A second place for the run, a folder of s3://, gs://, az:// or of a disk: each sealed
    checkpoint is sent there while training goes on, with the run's own files, and as many are kept
    as train.keep_checkpoints says. --resume takes the newest one from there where none so new is
    here."""
    mirror_minutes: float = 30.0
    """How long the end of a run waits for what is still being sent to run.mirror."""
    peak_tflops: float | None = None
    """10^12 products and sums a second that a device computes at most in train.precision, for
    MFU and HFU in metrics.jsonl. None: by the device's name, where that is known."""

    def __post_init__(self) -> None:
        if self.peak_tflops is not None and not 0 < self.peak_tflops < math.inf:
            raise ValueError(f"peak_tflops = {self.peak_tflops} must be a number above 0")
        if self.mirror_minutes <= 0:
            raise ValueError(f"mirror_minutes = {self.mirror_minutes} must be positive")
        if self.mirror is None and self.mirror_minutes != type(self).mirror_minutes:
            raise ValueError(
                f"mirror_minutes = {self.mirror_minutes} has no effect without mirror; set that or "
                "remove it"
            )


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Length of a run, its batch, its number format and its checkpoints."""

    steps: int | None = None
    """Updates of the run. Either this or epochs."""
    epochs: int | None = None
    """Passes over the data. Either this or steps."""
    phase: tuple[Phase, ...] = ()
    """Stretches of the run, each with its own length and batch, in place of steps and epochs; in
    them the learning rate follows the samples, not the steps."""
    batch_size: int = 256
    """Samples of a *global* batch: every one of them is every other's negative."""
    microbatches: int = 1
    """Parts that each rank's share is computed in; the result does not depend on it."""
    text_groups: int = 1
    """Groups of texts of like length that the text tower takes one after another, each padded to
    its own longest text only: faster, the result does not depend on it."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl."""
    checkpoint_every: int | None = None
    """Steps between checkpoints. None: by time, or only at the end."""
    checkpoint_minutes: float | None = None
    """Minutes between checkpoints."""
    keep_checkpoints: int = 2
    """How many checkpoints stay on disk."""
    async_checkpoint: bool = False
    """Write checkpoints in the background while training goes on; a second copy of weights and
    optimizer state is held in main memory meanwhile."""
    precision: Precision = "fp32"
    """fp32; bf16 (products in bf16, weights in fp32); tf32 (as fp32, a GPU's products in TF32:
    Ampere or newer); bf16-main (all computed with in bf16; weights stored and gradients summed in
    fp32); bf16-pure (all in bf16); bf16-fsdp (bf16-main, where FSDP gathers); fp16 (products in
    fp16, weights in fp32, the loss scaled); float8 (as bf16, the blocks' products in float8: Ada,
    Hopper or newer, with train.compile = true); fp64 (for proofs)."""
    loss_scale: LossScaleConfig = field(default_factory=LossScaleConfig)
    """The loss scale of fp16."""
    compile: CompileSetting = False
    """torch.compile every block: true, false, or auto (where it pays: a run of 1,000 steps or more
    on CUDA, or in bf16 on a CPU with AMX; what it chose is said). The code is kept for the next run
    (TORCHINDUCTOR_CACHE_DIR)."""
    device: str = "auto"
    """auto, cpu or cuda."""
    deterministic: bool = False
    """On CUDA: only kernels that repeat themselves bit for bit (on CPU they all do)."""
    max_bad_steps: int = 3
    """Updates in a row that may be left out, since loss or gradient was not finite, before
    on_bad_steps acts."""
    on_bad_steps: Literal["stop", "roll_back"] = "stop"
    """stop: end the run; roll_back: take weights and optimizer from the newest checkpoint before
    the bad steps and go on with the data after them (once for each checkpoint)."""
    hang_minutes: float | None = 10.0
    """With several ranks: name a rank that finishes no step, or does not answer, for so long, and
    end the run (exit status 76). Startup, saving and evaluating take what they take. None: off."""
    gc_every: int | None = 50
    """Steps between collections of Python's garbage, on all ranks at once: left to itself it halts
    one of them for some tenths of a second, in the middle of a step. None: left to itself."""
    straggler_factor: float | None = 2.0
    """With several ranks: name one that waits for data, or takes for a fixed product on its device,
    more than this many times the median. None: off."""
    straggler_every: int = 200
    """Steps between looks for stragglers; each costs some 10 ms."""

    def __post_init__(self) -> None:
        self._check_length()
        at_least_1 = ("steps", "epochs", "batch_size", "microbatches", "text_groups", "log_every")
        at_least_1 += ("checkpoint_every", "keep_checkpoints", "max_bad_steps", "straggler_every")
        at_least_1 += ("gc_every",)
        for name in at_least_1:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} = {value} must be at least 1")
        for name in ("checkpoint_minutes", "hang_minutes"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name} = {value} must be positive")
        if self.precision != "fp16" and self.loss_scale != LossScaleConfig():
            raise ValueError(
                f'loss_scale has no effect with precision = "{self.precision}"; set precision = '
                '"fp16" or remove it'
            )
        if self.straggler_factor is not None and self.straggler_factor <= 1:
            raise ValueError(f"straggler_factor = {self.straggler_factor} must be more than 1")

    def _check_length(self) -> None:
        given = {name: getattr(self, name) for name in ("steps", "epochs")}
        told = [f"{name} = {value}" for name, value in given.items() if value is not None]
        if self.phase and told:
            raise ValueError(
                f"{told[0]} contradicts [[train.phase]], whose phases have lengths of their own; "
                "leave it out"
            )
        if not self.phase and len(told) != 1:
            raise ValueError("set exactly one of steps and epochs")

    @property
    def length(self) -> str:
        """The setting that says how long the run is, with its value."""
        if self.phase:
            return f"the length of {len(self.phase)} [[train.phase]]"
        return (
            f"train.epochs = {self.epochs}" if self.steps is None else f"train.steps = {self.steps}"
        )


def total_steps(config: TrainConfig, data: NumberedData[Any]) -> int:
    """Updates of the whole run.

    Raises:
        UsageError: it is as long as epochs that nobody knows the length of.
    """
    if data.phases.total_steps is not None:
        return data.phases.total_steps
    batches_per_epoch = data.batches_per_epoch
    if config.steps is not None:
        return config.steps
    assert config.epochs is not None
    if not batches_per_epoch:
        raise UsageError(
            f"train.epochs = {config.epochs}: with data.stream = true nobody knows how many "
            "samples an epoch has; use train.steps"
        )
    return config.epochs * batches_per_epoch
