"""Terms beside the contrastive loss: their values by ten lines of torch, their gradients over every
kind of layout, and what a recipe may not ask of them."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from mmtrain.cli import main
from mmtrain.data.images.transforms import PreprocessConfig
from mmtrain.data.text.tokenizer import TokenizerConfig, build_tokenizer
from mmtrain.loading import load, save_model
from mmtrain.losses import clip_loss
from mmtrain.models import Clip
from mmtrain.nn import unit_norm
from mmtrain.parallel.mesh import ParallelConfig
from mmtrain.tasks.config import LossSection
from mmtrain.tasks.terms import distill
from mmtrain.tasks.terms.distill import DistillConfig
from mmtrain.tasks.terms.matryoshka import MatryoshkaConfig
from tests.mistakes import mistake
from tests.parallel.tiny_clip import TOLERANCE, Trained, make_batch, siglip_config, tiny_config
from tests.ranks import run_ranks

ROOT = Path(__file__).parents[2]
RECIPE = str(ROOT / "configs/debug_clip.toml")
WORDS = ("a red car", "two dogs", "the sun", "a", "green leaf on a table", "x y", "cat", "")


def write_teacher(folder: Path, *, embed_dim: int = 24) -> Path:
    """A model of another size, width and tokenizer than the student's."""
    tokenizer = build_tokenizer(
        TokenizerConfig(
            kind="sentencepiece",
            path=str(ROOT / "mmtrain/demo/debug/sentencepiece.model"),
            context_length=16,
            clean="lower",
        )
    )
    config = siglip_config()
    text = dataclasses.replace(
        config.text, vocab_size=tokenizer.vocab_size, context_length=16, end_token_id=None
    )
    vision = dataclasses.replace(config.vision, image_size=48, patch_dropout=0.0)
    config = dataclasses.replace(config, text=text, vision=vision, embed_dim=embed_dim)
    model = Clip(config).init_weights(5)
    save_model(folder, model=model, tokenizer=tokenizer, preprocess=PreprocessConfig(image_size=48))
    return folder


class WithTexts(Trained):
    """A training whose batches have their captions."""

    def batch(self, step: int) -> Any:
        return dataclasses.replace(make_batch(step=step), texts=WORDS)


def losses_of(teacher: str) -> dict[str, LossSection]:
    """Every term alone, and all at once."""
    affinity = DistillConfig(teacher=teacher, weight=0.5)
    features = DistillConfig(teacher=teacher, target="features", weight=2.0)
    slices = MatryoshkaConfig(dims=(4, 8), weight=0.25)
    return {
        "matryoshka": LossSection(terms=(slices,)),
        "matryoshka of sigmoids": LossSection(kind="siglip", terms=(slices,)),
        "affinity": LossSection(terms=(affinity,), weight=0.5),
        "features": LossSection(terms=(features,)),
        "all": LossSection(kind="siglip", terms=(slices, affinity, features), weight=0.25),
    }


LAYOUTS = {
    "dp": (ParallelConfig(dp_shard=2), 2),
    "ddp": (ParallelConfig(dp_replicate=2, dp_kind="ddp"), 2),
    "tp": (ParallelConfig(tp=2, sequence=False), 2),
    "pp": (ParallelConfig(pp=2), 4),
}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_teacher(tmp_path_factory.mktemp("teacher"), embed_dim=16))


def near(got: dict[str, Tensor], want: dict[str, Tensor], name: str) -> None:
    """Gradients of what is held here, relative to their norm."""
    assert got.keys() <= want.keys() and len(got) > 10
    for key, gradient in got.items():
        error = (gradient - want[key]).norm() / want[key].norm().clamp(min=1e-30)
        assert error < TOLERANCE or want[key].norm() < 1e-14, (name, key, error)


@pytest.mark.parametrize("name", losses_of(""))
def test_microbatches_give_the_gradient_of_one_pass(teacher: str, name: str) -> None:
    loss = losses_of(teacher)[name]
    one = WithTexts(tiny_config(), loss)
    want = one.backward(one.batch(0)).item()
    for num in (2, 4):
        more = WithTexts(tiny_config(), loss, num_microbatches=num)
        assert more.backward(more.batch(0)).item() == pytest.approx(want, rel=1e-12)
        near(more.gradients(), one.gradients(), name)


def in_fp64(path: str, *, key: str) -> tuple[Clip, Any, Any]:
    """A teacher whose features do not hang on the rows of a product, as fp32's last bits can."""
    model, preprocess, tokenizer = load(path, key=key)
    return model.double(), preprocess, tokenizer


