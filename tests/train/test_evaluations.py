"""An evaluation never costs the training: what would fail is refused before the first step, what
fails later is told, and everything else is done."""

import itertools
import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmtrain import run as run_module
from mmtrain.cli import main
from mmtrain.eval import samples as samples_module
from mmtrain.eval.config import EVALUATORS, EvalConfig
from mmtrain.eval.evaluators.zero_shot import ZeroShotConfig
from mmtrain.eval.scheduled import command_words
from mmtrain.settings.decode import decode
from mmtrain.train.loop import Loop
from tests.data.questions.vqa_files import change
from tests.tasks.test_vqa_run import write_recipe as write_vqa_recipe

ROOT = Path(__file__).parents[2]
RECIPE = str(ROOT / "configs/debug_clip.toml")
DATA = str(ROOT / "mmtrain/demo/debug/train.tar")
CLASSES = str(ROOT / "mmtrain/demo/debug/classes.json")
SHORT = ("--data.train", DATA, "--train.steps", "6", "--train.checkpoint_every", "none")
KINDS: dict[str, dict[str, Any]] = {
    "zero_shot": {"name": "zs", "data": DATA, "classes": CLASSES},
    "retrieval": {"name": "ret", "data": DATA},
    "knn": {"name": "knn", "train": DATA, "test": DATA, "classes": CLASSES, "neighbours": 3},
    "linear_probe": {
        "name": "probe",
        "train": DATA,
        "test": DATA,
        "classes": CLASSES,
        "strengths": [1.0],
    },
}


def toml(table: dict[str, Any]) -> str:
    return "{" + ", ".join(f"{key} = {json.dumps(value)}" for key, value in table.items()) + "}"


def scheduled(*tables: tuple[str, dict[str, Any]]) -> list[str]:
    """The overrides that name evaluations."""
    kinds: dict[str, list[str]] = {}
    for kind, table in tables:
        kinds.setdefault(kind, []).append(toml(table))
    return [
        word
        for kind, members in kinds.items()
        for word in (f"--eval.{kind}", f"[{', '.join(members)}]")
    ]


def train(run: Path, *words: str) -> int:
    return main(["train", RECIPE, "--run-dir", str(run), *SHORT, *words])


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Files that evaluations cannot use: all of them open."""
    folder = tmp_path_factory.mktemp("broken")
    few = json.loads(Path(CLASSES).read_text())[:2]
    (folder / "few.json").write_text(json.dumps(few))
    (folder / "prompts.txt").write_text("a photo\n")
    Image.new("RGB", (8, 8)).save(folder / "one.png")
    (folder / "damaged.png").write_bytes((folder / "one.png").read_bytes()[:40])
    rows = {"good": "one.png", "lost": "lost.png", "damaged": "damaged.png"}
    for name, picture in rows.items():
        lines = ["filepath,caption", "one.png,a square", f"{picture},a square"]
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")
    return {path.name: str(path) for path in folder.iterdir()}


CASES = [
    ("zero_shot", {"label_key": "concpet"}, "concpet"),
    ("zero_shot", {"label_key": "txt"}, "is not among the classes"),
    ("zero_shot", {"classes": "few.json"}, "is not among the classes"),
    ("zero_shot", {"classes": "none.json"}, "none.json"),
    ("zero_shot", {"templates": "imgenet"}, "imgenet"),
    ("zero_shot", {"templates": "prompts.txt"}, "no place for the class"),
    ("zero_shot", {"data": "nowhere-*.tar"}, "nowhere-"),
    ("zero_shot", {"name": "a/b"}, "cannot be a file's"),
    ("retrieval", {"captions": ["caption"]}, "caption"),
    ("retrieval", {"data": "lost.csv", "captions": ["caption"]}, "lost.png"),
    ("retrieval", {"data": "damaged.csv", "captions": ["caption"]}, "damaged.png"),
    ("retrieval", {"data": "good.csv", "image_key": "picture"}, "picture"),
    ("knn", {"label_key": "concpet"}, "concpet"),
    ("knn", {"neighbours": 65}, "neighbours = 65 must be 1 to 64"),
    ("knn", {"temperature": 0.0}, "temperature = 0.0 must be above 0"),
    ("knn", {"test": "nowhere.tar"}, "nowhere"),
    ("linear_probe", {"label_key": "concpet"}, "concpet"),
    ("linear_probe", {"strengths": [0.0]}, "must be positive numbers"),
    ("linear_probe", {"validation": "nowhere.tar"}, "nowhere"),
]


@pytest.mark.parametrize(("kind", "wrong", "told"), CASES)
def test_a_mistake_is_refused_before_anything_is_done(
    kind: str,
    wrong: dict[str, Any],
    told: str,
    broken: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Seen at the first turn of an evaluation, a typo would have cost the hours before it."""
    wrong = {k: broken.get(v, v) if isinstance(v, str) else v for k, v in wrong.items()}
    assert train(tmp_path / "run", *scheduled((kind, KINDS[kind] | wrong))) == 2
    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith("mmtrain: error: eval") and told in line
    assert not (tmp_path / "run/metrics.jsonl").exists()


