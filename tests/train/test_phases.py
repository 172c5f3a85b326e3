"""Phases of a run: each step as its phase says, however the run is killed and gone on with."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mmtrain.build.run import Run
from mmtrain.checkpoint.checkpoint import flatten
from mmtrain.cli import main
from mmtrain.models.tower import interpolate_positions
from mmtrain.train.flags import Wishes
from mmtrain.train.pace import lr_factor_at
from mmtrain.train.transfer import Transfer
from mmtrain.train.update import take_step
from tests.ranks import run_ranks
from tests.train.layout_runs import build

RECIPE = "configs/debug_clip.toml"
PLAIN = ("--optim.ema_decay", "none", "--train.microbatches", "1")
CONSTANT = ("--optim.schedule", "constant", "--optim.warmup_steps", "0")


def phases(*each: dict[str, Any]) -> tuple[str, str]:
    """The override that gives a recipe these phases."""
    tables = (", ".join(f"{name} = {value}" for name, value in one.items()) for one in each)
    return "--train.phase", "[" + ", ".join(f"{{ {table} }}" for table in tables) + "]"


TWO = phases(
    {"samples": 100, "batch_size": 16, "patch_dropout": 0.5, "image_size": 16, "context_length": 8},
    {"steps": 5, "batch_size": 24, "lr_factor": 0.5, "microbatches": 3},
)
"""6 steps of 16, small and short, and 5 of 24 that begin amid the second epoch of 64."""


def go_on(run: Run, *, until: int) -> list[float]:
    """Take the steps up to one -> their losses."""
    losses, transfer = [], Transfer(torch.device("cpu"))
    for batch in run.data.iterate(run.state.step, until):
        number = run.state.step
        run.state.enter(run.data.phases.at(number))
        factor = lr_factor_at(
            number,
            phases=run.data.phases,
            total_steps=run.total_steps,
            config=run.recipe.optim,
        )
        step = take_step(
            run.state,
            batch,
            transfer=transfer,
            lr_factor=factor,
            clip_norm=run.recipe.optim.clip_norm,
            num_rows=run.data.samples_in(number),
            wishes=Wishes(),
        )
        losses.append(step.loss.item())
    return losses


def tensors(run: Run) -> dict[str, Tensor]:
    """Weights and optimizer state."""
    return {name: value.clone() for name, value in flatten(run.state.tensors()).items()}


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """To the bit."""
    assert found.keys() == wanted.keys()
    assert [name for name in wanted if not torch.equal(found[name], wanted[name])] == []


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("--optim.schedule", "wsd", "--optim.warmup_steps", "none"),
        ("--data.last", "mask", "--train.batch_size", "24"),
    ],
    ids=["cosine", "wsd", "masked"],
)
def test_one_phase_is_the_run_without_phases(tmp_path: Path, words: tuple[str, ...]) -> None:
    """Losses, rates and weights to the bit, over two epochs."""
    one = build("one", tmp_path, *PLAIN, *words, *phases({"steps": 10}))
    plain = build("one", tmp_path, *PLAIN, *words, "--train.steps", "10")
    assert one.total_steps == plain.total_steps == 10
    assert go_on(one, until=10) == go_on(plain, until=10)
    assert one.state.optimizers.lr == plain.state.optimizers.lr
    assert_same(tensors(one), tensors(plain))


def test_phases_are_pieces_of_other_runs(tmp_path: Path) -> None:
    """Runs of each phase's settings, one begun with what the other ended with, give the same."""
    words = (*PLAIN, *CONSTANT, "--optim.lr", "1e-3")
    first = {"steps": 3, "batch_size": 16, "patch_dropout": 0.5}
    second = {"epochs": 1, "batch_size": 8, "patch_dropout": 0.0, "lr_factor": 0.5}
    whole = build("one", tmp_path, *words, *phases(first, second))
    losses = go_on(whole, until=11)
    assert whole.total_steps == 11
    dropout = ("--model.vision.patch_dropout", "0.5")
    before = build("one", tmp_path, *words, *dropout, "--train.steps", "3")
    by_hand = go_on(before, until=3)
    dropout = ("--model.vision.patch_dropout", "0", "--optim.lr", "5e-4")
    behind = build(
        "one", tmp_path, *words, *dropout, "--train.batch_size", "8", "--train.steps", "14"
    )
    with torch.no_grad():
        for name, value in flatten(behind.state.tensors()).items():
            value.copy_(flatten(before.state.tensors())[name])
    behind.state.step = 6  # 48 samples are behind
    assert losses == by_hand + go_on(behind, until=14)
    assert_same(tensors(whole), tensors(behind))


