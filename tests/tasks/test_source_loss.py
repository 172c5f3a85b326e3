"""What each source of a mixture loses: as the formula says, by any ranks and microbatches."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mmtrain.cli import main
from mmtrain.losses import SiglipByParts, clip_loss, siglip_loss
from mmtrain.losses.config import LossConfig
from mmtrain.parallel.mesh import ParallelConfig
from tests.parallel.tiny_clip import SIGMOID, SOFTMAX, Trained, make_batch, tiny_config
from tests.ranks import run_ranks

NAMES = ("web", "photos", "none of it", "drawings")
SOURCE_B = torch.tensor([0, 1, 0, 3, 3, 0, 1, 1])
LOGITS = {"logit_scale": 7.0}


def features(num: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(num)
    made = torch.randn(2, num, 5, generator=generator, dtype=torch.float64)
    image, text = F.normalize(made, dim=-1)
    return image, text


def of_rows(kind: str, image: Tensor, text: Tensor) -> Tensor:
    """The part of each row by its formula, all of them real and without labels."""
    logits, own = 7 * image @ text.T, torch.arange(len(image))
    if kind == "clip":
        entropies = [F.cross_entropy(x, own, reduction="none") for x in (logits, logits.T)]
        return (entropies[0] + entropies[1]) / 2
    sign = 2 * torch.eye(len(image), dtype=image.dtype) - 1
    return -F.logsigmoid(sign * (logits - 3)).sum(1)


@pytest.mark.parametrize("num_padding", [0, 3])
@pytest.mark.parametrize("kind", ["clip", "siglip", "parts"])
def test_a_rows_part_is_that_of_the_formula(kind: str, num_padding: int):
    image, text = features()
    num = 8 - num_padding
    valid = torch.arange(8) < num
    told = torch.full((8,), 99.0, dtype=torch.float64)
    arguments: dict[str, Any] = LOGITS | {"valid_B": valid, "row_loss_B": told}
    if kind == "clip":
        loss = clip_loss(image, text, **arguments)
    elif kind == "siglip":
        loss = siglip_loss(image, text, logit_bias=-3.0, **arguments)
    else:
        parts = SiglipByParts(text, logit_bias=-3.0, **arguments)
        for rows in (slice(5, 8), slice(0, 5)):
            parts.add(image[rows], rows)
        loss = parts.finish().loss
    expected = of_rows("clip" if kind == "clip" else "siglip", image[:num], text[:num])
    torch.testing.assert_close(told[:num], expected)
    assert not told[num:].any()
    torch.testing.assert_close(told.sum() / num, loss)


def told(loss: LossConfig, parallel: ParallelConfig | None, microbatches: int) -> dict[str, Any]:
    """What two steps come to, of the numbers that a log line has."""
    trained = Trained(
        tiny_config(2), loss, parallel=parallel, num_microbatches=microbatches, sources=NAMES
    )
    losses = []
    for step in range(2):
        batch = dataclasses.replace(make_batch(step=step), source_B=SOURCE_B.roll(step))
        losses.append(trained.backward(batch).item())
    trained.objective.settle()
    found = trained.objective.figures()["source_loss"]
    trained.objective.settle()
    assert trained.objective.figures()["source_loss"] == {}
    return found | {"mean": sum(losses) / 2}


@pytest.mark.parametrize("loss", [SOFTMAX, SIGMOID])
def test_sources_weigh_up_to_the_loss(loss: LossConfig):
    found = told(loss, None, 1)
    mean = found.pop("mean")
    assert list(found) == ["web", "photos", "drawings"]
    real = torch.ones(8)
    real[-1] = 0  # the last row is padding, of another source in each step
    rows = sum(torch.bincount(SOURCE_B.roll(step), weights=real, minlength=4) for step in range(2))
    assert isinstance(rows, Tensor)
    counts = dict(zip(NAMES, rows.tolist(), strict=True))
    assert sum(found[name] * counts[name] for name in found) / 14 == pytest.approx(mean, rel=1e-12)
    assert len({round(value, 6) for value in found.values()}) == 3


@pytest.mark.parametrize("loss", [SOFTMAX, SIGMOID])
@pytest.mark.parametrize("microbatches", [2, 8])
def test_microbatches_tell_the_same(loss: LossConfig, microbatches: int):
    assert told(loss, None, microbatches) == pytest.approx(told(loss, None, 1), rel=1e-9)


@pytest.mark.slow
def test_ranks_tell_the_same(tmp_path: Path):
    expected = {loss.kind: told(loss, None, 1) for loss in (SOFTMAX, SIGMOID)}
    (tmp_path / "expected.json").write_text(json.dumps(expected))
    run_ranks(check_ranks, 2, str(tmp_path / "expected.json"))


def check_ranks(rank: int, path: str) -> None:
    expected = json.loads(Path(path).read_text())
    layouts = (
        ParallelConfig(),
        ParallelConfig(dp_kind="ddp"),
        ParallelConfig(pp=2, schedule="1F1B"),
        ParallelConfig(tp=2),
    )
    for parallel in layouts:
        for loss in (SOFTMAX, SIGMOID):
            found = told(loss, parallel, 2)
            assert found == pytest.approx(expected[loss.kind], rel=1e-9), (rank, parallel)


def test_a_run_of_a_mixture_logs_it_and_its_report_shows_it(tmp_path: Path):
    run = tmp_path / "run"
    words = ["--run-dir", str(run), "--train.steps", "7", "--train.log_every", "3"]
    assert main(["train", "configs/debug_mixture.toml", *words]) == 0
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [3, 6, 7]
    for row, before in zip(rows, [{}, *rows], strict=False):
        samples, earlier = row["source_samples"], before.get("source_samples", {})
        counts = {name: samples[name] - earlier.get(name, 0) for name in samples}
        assert row["source_loss"].keys() == {name for name in counts if counts[name]}
    # Of one step alone, its loss.
    last, counts = rows[-1]["source_loss"], {n: samples[n] - earlier[n] for n in samples}
    mean = sum(last[name] * counts[name] for name in last) / sum(counts.values())
    assert mean == pytest.approx(rows[-1]["loss"], rel=1e-5)
    assert "Loss of each source" in (run / "report.html").read_text()