@patch.object(distill, "load", in_fp64)
def check_layouts(rank: int, teacher: str) -> None:
    for layout, (parallel, num) in LAYOUTS.items():
        for name, loss in losses_of(teacher).items():
            alone = WithTexts(tiny_config(), loss)
            want = alone.backward(alone.batch(0)).item()
            laid = WithTexts(tiny_config(), loss, parallel=parallel, num_microbatches=num)
            got = laid.backward(laid.batch(0)).item()
            assert got == pytest.approx(want, rel=1e-9), (layout, name)
            near(laid.gradients(), alone.gradients(), f"{layout}: {name}")


@pytest.mark.slow
def test_two_ranks_give_the_gradient_of_one(teacher: str) -> None:
    run_ranks(check_layouts, 2, teacher)


def test_values_are_those_of_the_formulas(teacher: str) -> None:
    """In plain torch, from the outputs of student and teacher."""
    trained = WithTexts(tiny_config(), losses_of(teacher)["all"])
    batch = trained.batch(0)
    objective = trained.objective
    rows = objective.rows(batch)
    with torch.no_grad():
        out = trained.schedule.eval(batch.images_BCHW, rows)
    image, text = (x[batch.valid_B] for x in out[:, :32].split(16, dim=1))
    assert objective.logits.bias is not None
    scale, bias = objective.logits.scale.detach().exp(), objective.logits.bias.detach()

    def sigmoid(image: Tensor, text: Tensor) -> Tensor:
        sign = 2 * torch.eye(len(image)) - 1
        return -F.logsigmoid(sign * (scale * image @ text.T + bias)).sum() / len(image)

    theirs = [rows[f"term1_{part}"][batch.valid_B].double() for part in ("image", "text")]
    ours, (model, *_) = scale * image @ text.T, load(teacher)
    assert model.logit_scale.exp().item() > 2
    taught = model.logit_scale.detach().exp() * theirs[0] @ theirs[1].T
    affinity = sum(
        F.kl_div(x.log_softmax(1), y.log_softmax(1), log_target=True, reduction="batchmean") / 2
        for x, y in ((ours, taught), (ours.T, taught.T))
    )
    slices = sum(sigmoid(unit_norm(image[:, :d]), unit_norm(text[:, :d])) for d in (4, 8))
    features = ((image - theirs[0]).square().sum() + (text - theirs[1]).square().sum()) / 7
    want = 0.25 * sigmoid(image, text) + 0.25 * slices + 0.5 * affinity + 2 * features
    got = trained.backward(batch)
    assert got.item() == pytest.approx(want.item(), rel=1e-6)  # the teacher is fp32
    figures = objective.figures()
    for kind, value in (("matryoshka", slices), ("distill", affinity), ("distill_2", features)):
        assert figures[f"loss/{kind}"] == pytest.approx(float(value), rel=1e-6), kind


def test_a_teacher_sees_the_crops_and_captions_of_the_batch(teacher: str) -> None:
    """As it would by itself: images in its own size, its own tokenizer's ids, one text at a
    time; a text without any token too."""
    trained = WithTexts(tiny_config(), losses_of(teacher)["affinity"])
    batch = trained.batch(0)
    rows = trained.objective.rows(batch)
    model, preprocess, tokenizer = load(teacher)
    for row, text in enumerate(batch.texts):
        pixels = batch.images_BCHW[row].permute(1, 2, 0).numpy()
        size = preprocess.config.image_size
        resized = Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC)
        image = torch.from_numpy(np.asarray(resized).copy()).permute(2, 0, 1)[None]
        with torch.no_grad():
            mine = model.encode_image(image)[0], model.encode_text(tokenizer([text]))[0]
        # Pillow's filter rounds on the way: cosines differ by 1e-4, without a resize by 1e-1.
        assert rows["term0_image"][row] @ mine[0] > 1 - 1e-3
        assert rows["term0_text"][row] @ mine[1] > 1 - 1e-6, text


@pytest.mark.parametrize("num", [1, 4])
def test_gradients_are_weighted_sums(teacher: str, num: int) -> None:
    """Three times the weights are three times the gradient, each term's by its own."""
    kinds = losses_of(teacher)

    def gradients(weights: tuple[float, float, float]) -> dict[str, Tensor]:
        first, *others = weights
        chosen = (kinds["affinity"].terms[0], kinds["features"].terms[0])
        terms = tuple(
            dataclasses.replace(term, weight=weight)
            for term, weight in zip(chosen, others, strict=True)
        )
        trained = WithTexts(
            tiny_config(), LossSection(terms=terms, weight=first), num_microbatches=num
        )
        trained.backward(trained.batch(0))
        return trained.gradients()

    base = gradients((1.0, 1.0, 1.0))
    more = [gradients(w) for w in ((2.0, 1.0, 1.0), (1.0, 2.0, 1.0), (1.0, 1.0, 2.0))]
    near(
        gradients((2.0, 3.0, 4.0)),
        {
            name: sum((k * (m[name] - x) for k, m in zip((1, 2, 3), more, strict=True)), start=x)
            for name, x in base.items()
        },
        "weights",
    )
    name = "vision.head.projection.weight"
    assert all((one[name] - base[name]).norm() > 1e-6 for one in more)