def test_the_rate_follows_the_samples(tmp_path: Path) -> None:
    """A step of 32 goes as far as two of 16: in the warm-up, whose steps are given, and behind."""
    run = build(
        "one",
        tmp_path,
        *("--optim.warmup_steps", "3"),
        *phases({"steps": 2, "batch_size": 16}, {"steps": 4, "batch_size": 32, "lr_factor": 0.5}),
    )
    plain = build("one", tmp_path, "--optim.warmup_steps", "4", "--train.steps", "10")

    def rates(one: Run) -> list[float]:
        return [
            lr_factor_at(
                step,
                phases=one.data.phases,
                total_steps=one.total_steps,
                config=one.recipe.optim,
            )
            for step in range(one.total_steps)
        ]

    of_sixteen = rates(plain)
    assert rates(run) == [
        *of_sixteen[:2],
        0.5 * of_sixteen[3],  # it ends the warm-up
        *(0.5 * of_sixteen[step] for step in (4, 6, 8)),
    ]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two phases with all its checkpoints."""
    run = tmp_path_factory.mktemp("phases") / "run"
    words = ("--train.checkpoint_every", "1", "--train.keep_checkpoints", "99")
    assert main(["train", RECIPE, "--run-dir", str(run), *TWO, *words]) == 0
    return run


def cut(straight: Path, folder: Path, step: int) -> Path:
    """A copy that was killed behind a step."""
    run = folder / f"cut{step}"
    shutil.copytree(straight, run)
    shutil.rmtree(run / "export")
    for path in (run / "checkpoints").glob("step-*"):
        if int(path.name.removeprefix("step-")) > step:
            shutil.rmtree(path)
    return run


def records(run: Path) -> list[dict[str, Any]]:
    """What metrics.jsonl says of each step that does not depend on the time."""
    names = ("step", "epoch", "phase", "samples_seen", "loss", "lr", "grad_norm", "epoch_accounts")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: line.get(name) for name in names} for line in lines]


def test_metrics_name_the_phase(straight: Path) -> None:
    """And count what was seen; epochs that batches of two sizes make up are settled."""
    found = records(straight)
    assert [one["phase"] for one in found] == [0] * 6 + [1] * 5
    assert [one["samples_seen"] for one in found] == [
        *range(16, 97, 16),
        *range(120, 217, 24),
    ]
    assert found[-1]["epoch_accounts"]["data"]["epochs"] == 4
    page = (straight / "report.html").read_text()
    assert page.count("<title>phase 1</title>") >= 5, "on every curve"
    assert "3.375 epochs" in page


@pytest.mark.parametrize(
    ("step", "words"),
    [(3, ()), (6, ("--data.workers", "2")), (8, ("--train.microbatches", "1"))],
    ids=["inside", "at the border", "behind"],
)
def test_a_killed_run_goes_on_to_the_same_weights(
    straight: Path, tmp_path: Path, step: int, words: tuple[str, ...]
) -> None:
    """Inside a phase and at its border, with workers that read ahead over it."""
    run = cut(straight, tmp_path, step)
    assert main(["train", "--resume", "--run-dir", str(run), *words]) == 0
    last = "checkpoints/step-00000011"
    for path in (straight / last).rglob("*.safetensors"):
        assert path.read_bytes() == (run / path.relative_to(straight)).read_bytes()
    assert records(run) == records(straight)


def said(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What the command said of itself, without the progress."""
    lines = capsys.readouterr().err.splitlines()
    return [line.removeprefix("mmtrain: ") for line in lines if line.startswith("mmtrain: ")]


