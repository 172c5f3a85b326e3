"""`mmtrain profile`: a few steps of a recipe under torch.profiler, alone or under torchrun."""

import gzip
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

from mmtrain.build.run import Run, build_run
from mmtrain.data.storage.patience import waiting
from mmtrain.errors import UsageError
from mmtrain.files import writing
from mmtrain.nn.flops import FlopCount
from mmtrain.nn.heap import kept_memory
from mmtrain.nn.products import fast_products
from mmtrain.nn.regions import region
from mmtrain.parallel.compile import is_compiled
from mmtrain.parallel.mesh import build_layout, leave_ranks, pick_device
from mmtrain.ranks import on_rank_0, own_rank
from mmtrain.recipe import load_recipe
from mmtrain.report.step_times import StepTimes, read_step_times, what_bounds
from mmtrain.settings.paths import escape_path
from mmtrain.train.transfer import Transfer
from mmtrain.train.utilisation import peak_flops

_WARM_UP = 2
"""Steps before those that are traced: kernels are chosen, caches filled, code compiled."""


@dataclass(frozen=True, kw_only=True)
class Flops:
    """Products of a step on this rank."""

    model: int
    """Three times the forward, or it and the gradients where that is less: locked towers."""
    hardware: int
    """What was computed: recomputed blocks, second passes, teachers and Muon's products too."""


