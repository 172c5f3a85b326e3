"""A mixture whose weights change while it trains: the steps behind stay, the rest is exact."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from mmtrain.cli import main
from mmtrain.data.mixture import MixtureSource, WeightChange, changed_at, weight_schedule
from mmtrain.settings.read_toml import read_toml

TEXT = Path("configs/debug_mixture.toml").read_text(encoding="utf-8")
PLAIN = TEXT.replace("weight_changes = [{ from_step = 10, weight = 0.05 }]\n", "")
WORDS = ("--train.steps", "8", "--train.checkpoint_every", "2", "--train.keep_checkpoints", "9")


def train(folder: Path, run: str, text: str, *words: str) -> list[dict[str, Any]]:
    """Train a recipe, which must go well -> its metrics, without times."""
    (folder / "recipe.toml").write_text(text, encoding="utf-8")
    words = ("train", str(folder / "recipe.toml"), "--run-dir", str(folder / run), *WORDS, *words)
    assert main([*words]) == 0
    return metrics(folder / run)


def metrics(run: Path) -> list[dict[str, Any]]:
    names = ("step", "samples_seen", "loss", "grad_norm", "source_samples", "source_epochs")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: row[name] for name in names} for row in rows]


def cut(run: Path, step: int) -> None:
    """As killed behind a step."""
    for path in (run / "checkpoints").iterdir():
        if int(path.name[-8:]) > step:
            shutil.rmtree(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs `plain`, and `planned`, whose weights change at step 4."""
    folder = tmp_path_factory.mktemp("mixture")
    planned = PLAIN.replace(
        "weight = 0.3\n", "weight = 0.3\nweight_changes = [{ from_step = 4, weight = 2 }]\n"
    )
    train(folder, "plain", PLAIN)
    rows = train(folder, "planned", planned)
    assert rows[3] == metrics(folder / "plain")[3] and rows[4] != metrics(folder / "plain")[4]
    return folder


def test_a_resume_is_exact_across_the_change(folder: Path, tmp_path: Path):
    expected = metrics(folder / "planned")
    for step in (2, 4):  # behind the change: at the end of the next test
        run = tmp_path / f"from{step}"
        shutil.copytree(folder / "planned", run)
        cut(run, step)
        assert main(["train", "--resume", "--run-dir", str(run)]) == 0
        assert metrics(run) == expected


def test_another_weight_holds_from_the_resumed_step_on(folder: Path, tmp_path: Path, capsys):
    """The weight is just written over: the run is then that in which the change was planned; it
    is kept in the history, and need not be told again."""
    run = tmp_path / "run"
    shutil.copytree(folder / "plain", run)
    cut(run, 4)
    edited = PLAIN.replace("weight = 0.3\n", "weight = 2\n")
    (tmp_path / "recipe.toml").write_text(edited, encoding="utf-8")
    words = ["train", str(tmp_path / "recipe.toml"), "--run-dir", str(run), *WORDS]
    assert main([*words, "--resume"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "data.mixture[made_up].weight_changes" in line and "--resume-with-changes" in line
    assert main([*words, "--resume-with-changes"]) == 0
    assert metrics(run) == metrics(folder / "planned")
    (record,) = [json.loads(one) for one in (run / "history.jsonl").read_text().splitlines()]
    changes = {"data.mixture[made_up].weight_changes": [[], [{"from_step": 4, "weight": 2.0}]]}
    assert record["step"] == 4 and record["changes"] == changes
    kept = read_toml(run / "recipe.toml")["data"]["mixture"][1]
    assert (kept["weight"], kept["weight_changes"]) == (0.3, [{"from_step": 4, "weight": 2.0}])
    cut(run, 6)
    assert main([*words, "--resume"]) == 0
    assert metrics(run) == metrics(folder / "planned")


def test_what_would_change_the_steps_behind_is_refused(folder: Path, tmp_path: Path, capsys):
    run = tmp_path / "run"
    shutil.copytree(folder / "plain", run)
    cut(run, 6)
    for old, new, told in (
        ('mixture_end = "repeat"', 'mixture_end = "stop"', "would have made other steps before"),
        ('name = "made_up"', 'name = "other"', "data.mixture = "),
        ("weight = 0.7\n", 'weight = 0.7\nlabel_key = "a"\n', "data.mixture[drawings].label_key"),
    ):
        (tmp_path / "recipe.toml").write_text(PLAIN.replace(old, new), encoding="utf-8")
        words = ["train", str(tmp_path / "recipe.toml"), "--run-dir", str(run), *WORDS]
        assert main([*words, "--resume-with-changes"]) == 2
        assert told in capsys.readouterr().err.splitlines()[-1]


def source(weight: float, *changes: tuple[int, float]) -> MixtureSource:
    made = tuple(WeightChange(from_step=step, weight=value) for step, value in changes)
    return MixtureSource(name="a", train="a.tar", weight=weight, weight_changes=made)


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        (source(1), source(2), source(1, (7, 2))),
        (source(1), source(1, (9, 2)), source(1, (9, 2))),
        (source(1, (5, 3)), source(3), source(1, (5, 3))),
        (source(1, (5, 3), (8, 4)), source(3), source(1, (5, 3))),
        (source(1, (5, 3), (7, 4)), source(9, (7, 4)), source(1, (5, 3), (7, 4))),
        (source(1, (7, 3)), source(0, (8, 1)), source(1, (7, 0), (8, 1))),
        (source(1, (2, 3)), source(1, (2, 3), (5, 9), (6, 3)), source(1, (2, 3))),
    ],
    ids=str,
)
def test_weights_behind_stay_and_those_ahead_are_the_new_ones(before, now, expected):
    assert changed_at(before, now, 7) == expected
    assert changed_at(before, now, 0) == now
    for step in range(12):
        wanted = (before if step < 7 else now).weight_at(step)
        assert changed_at(before, now, 7).weight_at(step) == wanted


def test_a_change_to_the_same_weights_is_none():
    assert len(weight_schedule([source(1, (4, 1), (5, 2), (6, 2))])) == 2
