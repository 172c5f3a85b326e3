"""The loop through the command line, in process, on the embedded debug recipe."""

import hashlib
import json
import os
import shutil
import signal
import tomllib
from pathlib import Path

import pytest
import torch

import mmtrain
from mmtrain.checkpoint.checkpoint import flatten
from mmtrain.cli import main
from mmtrain.data.bad_samples import BadSampleLog
from mmtrain.tasks.objective import Objective
from mmtrain.train import update
from mmtrain.train.state import RunState
from mmtrain.train.step import LocalSchedule

RECIPE = "configs/debug_clip.toml"
METRICS = {
    "step",
    "epoch",
    "samples_seen",
    "loss",
    "lr",
    "grad_norm",
    "logit_scale",
    "samples_per_second",
    "data_wait_fraction",
    "data_bytes_read",
    "data_batch_ms_p50",
    "data_batch_ms_p99",
    *(f"data_ms/{stage}" for stage in ("read", "decode", "resize", "text", "rest")),
    "data_ready",
    "memory_mb",
    "data_memory_mb",
}


MASKED = ("--train.batch_size", "48", "--train.microbatches", "3")
# From the default scale both steps of a run of two overflow.
FINITE = ("--train.loss_scale.initial", "1024")


def train(run_dir: Path, *words: str) -> list[dict]:
    """Train the debug recipe -> its metrics."""
    assert main(["train", RECIPE, "--run-dir", str(run_dir), *words]) == 0
    return read_metrics(run_dir)


def read_metrics(run_dir: Path) -> list[dict]:
    """Every line of metrics.jsonl."""
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_run_folder_holds_everything(tmp_path: Path) -> None:
    """Metrics, resolved recipe, facts, sealed checkpoints, export, report; and the model learns."""
    run = tmp_path / "run"
    metrics = train(run, "--train.steps", "12", "--train.checkpoint_every", "5")
    assert [set(line) - {"epoch_accounts"} for line in metrics] == [METRICS] * 12
    whole = {"epochs": 3, "indexed": 192, "delivered": 192, "bad": 0, "dropped": 0}
    assert metrics[-1]["epoch_accounts"] == {"data": whole} and "epoch_accounts" not in metrics[2]
    assert [line["samples_seen"] for line in metrics] == [16 * n for n in range(1, 13)]
    assert metrics[-1]["loss"] < metrics[0]["loss"]
    recipe = tomllib.loads((run / "recipe.toml").read_text())
    assert recipe["train"]["steps"] == 12 and recipe["model"]["text"]["vocab_size"] == 49408
    facts = json.loads((run / "run.json").read_text())
    assert facts["data"]["num_samples"] == 64 and facts["versions"]["torch"] == torch.__version__
    steps = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert steps == ["step-00000010", "step-00000012"]  # keep_checkpoints = 2
    assert (run / "report.html").stat().st_size > 10_000
    model, preprocess, tokenizer = mmtrain.load(run)
    assert model.logit_scale.exp().item() == pytest.approx(metrics[-1]["logit_scale"])
    assert model.encode_text(tokenizer(["grinning face"])).shape == (1, 32)
    assert preprocess.config.image_size == 32


def test_the_data_of_one_rank_of_several_are_told_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The table at a run's end is of what rank 0 read."""
    train(tmp_path / "alone", "--train.steps", "2")
    assert "the data of rank" not in capsys.readouterr().err
    monkeypatch.setattr("mmtrain.train.loop.num_ranks", lambda: 8)
    train(tmp_path / "one", "--train.steps", "2")
    lines = capsys.readouterr().err.splitlines()
    place = next(i for i, line in enumerate(lines) if "of rank 0, one of 8 ranks:" in line)
    assert "waiting for data" in lines[place + 1]


