"""The MFU: what is known of devices, and the figure in a run's metrics."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from mmtrain.cli import main
from mmtrain.loading import load
from mmtrain.models.flops import clip_flops
from mmtrain.parallel.accelerators import ACCELERATORS, find_accelerator, peak_tflops
from mmtrain.peft.lora import LoraConfig, apply_lora
from mmtrain.train.utilisation import RowFlops, Utilisation, peak_flops, training_work

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H100 NVL", "h100-nvl"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA H200 NVL", "h200-nvl"),
        ("NVIDIA GH200 480GB", None),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA B200", "b200"),
        ("AMD Instinct MI300X", "mi300x"),
        ("NVIDIA L40", None),
        ("NVIDIA GeForce RTX 3060", None),
    ],
)
def test_a_drivers_name_stands_for_a_device(name, known):
    found = find_accelerator(name)
    assert (found and found.name) == known


def test_a_peak_is_that_of_the_precision_and_unknown_where_the_table_has_none():
    for one in ACCELERATORS:
        assert peak_tflops(one, "bf16") == peak_tflops(one, "bf16-pure") == one.bf16_tflops
        assert peak_tflops(one, "fp32") == one.fp32_tflops < one.bf16_tflops
        assert peak_tflops(one, "fp64") is None and peak_tflops(one, "float8") is None
    assert peak_flops(CPU, precision="fp32", peak_tflops_given=None) is None
    assert peak_flops(CPU, precision="fp64", peak_tflops_given=0.5) == 5e11


def test_the_share_follows_the_newest_batch():
    utilisation = Utilisation(lambda n: RowFlops(model=n, hardware=max(n, 30)), peak=1000.0)
    utilisation.see(5)
    assert utilisation.figures(10.0) == {"mfu": 0.05, "hfu": 0.3}
    utilisation.see(40)
    assert utilisation.figures(10.0) == {"mfu": 0.4}


def test_what_is_locked_or_adapted_costs_less():
    """Of four blocks of equal size."""

    def work(tower: nn.Sequential) -> float:
        return training_work(tower, nn.ModuleDict({str(i): b for i, b in enumerate(tower)}))

    tower = nn.Sequential(*(nn.Linear(8, 8) for _ in range(4)))
    assert work(tower) == 3
    tower.requires_grad_(False)
    assert work(tower) == 1
    tower[3].requires_grad_()
    assert work(tower) == 1.5
    apply_lora(tower, LoraConfig(rank=1, targets=("*",)))
    for name, weight in tower.named_parameters():
        weight.requires_grad_("lora" in name)
    assert 2 < work(tower) < 2.3


def run_words(run: Path, *words: str) -> list[str]:
    """A run of one step with a peak."""
    start = ["train", "configs/debug_clip.toml", "--train.steps", "1", "--data.workers", "0"]
    start += ["--train.batch_size", "4", "--train.microbatches", "1", "--train.log_every", "1"]
    return [*start, "--run-dir", str(run), "--run.peak_tflops", "0.25", *words]


@pytest.mark.parametrize(
    ("words", "ratio"),
    [
        (["--train.microbatches", "2"], 4 / 3),
        (["--parallel.recompute.kind", "full"], 4 / 3),
        (["--parallel.recompute.kind", "full", "--parallel.recompute.every", "2"], 3.5 / 3),
        (["--parallel.recompute.kind", "full", "--train.microbatches", "2"], 5 / 3),
        (["--parallel.recompute.kind", "selective"], None),
        (["--loss.kind", "siglip", "--train.microbatches", "2"], None),
    ],
)
def test_what_is_computed_again_is_in_the_hfu(words, ratio, tmp_path, capsys):
    assert main([*run_words(tmp_path / "run"), "--eval.zero_shot", "[]", *words]) == 0
    (line,) = map(json.loads, (tmp_path / "run/metrics.jsonl").read_text().splitlines())
    shown, page = capsys.readouterr().err, (tmp_path / "run/report.html").read_text()
    assert ("hfu" in line) == ("HFU" in shown) == ("HFU" in page) == (ratio is not None)
    assert "MFU" in page
    if ratio is not None:
        assert line["hfu"] == pytest.approx(ratio * line["mfu"])
        assert f"HFU {line['hfu']:.1%}" in shown


def test_a_run_says_its_mfu_where_the_peak_is_given(tmp_path, capsys):
    run = tmp_path / "run"
    assert main(run_words(run)) == 0
    (line,) = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    config = load(run)[0].config
    at_most = clip_flops(config).training * line["samples_per_second"] / 0.25e12
    least = clip_flops(config, text_length=2, num_patches=config.vision.num_kept)
    at_least = least.training * line["samples_per_second"] / 0.25e12
    assert at_least < line["mfu"] <= at_most
    assert f"MFU {line['mfu']:.1%}" in capsys.readouterr().err


def test_patches_that_are_left_out_and_smaller_images_are_less_work(tmp_path):
    """Of a step in which a phase says so, and of the whole run."""
    phases = "[{steps = 1}, {steps = 1, image_size = 16}, {steps = 1, patch_dropout = 0.5}]"
    words = ["--train.steps", "none", "--train.phase", phases, "--eval.zero_shot", "[]"]
    assert main([*run_words(tmp_path / "phases"), *words]) == 0
    half = ["--model.vision.patch_dropout", "0.5", "--eval.zero_shot", "[]"]
    assert main([*run_words(tmp_path / "half"), *half]) == 0
    config = load(tmp_path / "phases")[0].config
    found = []
    for name in ("phases", "half"):
        text = (tmp_path / name / "metrics.jsonl").read_text()
        for line in map(json.loads, text.splitlines()):
            found.append(line["mfu"] * 0.25e12 / line["samples_per_second"] / 3)
    patches = [config.vision.num_kept, replace(config.vision, image_size=16).num_kept]
    patches += [config.vision.num_patches // 2] * 2
    texts = range(2, config.text.context_length + 1)
    for flops, num in zip(found, patches, strict=True):
        ones = (clip_flops(config, text_length=length, num_patches=num) for length in texts)
        near = [one.image + one.text for one in ones]
        assert flops in [pytest.approx(one) for one in near]


@pytest.mark.parametrize("value", ["0", "-1", "inf"])
def test_a_peak_that_cannot_be_is_refused(value, tmp_path, capsys):
    words = ["train", "configs/debug_clip.toml", "--run-dir", str(tmp_path / "run")]
    assert main([*words, "--run.peak_tflops", value]) == 2
    assert "run" in capsys.readouterr().err


def test_a_peak_without_effect_is_refused(tmp_path, capsys):
    words = ["train", "configs/vqa_shapes.toml", "--run-dir", str(tmp_path / "run")]
    status = main([*words, "--run.peak_tflops", "1"])
    assert status == 2