FIRST = {"steps": 6, "batch_size": 16, "patch_dropout": 0.5, "image_size": 16, "context_length": 8}
SECOND = {"steps": 5, "batch_size": 24, "lr_factor": 0.5, "microbatches": 3}


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        # Of the phase behind, and of the one under way.
        ((FIRST | {"patch_dropout": 0.25}, SECOND), "step 1 has batch_size = 16, lr_factor = 1"),
        ((FIRST | {"image_size": 32}, SECOND), "image_size = 32, context_length = 8 now"),
        ((FIRST | {"context_length": 9}, SECOND), "context_length = 9 now"),
        ((FIRST | {"steps": 5}, SECOND), "step 6 has batch_size = 24, lr_factor = 0.5"),
        ((FIRST | {"lr_factor": 2}, SECOND), "step 1 has batch_size = 16, lr_factor = 2"),
        ((FIRST, SECOND | {"batch_size": 12}), "step 7 has batch_size = 12"),
        ((FIRST, SECOND | {"steps": 1}, SECOND | {"batch_size": 12}), "step 8 has batch_size = 12"),
    ],
)
def test_phases_behind_stay(
    straight: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changed: tuple[dict[str, Any], ...],
    told: str,
) -> None:
    """Whatever is wanted, in one line that names the step; behind step 8 of 11."""
    run = cut(straight, tmp_path, 8)
    words = ("--resume-with-changes", *phases(*changed))
    assert main(["train", "--resume", "--run-dir", str(run), *words]) == 2
    line = said(capsys)[-1]
    assert line.startswith("error: train.phase: ") and told in line, line


