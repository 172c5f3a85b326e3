"""The MFU: what is known of devices, and the figure in a run's metrics."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from mmtrain.build.utilisation import grouped_lengths
from mmtrain.build.workload import read_workload
from mmtrain.cli import main
from mmtrain.loading import load
from mmtrain.models import TextConfig, TextTower
from mmtrain.models.flops import clip_flops
from mmtrain.models.parameters import lock_tower
from mmtrain.nn import TransformerConfig
from mmtrain.parallel.accelerators import ACCELERATORS, find_accelerator, peak_tflops
from mmtrain.peft.lora import LoraConfig, apply_lora
from mmtrain.plan.cost import row_work
from mmtrain.plan.layout import plan_layout
from mmtrain.recipe import load_recipe
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
        blocks = nn.ModuleDict({str(i): b for i, b in enumerate(tower)})
        return training_work(tower, blocks, embed=None)

    tower = nn.Sequential(*(nn.Linear(8, 8) for _ in range(4)))
    assert work(tower) == 3
    tower.requires_grad_(False)
    assert work(tower) == 1
    tower[3].requires_grad_()
    assert work(tower) == 1.5
    tower.requires_grad_(False)
    tower[1].requires_grad_()  # and the gradients go through what lies above it
    assert work(tower) == 1 + 3 / 4 + 1 / 4
    apply_lora(tower, LoraConfig(rank=1, targets=("*",)))
    for name, weight in tower.named_parameters():
        weight.requires_grad_("lora" in name)
    assert 2 < work(tower) < 2.3


def test_tables_are_in_no_product_and_what_trains_before_the_blocks_asks_for_all_gradients():
    """As the learned tokens of peft.kind = "context" do."""
    core = TransformerConfig(dim=32, num_layers=6, num_heads=2, mask="causal")
    config = TextConfig(transformer=core, vocab_size=1000, context_length=8, num_context=2)
    text = TextTower(config, embed_dim=8)
    blocks = text.transformer.blocks
    lock_tower(text, unlocked_layers=2)
    below = 1 / len(blocks)
    locked = training_work(text, blocks, embed=text.embed)
    assert locked == pytest.approx(1 + 2 * below, rel=0.03)
    text.requires_grad_(False)
    text.embed.context.requires_grad_()
    assert training_work(text, blocks, embed=text.embed) == 2
    trunk = nn.Linear(4, 4)
    assert training_work(trunk, nn.ModuleDict(), embed=trunk) == 3


def test_groups_are_cut_to_their_own_longest_text():
    lengths = torch.tensor([9, 0, 5, 7, 3, 4, 8, 6])
    assert [*grouped_lengths(lengths, 1, 2)] == [(5, 4), (9, 4)]
    assert [*grouped_lengths(lengths, 2, 2)] == [(5, 2), (9, 2), (4, 2), (8, 2)]
    assert [*grouped_lengths(lengths, 1, 8)] == [(n, 1) for n in (1, *range(3, 10))]


def run_words(run: Path, *words: str) -> list[str]:
    """A run of one step with a peak."""
    start = ["train", "configs/debug_clip.toml", "--train.steps", "1", "--data.workers", "0"]
    start += ["--train.batch_size", "4", "--train.microbatches", "1", "--train.log_every", "1"]
    return [*start, "--run-dir", str(run), "--run.peak_tflops", "0.25", *words]


FULL, SOME = ["--parallel.recompute.kind", "full"], ["--parallel.recompute.kind", "selective"]


@pytest.mark.parametrize(
    ("words", "is_more"),
    [
        (["--train.microbatches", "2"], True),
        (FULL, True),
        ([*FULL, "--parallel.recompute.every", "2"], True),
        ([*FULL, "--train.microbatches", "2"], True),
        (["--lock.vision", "0", "--train.microbatches", "2"], True),
        ([*FULL, "--lock.vision", "2", "--train.microbatches", "2"], True),
        ([*SOME, "--parallel.recompute.keep", '["attention"]'], True),
        (SOME, False),
        (["--lock.vision", "0"], False),
        (["--loss.kind", "siglip", "--train.microbatches", "2"], False),
    ],
    ids=str,
)
def test_what_is_computed_again_is_in_the_hfu(words, is_more, tmp_path, capsys):
    """As it is in the plan, which is held against what torch counts."""
    given = ["--train.batch_size", "4", "--train.microbatches", "1", *words]
    workload = read_workload(load_recipe(Path("configs/debug_clip.toml"), given))
    planned = row_work(workload, plan_layout(workload, world_size=1))
    ratio = planned.hardware / planned.model if is_more else None
    assert main([*run_words(tmp_path / "run"), "--eval.zero_shot", "[]", *words]) == 0
    (line,) = map(json.loads, (tmp_path / "run/metrics.jsonl").read_text().splitlines())
    shown, page = capsys.readouterr().err, (tmp_path / "run/report.html").read_text()
    assert ("hfu" in line) == ("HFU" in shown) == ("HFU" in page) == (ratio is not None)
    assert "MFU" in page
    if ratio is not None:
        assert line["hfu"] == pytest.approx(ratio * line["mfu"], rel=0.03)
        assert f"HFU {line['hfu']:.1%}" in shown


def test_learned_tokens_and_a_teacher_are_work_too(tmp_path):
    """Vectors beside a text run through its tower, and a teacher's forward is the hardware's."""
    words = ["--eval.zero_shot", "[]", "--model.vision.patch_dropout", "0"]
    begun = tmp_path / "begun"
    assert main([*run_words(begun), *words]) == 0
    context = ["--peft.kind", "context", "--peft.num_tokens", "4", "--model.init", str(begun)]
    assert main([*run_words(tmp_path / "context"), *words, *context]) == 0
    terms = f'[{{kind = "distill", teacher = "{begun}"}}]'
    assert main([*run_words(tmp_path / "taught"), *words, "--loss.terms", terms]) == 0
    lines = {
        name: json.loads((tmp_path / name / "metrics.jsonl").read_text())
        for name in ("begun", "context", "taught")
    }
    config = load(begun)[0].config

    def flops(name, kind="mfu"):
        return lines[name][kind] * 0.25e12 / lines[name]["samples_per_second"]

    image = clip_flops(config).image
    texts = [clip_flops(config, text_length=n).text for n in range(40)]
    longest = texts.index(pytest.approx(flops("begun") / 3 - image))
    longest = min(longest, config.text.context_length - 4) + 4  # texts make room
    assert flops("context") == pytest.approx(image + 2 * texts[longest])
    assert flops("taught") == pytest.approx(flops("begun"))
    assert flops("taught", "hfu") == pytest.approx(4 / 3 * flops("begun"))


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