def test_a_slice_is_the_contrastive_loss_of_a_narrow_model() -> None:
    term = MatryoshkaConfig(dims=(8,))
    trained = Trained(tiny_config(), LossSection(terms=(term,)))
    batch = trained.batch(0)
    trained.backward(batch)
    with torch.no_grad():
        out = trained.schedule.eval(batch.images_BCHW, trained.objective.rows(batch))
    image, text = (unit_norm(x[:, :8]) for x in out.split(16, dim=1))
    scale = trained.objective.logits.scale.exp()
    want = clip_loss(image, text, logit_scale=scale, valid_B=batch.valid_B)
    assert trained.objective.figures()["loss/matryoshka"] == pytest.approx(want.item(), rel=1e-12)


def test_a_teacher_is_nothing_that_trains(teacher: str) -> None:
    trained = WithTexts(tiny_config(), losses_of(teacher)["affinity"])
    model = trained.objective.terms[1].teacher._model
    before = {name: x.clone() for name, x in model.state_dict().items()}
    trained.train(num_steps=2)
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())
    held = {id(p) for p in trained.parameters().values()}
    assert not held & {id(p) for p in model.parameters()}


def run_recipe(run: Path, terms: str, *words: str) -> list[dict[str, Any]]:
    assert main(["train", RECIPE, "--run-dir", str(run), "--loss.terms", terms, *words]) == 0
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_recipe_names_them(tmp_path: Path) -> None:
    """Logged apart, resumed to the bit, recorded; the teacher's path may have a variable."""
    write_teacher(tmp_path / "teacher")
    terms = f'[{{kind = "distill", teacher = "{tmp_path}/teacher", weight = 0.5}}, '
    terms += '{kind = "matryoshka", dims = [8, 16]}]'
    words = ("--train.steps", "6", "--train.microbatches", "2", "--loss.weight", "0.5")
    words += ("--train.checkpoint_every", "3")
    whole = run_recipe(tmp_path / "whole", terms, *words)
    line = whole[-1]
    parts = 0.5 * line["loss/contrastive"] + 0.5 * line["loss/distill"] + line["loss/matryoshka"]
    assert line["loss"] == pytest.approx(parts, rel=1e-9)
    shutil.rmtree(tmp_path / "whole/checkpoints/step-00000006")
    assert main(["train", str(tmp_path / "whole"), "--resume"]) == 0
    again = (tmp_path / "whole/metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["loss"] for row in again] == [row["loss"] for row in whole]


@pytest.mark.parametrize(
    ("terms", "told"),
    [
        ('[{kind = "matryoshka", dims = [32]}]', "must be below model.embed_dim = 32"),
        ('[{kind = "matryoshka", dims = []}]', "different lengths"),
        ('[{kind = "matryoshka", dims = [8, 8]}]', "different lengths"),
        ('[{kind = "matryoshka", dims = [8], weight = 0}]', "must be positive"),
        ('[{kind = "distill", teacher = "/nowhere"}]', "loss.terms: teacher = /nowhere"),
        ('[{kind = "distill"}]', "teacher"),
        ('[{kind = "distil", teacher = "x"}]', "distill"),
        ('[{kind = "distill", teacher = "x", dims = [8]}]', "matryoshka"),
        ("[{dims = [8]}]", "kind"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, capsys: Any, terms: str, told: str) -> None:
    line = mistake(
        capsys, "train", RECIPE, "--run-dir", str(tmp_path / "run"), "--loss.terms", terms
    )
    assert told in line


def test_features_of_another_width_are_refused(tmp_path: Path, capsys: Any) -> None:
    teacher = write_teacher(tmp_path / "teacher", embed_dim=48)
    terms = f'[{{kind = "distill", target = "features", teacher = "{teacher}"}}]'
    words = ("train", RECIPE, "--run-dir", str(tmp_path / "run"), "--loss.terms", terms)
    assert 'use target = "affinity"' in mistake(capsys, *words)


def two_terms(teacher: Path) -> str:
    return f'[{{kind = "matryoshka", dims = [8]}}, {{kind = "distill", teacher = "{teacher}"}}]'


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a teacher and of a run of 4 steps with checkpoints of 2 and 4."""
    folder = tmp_path_factory.mktemp("taught")
    write_teacher(folder / "teacher")
    terms = (
        f'[{{kind = "matryoshka", dims = [8]}}, {{kind = "distill", teacher = "{folder}/teacher"}}]'
    )
    run_recipe(folder / "run", terms, "--train.steps", "4", "--train.checkpoint_every", "2")
    return folder


@pytest.fixture
def cut(taught: Path, tmp_path: Path) -> Path:
    """A copy of both, the run cut short behind step 2; the teacher has moved."""
    shutil.copytree(taught, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "run/checkpoints/step-00000004")
    return tmp_path


def resume(folder: Path, teacher: Path) -> int:
    words = ["--resume", "--loss.terms", two_terms(teacher)]
    return main(["train", str(folder / "run"), *words])


def test_a_teacher_may_move(cut: Path, taught: Path, capsys: Any) -> None:
    """Told, and to the bit the same run."""
    assert resume(cut, cut / "teacher") == 0
    told = f'loss.terms[1].teacher: "{taught}/teacher" -> "{cut}/teacher" (from step 2 on)'
    assert told in capsys.readouterr().err
    lines = [(folder / "run/metrics.jsonl").read_text().splitlines() for folder in (taught, cut)]
    losses = [[json.loads(line)["loss"] for line in one] for one in lines]
    assert losses[0] == losses[1]


def other_weights(folder: Path) -> None:
    model, preprocess, tokenizer = load(folder)
    with torch.no_grad():
        model.text.head.norm.bias[0] += 1e-3  # pyright: ignore[reportOptionalMemberAccess]
    save_model(folder, model=model, tokenizer=tokenizer, preprocess=preprocess.config)


def other_pixels(folder: Path) -> None:
    model, _, tokenizer = load(folder)
    preprocess = PreprocessConfig(image_size=32)
    save_model(folder, model=model, tokenizer=tokenizer, preprocess=preprocess)


def other_ids(folder: Path) -> None:
    model, preprocess, tokenizer = load(folder)
    config = dataclasses.replace(
        tokenizer.config,
        path=str(ROOT / "mmtrain/demo/debug/sentencepiece.model"),
        clean="whitespace",
    )
    tokenizer = build_tokenizer(config)
    save_model(folder, model=model, tokenizer=tokenizer, preprocess=preprocess.config)


@pytest.mark.parametrize("change", [other_weights, other_pixels, other_ids])
def test_another_teacher_is_refused(cut: Path, taught: Path, capsys: Any, change: Any) -> None:
    """In a line that names it, under another path or the same; the run stays as it was."""
    before = {p: p.read_bytes() for p in (cut / "run").rglob("*") if p.is_file()}
    change(cut / "teacher")
    kept = shutil.move(taught / "teacher", taught / "kept")
    shutil.copytree(cut / "teacher", taught / "teacher")
    try:
        for teacher in (cut / "teacher", taught / "teacher"):
            capsys.readouterr()
            assert resume(cut, teacher) == 2
            line = capsys.readouterr().err.splitlines()[-1]
            assert f"error: loss.terms[1].teacher = {teacher} is not the model" in line
            assert f"then at {taught}/teacher" in line
    finally:
        shutil.rmtree(taught / "teacher")
        shutil.move(kept, taught / "teacher")
    assert {p: p.read_bytes() for p in (cut / "run").rglob("*") if p.is_file()} == before


def test_a_teacher_has_a_number_format_of_its_own(tmp_path: Path) -> None:
    """fp32 however the student trains; bf16 where it is asked for."""
    config = DistillConfig(teacher=str(write_teacher(tmp_path / "teacher")))
    seen: list[torch.dtype] = []
    rows = {}
    for precision in ("fp32", "bf16"):
        term = dataclasses.replace(config, precision=precision)
        trained = WithTexts(tiny_config(), LossSection(terms=(term,)), precision="bf16")
        teacher = trained.objective.terms[1].teacher
        linear = next(m for m in teacher._model.vision.modules() if isinstance(m, torch.nn.Linear))
        linear.register_forward_hook(lambda _, __, out: seen.append(out.dtype))
        rows[precision] = trained.objective.rows(trained.batch(0))[teacher.image]
        assert rows[precision].dtype == torch.float32
    assert seen == [torch.float32, torch.bfloat16]
    error = (rows["fp32"] - rows["bf16"]).norm() / rows["fp32"].norm()
    assert 1e-4 < error < 0.1


def test_a_weight_without_terms_is_refused(tmp_path: Path, capsys: Any) -> None:
    words = ("train", RECIPE, "--run-dir", str(tmp_path / "run"), "--loss.weight", "0.5")
    assert "has no effect without [[loss.terms]]" in mistake(capsys, *words)