def profile_command(
    *, recipe: Path, overrides: list[str], steps: int, out: Path, memory: bool
) -> None:
    """Write a trace of every rank and a table, and print rank 0's.

    Raises:
        UsageError: a mistake in the recipe or the data, the folder is not empty, or there is no
            GPU whose memory a snapshot would show.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # else a CPU's trace tells of GPUs it misses
    loaded = load_recipe(recipe, [*overrides, "--run.dir", escape_path(str(out))])
    layout = build_layout(loaded.parallel, pick_device(loaded.train.device))
    try:
        if memory and layout.device.type != "cuda":
            raise UsageError(
                f"--memory shows what a GPU's memory holds, and this runs on {layout.device.type}; "
                "leave it out"
            )
        on_rank_0(lambda: _make_folder(out))
        fast = fast_products(layout.device, tf32=loaded.train.precision == "tf32")
        kept = kept_memory(layout.device)
        with waiting(loaded.data.retry_seconds), fast, kept:
            _profile(build_run(loaded, layout), steps=steps, out=out, memory=memory)
    finally:
        leave_ranks()


def _peak(run: Run) -> float | None:
    given, precision = run.recipe.run.peak_tflops, run.recipe.train.precision
    return peak_flops(run.layout.device, precision=precision, peak_tflops_given=given)


def _make_folder(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"out = {out} is not an empty folder; name a new one by --out")
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)


def _profile(run: Run, *, steps: int, out: Path, memory: bool) -> None:
    available = run.total_steps
    if steps + _WARM_UP > available:
        raise UsageError(
            f"--steps {steps} and {_WARM_UP} to warm up are more than the {available} steps of the "
            "recipe; raise train.steps or lower --steps"
        )
    if run.data.phases.number(steps + _WARM_UP - 1) > 0:
        raise UsageError(
            f"--steps {steps} and {_WARM_UP} to warm up are more than the "
            f"{run.data.phases.firsts[1]} of train.phase[0], and a table is of one phase; lower "
            "--steps"
        )
    device, rank = run.layout.device, own_rank()
    batches, transfer = run.data.iterate(0, steps + _WARM_UP), Transfer(device)
    try:
        flops = _warm_up(run, batches, transfer)
        activities = [ProfilerActivity.CPU]
        if device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        # One cycle: torch 2.11 warns where nobody says that its events are kept.
        traced = profile(activities=activities, acc_events=True)
        with _memory_history(out, rank, wanted=memory), traced as profiler:
            for _ in range(steps):
                with region("step"):
                    _take_step(run, batches, transfer)
            if device.type == "cuda":
                torch.cuda.synchronize()
    finally:
        batches.close()
    trace = out / f"trace.rank{rank}.json.gz"
    with writing(trace):
        profiler.export_chrome_trace(str(trace))
        with gzip.open(trace, "rt", encoding="utf-8") as file:
            times = read_step_times(json.load(file)["traceEvents"])
        table = _Table(times=times, flops=flops, peak=_peak(run), run=run)
        path = out / f"times.rank{rank}.json"
        path.write_text(json.dumps(table.as_json(), indent=2) + "\n", encoding="utf-8")
    if run.layout.is_main:
        table.print()
        print(f"wrote {out}: {trace.name} (open it at ui.perfetto.dev), {path.name}")


def _take_step(run: Run, batches: Iterator[Any], transfer: Transfer) -> Any:
    """As the training loop does, without its log, evaluations and checkpoints."""
    with region("waiting for data"):
        batch = next(batches)
    run.take_step(batch, transfer)
    return batch


def _warm_up(run: Run, batches: Iterator[Any], transfer: Transfer) -> Flops | None:
    """The steps before the trace -> the products of one, counted as they are called; None under
    train.compile, whose code is not seen."""
    if is_compiled(run.state.stages):
        for _ in range(_WARM_UP):
            _take_step(run, batches, transfer)
        return None
    with FlopCount() as whole:
        batch = _take_step(run, batches, transfer)
    state, batch = run.state, batch.to(run.layout.device)
    with FlopCount() as forward, torch.no_grad():
        state.schedule.eval(state.objective.images(batch), state.objective.rows(batch))
    for _ in range(_WARM_UP - 1):
        _take_step(run, batches, transfer)
    needed = forward.total + whole.gradients
    return Flops(model=min(3 * forward.total, needed), hardware=whole.total)


@contextmanager
def _memory_history(out: Path, rank: int, *, wanted: bool) -> Iterator[None]:
    """In the context every allocation of the GPU is noted, and written at its end."""
    if not wanted:
        yield
        return
    torch.cuda.memory._record_memory_history()
    yield
    path = out / f"memory.rank{rank}.pickle"
    with writing(path):
        torch.cuda.memory._dump_snapshot(str(path))
    torch.cuda.memory._record_memory_history(enabled=None)


@dataclass(frozen=True, kw_only=True)
class _Table:
    """What rank 0 prints and every rank writes."""

    times: StepTimes
    flops: Flops | None
    peak: float | None
    """FLOPs a second of this device at most, where that is known."""
    run: Run

    def utilisation(self) -> dict[str, float]:
        """MFU and HFU, where both products and peak are known."""
        if self.flops is None or self.peak is None:
            return {}
        most = self.peak * self.times.step / 1e3
        return {"mfu": self.flops.model / most, "hfu": self.flops.hardware / most}

    def as_json(self) -> dict[str, Any]:
        """Everything, in milliseconds a step."""
        flops = {} if self.flops is None else asdict(self.flops)
        bound = what_bounds(self.times)
        return asdict(self.times) | {"flops": flops, **self.utilisation(), "bound": bound}

    def print(self) -> None:
        """The table, what is known of the products, and the sentence."""
        times = self.times
        rows = self.run.data.plan.batch_size
        print(
            f"{times.steps} steps of {times.step:,.1f} ms on {self.run.layout} "
            f"({rows / times.step * 1e3:,.1f} samples/s), "
            f"{self.run.recipe.train.precision}; this rank's time:"
        )
        table = Table(box=None, pad_edge=False)
        for heading in ("", "ms a step", "share"):
            table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
        shown = dict(times.parts)
        if times.idle is not None:
            shown |= {"waiting for data (host)": times.waiting, "idle": times.idle}
        if times.communication:
            shown["communication"] = times.communication
            if times.idle is not None:
                shown["communication alone"] = times.exposed
        for name, value in shown.items():
            table.add_row(name, f"{value:,.1f}", f"{value / times.step:.1%}")
        Console(width=100).print(table, highlight=False)
        print(self._products())
        print(what_bounds(times))

    def _products(self) -> str:
        if self.flops is None:
            return "products are not counted under train.compile, so there is no MFU"
        rate = self.flops.model / self.times.step * 1e3
        line = (
            f"{self.flops.model / 1e9:,.3g} GFLOPs a step and rank "
            f"({self.flops.hardware / 1e9:,.3g} computed): {rate / 1e12:,.3g} TFLOP/s"
        )
        if shares := self.utilisation():
            return f"{line}, MFU {shares['mfu']:.1%}, HFU {shares['hfu']:.1%}"
        return f"{line}; no MFU, the device's peak is not known: give run.peak_tflops"