def test_recorded_recipe_repeats_the_run(tmp_path: Path) -> None:
    """RUN/recipe.toml is itself a recipe that gives the same losses."""
    first = train(tmp_path / "first", "--train.steps", "3")
    recipe = tmp_path / "first/recipe.toml"
    assert main(["train", str(recipe), "--run-dir", str(tmp_path / "again")]) == 0
    again = read_metrics(tmp_path / "again")
    assert [line["loss"].hex() for line in again] == [line["loss"].hex() for line in first]


def test_workers_and_microbatches_do_not_change_the_losses(tmp_path: Path) -> None:
    """Workers: to the last bit. Microbatches: to rounding, with patch dropout and depth on."""
    base = train(tmp_path / "base", "--train.steps", "3")
    workers = train(tmp_path / "workers", "--train.steps", "3", "--data.workers", "2")
    assert [line["loss"].hex() for line in workers] == [line["loss"].hex() for line in base]
    fp64 = ("--train.steps", "3", "--train.precision", "fp64", "--train.microbatches")
    one, four = train(tmp_path / "one", *fp64, "1"), train(tmp_path / "four", *fp64, "4")
    assert [x["loss"] for x in four] == pytest.approx([x["loss"] for x in one], rel=1e-9)
    assert [x["grad_norm"] for x in four] == pytest.approx([x["grad_norm"] for x in one], rel=1e-9)


@pytest.mark.parametrize(
    "words",
    [
        ("--loss.kind", "siglip", "--optim.kind", "muon", "--optim.lr", "1e-3"),
        ("--train.precision", "bf16", "--lock.vision", "0", "--lock.text", "2"),
        ("--train.precision", "bf16-pure", "--optim.layer_decay", "0.8", "--optim.schedule", "wsd"),
        ("--train.precision", "fp16", *FINITE, "--data.last", "mask", *MASKED),
    ],
    ids=lambda words: words[1],
)
def test_settings_train(tmp_path: Path, words: tuple[str, ...]) -> None:
    """Each setting trains, with another: finite losses, and a model that loads."""
    metrics = train(tmp_path / "run", "--train.steps", "2", *words)
    assert len(metrics) == 2 and all(line["loss"] > 0 for line in metrics)
    mmtrain.load(tmp_path / "run")


def test_checkpoints_by_the_clock(tmp_path: Path) -> None:
    """checkpoint_minutes: every step is late when the interval is nothing."""
    options = ("--train.checkpoint_minutes", "1e-9", "--train.checkpoint_every", "none")
    train(tmp_path / "run", "--train.steps", "3", "--train.keep_checkpoints", "9", *options)
    names = sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir())
    assert names == [f"step-{step:08d}" for step in (1, 2, 3)]


def test_siglip_starts_at_its_published_scale(tmp_path: Path) -> None:
    """loss.kind = siglip alone sets scale 10 and bias -10, and the recipe's record says so."""
    metrics = train(tmp_path / "run", "--train.steps", "1", "--loss.kind", "siglip")
    assert metrics[0]["logit_scale"] == pytest.approx(10, rel=1e-2)
    recipe = tomllib.loads((tmp_path / "run/recipe.toml").read_text())
    assert recipe["model"]["init_logit_bias"] == -10.0


def test_locked_tower_does_not_move(tmp_path: Path) -> None:
    """LiT: the vision tower stays at its initial weights while the text tower learns."""
    lock = ("--lock.vision", "0")
    train(tmp_path / "one", "--train.steps", "1", *lock)
    train(tmp_path / "three", "--train.steps", "3", *lock)
    one, three = (mmtrain.load(tmp_path / name)[0].state_dict() for name in ("one", "three"))
    moved = {name for name in one if not torch.equal(one[name], three[name])}
    assert moved and not any(name.startswith("vision.") for name in moved)