@pytest.mark.parametrize("part", ["annotations", "answers", "questions", "image", "head"])
def test_a_mistake_in_an_evaluation_by_questions_is_refused(
    part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_vqa_recipe(tmp_path / "train")
    write_vqa_recipe(tmp_path / "val")
    one = {"name": "val", "data": str(tmp_path / "val/images")}
    one |= {k: str(tmp_path / f"val/{k}.json") for k in ("questions", "annotations")}
    if part == "annotations":
        one["annotations"] = one["questions"]
    elif part == "questions":
        one["questions"] = str(tmp_path / "val/question.json")
    elif part == "answers":
        change(Path(one["annotations"]), lambda file: file["annotations"].clear())
    elif part == "image":
        first = sorted((tmp_path / "val/images").iterdir())[0]
        first.write_bytes(first.read_bytes()[:60])
    else:
        one["head"] = "write"
    words = ["--run-dir", str(tmp_path / "run"), *scheduled(("vqa", one))]
    assert main(["train", str(path), *words]) == 2
    assert "eval" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "run/metrics.jsonl").exists()


def test_a_right_one_of_each_kind_runs_and_can_be_repeated(tmp_path: Path) -> None:
    """The command that a failure would name gives the run's own figures."""
    assert train(tmp_path / "run", *scheduled(*KINDS.items())) == 0
    for kind, table in KINDS.items():
        result = json.loads((tmp_path / f"run/eval/{table['name']}.json").read_text())
        words = command_words(decode(EVALUATORS[kind], table))
        out = tmp_path / f"{kind}.json"
        assert main([*words, "--model", str(tmp_path / "run"), "--out", str(out)]) == 0
        again = json.loads(out.read_text())
        for key in ("top1", "i2t_recall@1", "num_samples", "model_fingerprint"):
            assert again.get(key) == result.get(key)


def test_it_computes_as_the_section_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever the training is in; its command does, and a device that cannot is refused."""
    run, zero_shot = tmp_path / "run", scheduled(("zero_shot", KINDS["zero_shot"]))
    section = EvalConfig(precision="bf16", fast=True, batch_size=16)
    words = ["--eval.precision", "bf16", "--eval.fast", "true", "--eval.batch_size", "16"]
    assert train(run, *zero_shot, *words) == 0
    out = tmp_path / "again.json"
    words = command_words(decode(ZeroShotConfig, KINDS["zero_shot"]))
    assert main([*words, *section.running, "--model", str(run), "--out", str(out)]) == 0
    told, again = (json.loads(path.read_text()) for path in (run / "eval/zs.json", out))
    assert told["precision"] == "bf16" and told["fast_batch_size"] == 16
    assert told | {"step": 6, "examples": 0} == again | {"step": 6, "examples": 0}
    capsys.readouterr()
    assert train(tmp_path / "no", "--eval.precision", "tf32", *zero_shot) == 2
    assert 'eval.precision = "tf32" needs a GPU' in capsys.readouterr().err
    assert train(tmp_path / "idle", "--eval.precision", "bf16", "--train.steps", "1") == 0
    assert 'eval.precision = "bf16" has no effect: the recipe' in capsys.readouterr().err


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def steps_in(path: Path) -> list[int]:
    return [row["step"] for row in rows_of(path)]


def lose_at(step: int, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Move a file away when a run has done so many steps."""
    real = Loop._step

    def one_step(self: Loop, *args: Any, **options: Any) -> Any:
        verdict = real(self, *args, **options)
        if self.state.step == step:
            path.rename(path.with_suffix(".gone"))
        return verdict

    monkeypatch.setattr(Loop, "_step", one_step)


