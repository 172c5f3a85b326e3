"""What a CUDA device computes is what the CPU computes, through the commands a user types.

Runs in `make test-gpu`. MMTRAIN_TEST_DEVICE=cpu rehearses it where there is no GPU: every command
runs and every comparison is made, of the CPU with itself.
"""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from mmtrain.cli import main
from mmtrain.losses import clip_loss, siglip_loss

pytestmark = pytest.mark.gpu

DEVICE = os.environ.get("MMTRAIN_TEST_DEVICE", "cuda")
ROOT = Path(__file__).parents[2]
DATA = str(ROOT / "mmtrain/demo/debug/train.tar")
RECIPES = {
    "clip": ("debug_clip",),
    "siglip": ("debug_siglip",),
    "terms": ("debug_terms",),
    "one pass": ("debug_clip", "--train.microbatches", "1"),
    "text groups": ("debug_clip", "--train.text_groups", "2"),
    "muon": ("debug_clip", "--optim.kind", "muon"),
    "locked": ("debug_siglip", "--lock.vision", "1"),
}


def train(run: Path, device: str, recipe: str, *words: str, steps: int = 6) -> list[dict]:
    """Train an embedded recipe -> the lines of its metrics."""
    command = ["train", str(ROOT / f"configs/{recipe}.toml"), "--run-dir", str(run)]
    command += ["--data.train", DATA, "--train.device", device, "--train.log_every", "1"]
    assert main([*command, "--train.steps", str(steps), *words]) == 0
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if "loss" in line]


def numbers(lines: list[dict], *names: str) -> dict[str, list[float]]:
    return {name: [line[name] for line in lines] for name in names or ("loss", "grad_norm")}


def near(lines: list[dict], want: list[dict], tolerance: float) -> None:
    for name, values in numbers(want).items():
        assert numbers(lines)[name] == pytest.approx(values, rel=tolerance), name


def weights(run: Path) -> dict[str, torch.Tensor]:
    """Of the run's export."""
    (file,) = run.glob("export/*.safetensors")
    return load_file(file)


@pytest.mark.parametrize("name", RECIPES)
def test_a_run_is_that_of_the_cpu(name: str, tmp_path: Path) -> None:
    """In fp64 losses, gradients' norms and updated weights are equal but for the order of sums."""
    recipe, *words = RECIPES[name]
    words += ["--train.precision", "fp64"]
    want = train(tmp_path / "cpu", "cpu", recipe, *words)
    near(train(tmp_path / "device", DEVICE, recipe, *words), want, 1e-9)
    got = weights(tmp_path / "device")
    for key, tensor in weights(tmp_path / "cpu").items():  # the export is of fp32
        torch.testing.assert_close(got[key], tensor, rtol=1e-6, atol=1e-7, msg=key)


@pytest.mark.parametrize(
    ("precision", "tolerance"),
    [("fp32", 1e-4), ("bf16", 3e-2), ("bf16-main", 3e-2), ("bf16-pure", 5e-2), ("fp16", 1e-2)],
)
def test_a_format_trains_as_fp64_does(precision: str, tolerance: float, tmp_path: Path) -> None:
    want = train(tmp_path / "fp64", "cpu", "debug_clip", "--train.precision", "fp64")
    words = ["--train.precision", precision]
    if precision == "fp16":  # the usual scale leaves the first updates out
        words += ["--train.loss_scale.initial", "256"]
    got = train(tmp_path / precision, DEVICE, "debug_clip", *words)
    losses = numbers(got)["loss"]
    assert losses == pytest.approx(numbers(want)["loss"], rel=tolerance)
    assert losses[-1] < losses[0]


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # torch's compiler looks
@pytest.mark.parametrize("precision", ["fp32", "bf16", "bf16-main"])
def test_compiled_blocks_train_as_others_do(precision: str, tmp_path: Path) -> None:
    words = ("--train.precision", precision)
    want = train(tmp_path / "eager", DEVICE, "debug_clip", *words)
    got = train(tmp_path / "compiled", DEVICE, "debug_clip", *words, "--train.compile", "true")
    near(got, want, 1e-3 if precision == "fp32" else 5e-2)


@pytest.mark.parametrize("name", ["clip", "siglip", "terms"])
def test_a_resume_repeats_the_run_bit_for_bit(name: str, tmp_path: Path) -> None:
    recipe, *words = RECIPES[name]
    words += ["--train.deterministic", "true", "--train.checkpoint_every", "4"]
    whole = train(tmp_path / "whole", DEVICE, recipe, *words, steps=8)
    again = train(tmp_path / "again", DEVICE, recipe, *words, steps=8)
    assert numbers(again) == numbers(whole)
    train(tmp_path / "halves", DEVICE, recipe, *words, steps=4)
    longer = ("--resume-with-changes", *words)
    halves = train(tmp_path / "halves", DEVICE, recipe, *longer, steps=8)
    first = train(tmp_path / "first", DEVICE, recipe, *words, steps=4)
    assert numbers(halves)["loss"][:4] == numbers(first)["loss"]
    assert len(halves) == 8


@pytest.mark.parametrize("kind", ["clip", "siglip"])
@pytest.mark.parametrize("rows", [1000, 9000])
def test_a_loss_equals_its_formula(kind: str, rows: int) -> None:
    """Over several blocks of a GPU: value and gradients against all logits at once, in fp64."""
    generator = torch.Generator().manual_seed(0)
    features = [
        F.normalize(torch.randn(rows, 64, generator=generator), dim=-1).to(DEVICE) for _ in "it"
    ]
    ours = [x.clone().requires_grad_() for x in features]
    exact = [x.double().requires_grad_() for x in features]
    logits = 14.3 * exact[0] @ exact[1].T
    if kind == "clip":
        loss = clip_loss(ours[0], ours[1], logit_scale=14.3)
        own = torch.arange(rows, device=DEVICE)
        want = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    else:
        loss = siglip_loss(ours[0], ours[1], logit_scale=14.3, logit_bias=-10.0)
        signs = 2 * torch.eye(rows, device=DEVICE) - 1
        want = -F.logsigmoid(signs * (logits - 10)).sum() / rows
    assert loss.item() == pytest.approx(want.item(), rel=1e-5)
    grads, wanted = torch.autograd.grad(loss, ours), torch.autograd.grad(want, exact)
    for got, right in zip(grads, wanted, strict=True):
        assert (got - right).abs().max() <= 1e-4 * right.abs().max()


def test_an_evaluation_is_that_of_the_cpu(tmp_path: Path) -> None:
    train(tmp_path / "run", DEVICE, "debug_clip")
    results = []
    for device in ("cpu", DEVICE):
        out = tmp_path / f"{device}_{len(results)}.json"
        words = ["eval", "retrieval", "--model", str(tmp_path / "run"), "--data", DATA]
        assert main([*words, "--device", device, "--out", str(out)]) == 0
        results.append(json.loads(out.read_text()))
    recalls = [{k: v for k, v in result.items() if "recall" in k} for result in results]
    assert recalls[0] and recalls[1] == pytest.approx(recalls[0], abs=0.02)  # a tie may turn