def test_ema_is_exported(tmp_path: Path) -> None:
    """With averaging on, export/ holds the averages and the checkpoint both."""
    train(tmp_path / "plain", "--train.steps", "2")
    train(tmp_path / "ema", "--train.steps", "2", "--optim.ema_decay", "0.9")
    plain, ema = (mmtrain.load(tmp_path / name)[0].state_dict() for name in ("plain", "ema"))
    assert not torch.equal(plain["text.embed.token.weight"], ema["text.embed.token.weight"])
    index = json.loads((tmp_path / "ema/checkpoints/step-00000002/tensors.json").read_text())
    assert {name.split(".")[0] for name in index} == {"model", "optimizer", "ema"}


def test_resume_needs_to_be_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An existing run is refused with the remedy; --resume extends it."""
    run = tmp_path / "run"
    train(run, "--train.steps", "2")
    assert main(["train", RECIPE, "--run-dir", str(run)]) == 2
    assert "already holds a run of 2 steps; add --resume" in capsys.readouterr().err
    assert len(train(run, "--train.steps", "4", "--resume-with-changes")) == 4


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps, for whom it is refused: it stays as it is."""
    run = tmp_path_factory.mktemp("run") / "run"
    train(run, "--train.steps", "2")
    return run


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--run.seed", "1"), "run.seed = 1, but"),
        (("--train.batch_size", "32"), "train.batch_size = 32, but"),
        (("--model.embed_dim", "16"), "model.embed_dim = 16, but"),
        (("--train.steps", "1"), "beyond the 1 steps"),
    ],
    ids=["seed", "batch", "model", "steps"],
)
def test_resume_refuses_another_run(
    two_steps: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], complaint: str
) -> None:
    """What would silently change the meaning of a step is refused, and nothing is lost."""
    run, before = two_steps, read_metrics(two_steps)
    assert len(before) == 2
    length = () if words[0] == "--train.steps" else ("--train.steps", "3")
    again = ["--run-dir", str(run), "--resume-with-changes"]
    assert main(["train", RECIPE, *again, *length, *words]) == 2
    assert complaint in capsys.readouterr().err
    assert read_metrics(run) == before


