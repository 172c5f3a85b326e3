"""Where a device would be waited for is counted, on a machine that has none."""

import importlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.counting import Counts

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")


def _count(job: Callable[[Tensor, Tensor], object]) -> Counts:
    """Of a job over a tensor of the host's and one of the device's, each [4]."""
    host, device, counts = torch.arange(4.0), torch.arange(4.0) + 1, Counts()
    counts.give_host([host])
    with counts:
        job(host, device)
    return counts


@pytest.mark.parametrize(
    "job",
    [
        lambda host, device: device.sum().item(),
        lambda host, device: device.tolist(),
        lambda host, device: bool(device.sum() > 0),
        lambda host, device: int((device + host.to(CPU, non_blocking=True)).max()),
        lambda host, device: host.to(CPU),
        lambda host, device: host.copy_(device),
        lambda host, device: torch.tensor([1.0, 2.0], device=CPU),
        lambda host, device: device.new_tensor([1.0]),
        lambda host, device: device[device > 2],
        lambda host, device: device.nonzero(),
        lambda host, device: torch.repeat_interleave(device, device.long()),
        lambda host, device: torch.full((), 2.0, device=CPU).item(),
    ],
)
def test_each_read_and_each_blocking_copy_is_a_wait(job: Callable[..., object]) -> None:
    """However the host comes to need what the device has not computed yet."""
    assert sum(_count(job).waits.values()) == 1


@pytest.mark.parametrize(
    "job",
    [
        lambda host, device: int((host + torch.ones(4)).max()),
        lambda host, device: host.to(CPU, non_blocking=True) + device,
        lambda host, device: host.copy_(device, non_blocking=True).tolist(),
        lambda host, device: torch.where(device > 2, device, 0),
        lambda host, device: device[host.long().to(CPU, non_blocking=True)],
        lambda host, device: device.repeat_interleave(2),
        lambda host, device: torch.full((3,), 2.0, device=CPU),
        lambda host, device: torch.tensor([1.0, 2.0]).tolist(),
    ],
)
def test_what_the_host_has_anyway_is_none(job: Callable[..., object]) -> None:
    """Its own numbers, and copies that it does not wait for."""
    assert not _count(job).waits


def test_operations_casts_and_bytes_of_the_device() -> None:
    """Views and the host's own work do not count; a change of format counts once."""
    counts = _count(lambda host, device: (host * 2, device.view(2, 2).t().bfloat16() * 2))
    assert counts.operations == {"cast": 1, "mul": 1} and counts.casts == 1
    assert counts.bytes_written.total() == 2 * 4 * 2


@pytest.mark.parametrize(
    "case", ["one, 4 microbatches, 2 text groups", "one, fp16", "one, average, Muon", "choose"]
)
def test_a_step_waits_for_nothing(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two log lines; several ranks are in the test below."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))  # no package's
    step_counts = importlib.import_module("step_counts")
    if case == "choose":
        step_counts.draw_shapes(tmp_path)
    counts = step_counts.count_step(step_counts.CASES[case], tmp_path)
    assert counts.operations.total() > 400 and not counts.waits


@pytest.mark.slow
def test_counts_are_those_that_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every block and every case; `python benchmarks/step_counts.py --out FILE` makes them."""
    kept = json.loads((ROOT / "benchmarks/results/step_counts.json").read_text(encoding="utf-8"))
    if kept["torch"] != torch.__version__:
        pytest.skip(f"counted with torch {kept['torch']}")
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    step_counts = importlib.import_module("step_counts")
    assert step_counts.all_counts(list(step_counts.CASES)) == kept
    assert not any("waits" in step for step in kept["steps"].values())
    assert kept["blocks"]["bf16-main"]["ViT-B-16"]["operations"] <= 45
    assert kept["blocks"]["bf16-main"]["ViT-B-16"]["casts"] <= 2
    beside = {name: step.get("collectives", {}) for name, step in kept["steps"].items()}
    assert max(each.get("beside", 0) for each in beside.values()) <= 6