def test_data_that_go_away_cost_one_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The training goes on, all else is written, the last line says how to repeat it."""
    val, run = tmp_path / "val.tar", tmp_path / "a run"
    shutil.copy(DATA, val)
    losing = {"name": "val", "data": str(val), "classes": CLASSES, "templates": "simple"}
    words = scheduled(("zero_shot", losing), ("retrieval", KINDS["retrieval"]))
    words += ["--eval.every", "2"]
    with monkeypatch.context() as patched:
        lose_at(3, val, patched)
        assert train(run, *words) == 2
    told = capsys.readouterr().err
    assert "step 4  evaluation val failed, the run goes on: " in told
    line = told.splitlines()[-1]
    assert line.startswith("mmtrain: error: the run is complete but for its evaluations: ")
    rows = rows_of(run / "metrics.jsonl")
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4, 5, 6]
    lost = [row for row in rows if "eval_failed" in row]
    assert [(row["step"], row["eval_failed"]) for row in lost] == [(4, "val"), (6, "val")]
    assert steps_in(run / "eval/ret.history.jsonl") == [2, 4, 6]
    assert json.loads((run / "eval/val.json").read_text())["step"] == 2
    failed = json.loads((run / "eval/val.failed.json").read_text())
    assert failed["step"] == 6 and failed["error"] in line and failed["trace"] is None
    assert (run / "export/config.json").is_file()
    assert "Evaluation val failed at step 6" in (run / "report.html").read_text()
    # Once the data are back, the command of the line, or the run itself, does it.
    val.with_suffix(".gone").rename(val)
    program, *again = shlex.split(line.partition("repeat it with: ")[2])
    assert program == "mmtrain" and main(again) == 0
    assert "step" not in json.loads((run / "eval/val.json").read_text())
    assert train(run, *words, "--resume") == 0
    assert not (run / "eval/val.failed.json").exists()
    assert json.loads((run / "eval/val.json").read_text())["step"] == 6
    page = (run / "report.html").read_text()
    assert "Evaluation val failed at step 4, 6, and was done later." in page


@pytest.mark.parametrize("background", ["true", "false"])
def test_the_state_is_saved_before_an_evaluation(
    background: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole, on disk: what kills the process in an evaluation costs no step."""
    seen = []
    real = run_module.Run.evaluate

    def evaluate(self: Any, log: Any) -> Any:
        seen.append(sorted(path.name for path in (self.folder / "checkpoints").iterdir())[-1])
        return real(self, log)

    monkeypatch.setattr(run_module.Run, "evaluate", evaluate)
    words = ("--eval.every", "2", "--train.async_checkpoint", background)
    assert train(tmp_path / "run", *words) == 0
    assert seen == [f"step-{step:08d}" for step in (2, 4, 6)]


def test_whatever_an_evaluation_raises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Even a defect of ours, one after another; the traceback is in the file of each."""
    errors = [RuntimeError("CUDA out of memory"), OSError(5, "I/O"), KeyError("a"), MemoryError()]
    turns = itertools.cycle(errors)

    def fail(*_: Any) -> None:
        raise next(turns)

    monkeypatch.setattr(samples_module, "encode_image_batch", fail)
    named = [("retrieval", KINDS["retrieval"] | {"name": type(one).__name__}) for one in errors]
    assert train(tmp_path / "run", *scheduled(*named), "--eval.every", "3") == 2
    for error in errors:
        name = type(error).__name__
        failed = json.loads((tmp_path / f"run/eval/{name}.failed.json").read_text())
        assert name in failed["error"] and failed["step"] == 6
        assert (failed["trace"] is None) == isinstance(error, OSError)
    assert (tmp_path / "run/export/config.json").is_file()
    rows = rows_of(tmp_path / "run/metrics.jsonl")
    assert len([row for row in rows if "loss" in row]) == 6
    assert "Traceback" not in capsys.readouterr().err