def test_phases_ahead_may_change(
    straight: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where that is wanted; the same phases in other words are no change."""
    run = cut(straight, tmp_path, 8)
    ahead = phases(FIRST, SECOND | {"steps": 3}, {"steps": 1, "batch_size": 32})
    assert main(["train", "--resume", "--run-dir", str(run), *ahead]) == 2
    assert "add --resume-with-changes" in said(capsys)[-1]
    words = ("--resume-with-changes", *ahead)
    assert main(["train", "--resume", "--run-dir", str(run), *words]) == 0
    assert any(line.startswith("train.phase: ") for line in said(capsys))
    assert [one["phase"] for one in records(run)] == [0] * 6 + [1] * 3 + [2]
    assert records(run)[:8] == records(straight)[:8]

    run = cut(straight, tmp_path, 10)
    same = phases(FIRST, SECOND | {"steps": 2}, SECOND | {"samples": 72, "steps": '"none"'})
    assert main(["train", "--resume", "--run-dir", str(run), *same]) == 0
    assert not any(line.startswith("train.phase: ") for line in said(capsys))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            phases({"steps": 4, "samples": 64}),
            "exactly one of steps, samples and epochs, not s",
        ),
        (phases({"batch_size": 8}), "exactly one of steps, samples and epochs, not none"),
        (phases({"steps": 0}), "steps = 0 must be at least 1"),
        (phases({"samples": 15}), "train.phase[0]: samples = 15 is no whole step of batch_size"),
        (phases({"steps": 1}, {"epochs": 0.01}), "train.phase[1]: epochs = 0.01 is no whole step"),
        (phases({"epochs": -1}), "epochs = -1 must be above 0"),
        (phases({"steps": 1, "lr_factor": 0}), "lr_factor = 0 must be above 0"),
        (phases({"steps": 1, "patch_dropout": 1}), "patch_dropout = 1 must lie in [0, 1)"),
        (phases({"steps": 1, "batch_size": 65}), "train.phase[0]: batch_size = 65 is larger than"),
        ((*phases({"steps": 1}), "--train.epochs", "2"), "epochs = 2 contradicts [[train.phase]]"),
        (
            phases({"steps": 1}, {"steps": 1, "batch_size": 9}),
            "train.microbatches = 2 must divide the 9 rows",
        ),
        (
            phases({"steps": 1, "microbatches": 3}),
            "train.phase[0]: microbatches = 3 must divide the 16 rows that each data-parallel rank "
            "has of train.batch_size = 16",
        ),
        (phases({"steps": 1, "image_size": 20}), "train.phase[0]: patch_size = 8 must divide"),
        (
            phases({"steps": 1, "image_size": 40}),
            "image_size = 40 is above model.vision",
        ),
        (phases({"steps": 1, "context_length": 25}), "context_length = 25 is above tokenizer.cont"),
        (phases({"steps": 1, "context_length": 2}), "context_length = 2 must be at least 3"),
        (
            (*phases({"steps": 1, "image_size": 16}), "--model.vision.positions", "sinusoidal"),
            "image_size = 16: model.vision.positions",
        ),
        (
            (*phases({"steps": 1, "context_length": 8}), "--model.text.pool", "last"),
            "context_length = 8: this text tower sees its padding",
        ),
        ((*phases({"steps": 1, "batch_size": 6}), "--data.lanes", "4"), "data.lanes = 4 must"),
    ],
)
def test_what_cannot_be_had_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], told: str
) -> None:
    """One line, by the key."""
    assert main(["train", RECIPE, "--run-dir", str(tmp_path / "run"), *words]) == 2
    (line,) = said(capsys)
    assert told in line, line


def gradients(run: Run) -> dict[str, Tensor]:
    """Of the first batch."""
    (batch,) = run.data.iterate(0, 1)
    run.state.objective.step(run.state.schedule, batch)
    return {n: p.grad for n, p in run.state.stage_parameters().items() if p.grad is not None}


def test_small_images_and_short_texts_are_a_small_models(tmp_path: Path) -> None:
    """A phase gives the gradients of a model of that size, whose table of positions is the large
    one's, interpolated, and whose texts' is its beginning."""
    exact = (*PLAIN, "--train.precision", "fp64")
    small_sizes = ("--model.vision.image_size", "16", "--tokenizer.context_length", "8")
    phase = phases({"steps": 1, "image_size": 16, "context_length": 8}, {"steps": 1})
    run = build("one", tmp_path, *exact, *phase)
    small = build("one", tmp_path, *exact, *small_sizes, "--train.steps", "1")
    of_image, of_text = "vision.embed.positional_embedding", "text.embed.positional_embedding"
    ours, theirs = (each.state.stage_parameters() for each in (run, small))
    tables = {}
    for name, weight in theirs.items():
        large = ours[name]
        if name == of_image:
            patches = interpolate_positions(large[1:], (4, 4), (2, 2))
            large = torch.cat([large[:1], patches])
        elif name == of_text:
            large = large[:8]
        tables[name] = large
        weight.data.copy_(large.detach())
    found, wanted = gradients(run), gradients(small)
    for name in (of_image, of_text):
        (given,) = torch.autograd.grad(tables[name], ours[name], wanted[name])
        torch.testing.assert_close(found.pop(name), given, rtol=1e-9, atol=1e-15)
        del wanted[name]
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-15)


def test_workers_know_the_size_at_the_border(tmp_path: Path) -> None:
    """Batches that were made ahead are those of their own phases, as one process makes them."""
    run = build("one", tmp_path, *TWO, "--data.workers", "2", "--data.prefetch", "4")
    made = list(run.data.iterate(4, 8))
    assert [batch.images_BCHW.shape[-1] for batch in made] == [16, 16, 32, 32]
    assert [batch.tokens_BT.size(1) <= 8 for batch in made[:2]] == [True, True]
    for number, batch in enumerate(made, 4):
        alone = run.data.batch(number)
        assert torch.equal(batch.images_BCHW, alone.images_BCHW)
        assert torch.equal(batch.tokens_BT, alone.tokens_BT)
        assert batch.phase == alone.phase == int(number >= 6)


def train_two_phases(rank: int, name: str, folder: str) -> None:
    """The losses of all steps and the weights behind them, on one rank or several."""
    run = build(name, Path(folder) / name, *PLAIN, "--train.precision", "fp64", *TWO)
    losses = go_on(run, until=11)
    weights = run.state.whole_weights()
    if rank == 0:
        torch.save((losses, weights), Path(folder) / f"{name}.pt")


@pytest.mark.slow
def test_two_ranks_are_one(tmp_path: Path) -> None:
    """Losses and updated weights, with microbatches in the second phase."""
    train_two_phases(0, "one", str(tmp_path))
    run_ranks(train_two_phases, 2, "fsdp2", str(tmp_path))
    (losses, weights), (others, found) = (
        torch.load(tmp_path / f"{name}.pt") for name in ("one", "fsdp2")
    )
    assert others == pytest.approx(losses, rel=1e-9)
    for name, value in weights.items():
        torch.testing.assert_close(found[name], value, rtol=1e-7, atol=1e-9)