def test_damaged_checkpoint_is_skipped_aloud(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One flipped byte: the checkpoint before it is used, and the losses are the same."""
    run, options = tmp_path / "run", ("--train.steps", "4", "--train.checkpoint_every", "2")
    expected = train(run, *options)
    file = run / "checkpoints/step-00000004/rank-00000.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    again = train(run, *options, "--resume")
    errors = capsys.readouterr().err
    assert "damaged checkpoint skipped" in errors and "step-00000002" in errors
    assert [line["loss"].hex() for line in again] == [line["loss"].hex() for line in expected]


def held(run: RunState) -> dict[str, torch.Tensor]:
    """Copies of all that an update may change."""
    return {name: tensor.clone() for name, tensor in flatten(run.tensors()).items()}


@pytest.mark.parametrize(
    ("words", "log_every"),
    [
        (("--optim.ema_decay", "0.9"), "1"),
        (("--optim.ema_decay", "0.9"), "50"),
        (("--optim.kind", "muon", "--optim.ema_decay", "0.9"), "50"),
        (("--train.precision", "bf16-pure", "--loss.kind", "siglip"), "1"),
    ],
    ids=lambda given: given if isinstance(given, str) else given[1],
)
def test_nan_changes_nothing(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    log_every: str,
) -> None:
    """A loss, or gradients, that are not finite change no weight, moment, or average and are named,
    and three in a row end the run with the third; whether steps are judged at once (a log line) or
    a step late."""
    take, before, after = update.take_step, [], []

    def recorded(state: RunState, *args, **options) -> update.Step:
        before.append(held(state))
        step = take(state, *args, **options)
        after.append(held(state))
        return step

    monkeypatch.setattr(update, "take_step", recorded)
    count = poison(monkeypatch, {4, 5, 6})
    compute = Objective.step

    def spoilt(self: Objective, schedule: LocalSchedule, *args, **options) -> torch.Tensor:
        loss = compute(self, schedule, *args, **options)
        if count == [2]:
            for parameter in schedule.whole.parameters():
                parameter.grad.fill_(torch.inf)
        return loss

    monkeypatch.setattr(Objective, "step", spoilt)
    run = tmp_path / "run"
    words = (*words, "--train.log_every", log_every)
    assert main(["train", RECIPE, "--run-dir", str(run), *words]) == 2
    errors = capsys.readouterr().err
    assert "train.max_bad_steps = 3 steps in a row" in errors and "step 5: loss nan" in errors
    assert count == [6] and "Traceback" not in errors
    same = [all(torch.equal(a[n], b[n]) for n in a) for a, b in zip(before, after, strict=True)]
    assert same == [False, True, False, True, True, True]
    assert all(tensor.isfinite().all() for tensor in after[-1].values())
    bad = [json.loads(line) for line in (run / "bad_batches.jsonl").read_text().splitlines()]
    assert [row["step"] for row in bad] == [1, 3, 4, 5] and len(bad[0]["keys"]) == 16
    if log_every == "1":
        lines = read_metrics(run)
        assert [line["loss"] is None for line in lines] == [False, False, False, True, True]
        assert [line["grad_norm"] is None for line in lines] == [False, True, False, False, False]


def test_a_signal_stops_a_step_later_and_saves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Told to stop in the third step, between log lines, a run knows in the fourth, saves that and
    goes on from there to the losses of one that was not stopped."""
    options = ("--train.steps", "8", "--train.log_every", "8", "--train.checkpoint_every", "none")
    whole = train(tmp_path / "whole", *options)
    take, calls = update.take_step, []

    def told(state: RunState, *args, **options) -> update.Step:
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return take(state, *args, **options)

    monkeypatch.setattr(update, "take_step", told)
    run = tmp_path / "run"
    with pytest.raises(SystemExit) as ended:
        main(["train", RECIPE, "--run-dir", str(run), *options])
    assert ended.value.code == 75 and "saved; go on with --resume" in capsys.readouterr().err
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000004"]
    monkeypatch.undo()
    again = train(run, *options, "--resume")
    assert [line["loss"].hex() for line in again] == [line["loss"].hex() for line in whole]


def poison(monkeypatch: pytest.MonkeyPatch, steps: set[int]) -> list[int]:
    """The loss of these steps (counted over the process) is NaN -> the count, by reference."""
    step, count = Objective.step, [0]

    def poisoned(self: Objective, *args, **options) -> torch.Tensor:
        count[0] += 1
        return step(self, *args, **options) * (torch.nan if count[0] in steps else 1)

    monkeypatch.setattr(Objective, "step", poisoned)
    return count


@pytest.mark.parametrize(
    ("words", "named", "remedy"),
    [
        (("--train.steps", "2"), True, "lower optim.lr, look"),
        (("--train.steps", "5", "--train.max_bad_steps", "9"), True, "lower optim.lr, look"),
        (
            ("--train.steps", "3", "--train.precision", "fp16"),
            False,
            "lower optim.lr or train.loss_scale.initial, look",
        ),
    ],
)
def test_a_run_in_which_no_step_changed_anything_fails(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    named: bool,
    remedy: str,
) -> None:
    """Fewer than may be left out in a row, or overflows alone: nothing is evaluated or exported,
    and a resume says the same."""
    run = tmp_path / "run"
    if named:
        poison(monkeypatch, set(range(1, 10)))
    else:
        words += ("--train.loss_scale.initial", str(2.0**100))
    for more in ((), ("--resume",)):
        assert main(["train", RECIPE, "--run-dir", str(run), *words, *more]) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert f"none of the run's {words[1]} steps had a finite loss" in error, error
        assert ("bad_batches.jsonl" in error) == named and remedy in error
        assert not (run / "export").exists() and not (run / "report.html").exists()


@pytest.mark.parametrize("bad", [1, 2])
def test_a_run_whose_last_steps_changed_nothing_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], bad: int
) -> None:
    """And so does what goes on between them; a bad step before a good one is no news at the end."""
    run, words = tmp_path / "run", ("--train.steps", "5", "--train.checkpoint_every", "4")
    told = f"the last {bad} step{'s' * (bad > 1)} of 5 had no finite loss and gradient"
    poison(monkeypatch, {2, *range(6 - bad, 6)})
    train(run, *words, "--quiet")
    shown = capsys.readouterr().err
    assert f"{told} and changed nothing: the weights are those of step {5 - bad}\n" in shown
    shutil.rmtree(run / "checkpoints/step-00000005")
    monkeypatch.undo()
    poison(monkeypatch, {1})
    train(run, *words, "--resume")
    assert told in capsys.readouterr().err
    monkeypatch.undo()
    poison(monkeypatch, {2})
    train(tmp_path / "other", *words)
    assert "changed nothing" not in capsys.readouterr().err


def test_bad_steps_roll_back_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """The weights of the checkpoint before the bad steps go on with the data after them: as a run
    of the same data that started at step 7 from the checkpoint of step 2."""
    options = ("--train.checkpoint_every", "2", "--train.keep_checkpoints", "9")
    options = (*options, "--train.steps", "9", "--train.on_bad_steps", "roll_back")
    poison(monkeypatch, {4, 5, 6})
    run = tmp_path / "run"
    metrics = train(run, *options)
    assert "steps 4 to 6 had no finite loss and gradient: going on after them with the weights of "\
        "step 2" in capsys.readouterr().err  # fmt: skip
    assert [line["loss"] is None for line in metrics] == [False] * 3 + [True] * 3 + [False] * 3
    monkeypatch.undo()

    other = tmp_path / "other"
    shutil.copytree(run, other)
    for path in (other / "checkpoints").iterdir():
        if path.name != "step-00000002":
            shutil.rmtree(path)
    moved = other / "checkpoints/step-00000006"
    (other / "checkpoints/step-00000002").rename(moved)
    for name in ("manifest.json", "state.json"):
        text = (moved / name).read_text().replace('"step": 2', '"step": 6')
        (moved / name).write_text(text)
    manifest = json.loads((moved / "manifest.json").read_text())
    content = (moved / "state.json").read_bytes()
    entry = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    manifest["files"]["state.json"] = entry
    (moved / "manifest.json").write_text(json.dumps(manifest))
    want = train(other, *options, "--resume")
    assert [line["loss"].hex() for line in metrics[6:]] == [x["loss"].hex() for x in want[-3:]]


def test_roll_back_does_not_go_round_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """The same checkpoint is tried once; where there is none the run stops, in one line."""
    options = ("--train.steps", "12", "--train.on_bad_steps", "roll_back")
    poison(monkeypatch, {4, 5, 6, 8, 9, 10})
    words = [*options, "--train.checkpoint_every", "3", "--train.keep_checkpoints", "1"]
    assert main(["train", RECIPE, "--run-dir", str(tmp_path / "a"), *words]) == 2
    errors = capsys.readouterr().err
    assert "no finite loss and gradient (from step 7), and " in errors and "Traceback" not in errors
    count = poison(monkeypatch, {1, 2, 3})
    words = [*options, "--train.checkpoint_every", "11"]
    assert main(["train", RECIPE, "--run-dir", str(tmp_path / "b"), *words]) == 2
    assert count == [3] and "there is no checkpoint before them" in capsys.readouterr().err


def test_bad_samples_survive_a_resume() -> None:
    """Their counts are part of the state."""
    log = BadSampleLog(None, max_bad_fraction=0.5)
    state = log.state_dict()
    BadSampleLog(None, max_bad_fraction=0.5).load_state_dict(state)
    assert json.loads(json.dumps(state)) == state
