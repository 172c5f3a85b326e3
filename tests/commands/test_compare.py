"""`mmtrain compare` on results that `mmtrain eval` wrote, and what it refuses."""

import json
import re
from pathlib import Path

import pytest

from mmtrain.build.resolve import resolve
from mmtrain.cli import main
from mmtrain.data.images.transforms import PreprocessConfig
from mmtrain.data.text.tokenizer import build_tokenizer
from mmtrain.eval.outcomes import Outcome, outcomes_path, read_outcomes
from mmtrain.eval.result import EvalResult, write_result
from mmtrain.loading import save_model
from mmtrain.models import Clip
from mmtrain.recipe import load_recipe
from tests.data.questions.vqa_files import write_set

ROOT = Path(__file__).parents[2]
DEBUG = ROOT / "mmtrain/demo/debug"


@pytest.fixture
def results(tmp_path: Path) -> tuple[Path, Path]:
    """Answers to 36 questions about 12 images: A knows the colours, B answers yes or no too."""
    files = write_set(tmp_path / "set")
    notes = json.loads(Path(files["annotations"]).read_text())["annotations"]
    out = []
    for name, knows in (("a", ("other",)), ("b", ("other", "yes/no"))):
        said = [
            {
                "question_id": row["question_id"],
                "answer": row["answers"][0]["answer"] if row["answer_type"] in knows else "no",
            }
            for row in notes
        ]
        (tmp_path / f"said_{name}.json").write_text(json.dumps(said))
        words = ["--predictions", str(tmp_path / f"said_{name}.json")]
        words += ["--questions", files["questions"], "--annotations", files["annotations"]]
        out.append(tmp_path / f"{name}.json")
        assert main(["eval", "answers", *words, "--out", str(out[-1])]) == 0
    return out[0], out[1]


def test_answers_are_compared_whole_and_by_type(
    results: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
):
    a, b = results
    capsys.readouterr()
    assert main(["compare", str(a), str(b)]) == 0
    shown = capsys.readouterr().out
    accuracy = [json.loads(path.read_text())["accuracy"] for path in (a, b)]
    found = re.search(
        r"accuracy: B is better by ([\d.]+) points, 95 % interval ([\d.]+) to ([\d.]+) \(.*; "
        r"36 outcomes of 12 images",
        shown,
    )
    assert found is not None, shown
    points, low, high = map(float, found.groups())
    assert points == pytest.approx(100 * (accuracy[1] - accuracy[0]), abs=0.006)
    assert 0 < low < points < high
    assert re.search(r"answer_type other +\+0\.00 points, \+0\.00 to \+0\.00 \(12\)", shown)
    assert re.search(r"answer_type yes/no +\+\d", shown) and "question_type is" in shown
    assert main(["compare", str(b), str(a)]) == 0
    assert f"A is better by {points:.2f} points" in capsys.readouterr().out
    assert main(["compare", str(a), str(a)]) == 0
    assert "no difference is seen: B - A is +0.00 points" in capsys.readouterr().out


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of random weights, of the debug recipe."""
    folder = tmp_path_factory.mktemp("model")
    recipe = load_recipe(ROOT / "configs/debug_clip.toml")
    tokenizer = build_tokenizer(recipe.tokenizer, folder=ROOT)
    config = resolve(recipe, tokenizer).model.clip
    preprocess = PreprocessConfig(image_size=config.vision.image_size)
    clip = Clip(config).init_weights(0)
    save_model(folder, model=clip, tokenizer=tokenizer, preprocess=preprocess)
    return folder


@pytest.mark.parametrize("task", ["zero-shot", "retrieval", "knn"])
def test_every_kind_of_result_has_outcomes_whose_mean_is_its_figure(
    task: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "r.json"
    words = ["eval", task, "--model", str(model), "--out", str(out)]
    for option in ("--train", "--test") if task == "knn" else ("--data",):
        words += [option, str(DEBUG / "train.tar")]
    words += [] if task == "retrieval" else ["--classes", str(DEBUG / "classes.json")]
    assert main(words) == 0
    figures, held = json.loads(out.read_text()), read_outcomes(out)
    assert set(held) == ({"i2t_recall@1", "t2i_recall@1"} if task == "retrieval" else {"top1"})
    for metric, outcomes in held.items():
        mean = sum(one.score for one in outcomes.values()) / len(outcomes)
        assert mean == pytest.approx(figures[metric])
    capsys.readouterr()
    assert main(["compare", str(out), str(out)]) == 0
    shown = capsys.readouterr().out
    assert "no difference is seen" in shown and "McNemar's test p = 1" in shown


def write(path: Path, scores: dict[str, float], metric: str = "accuracy") -> Path:
    outcomes = tuple(
        Outcome(metric=metric, id=id, image=id[0], score=score) for id, score in scores.items()
    )
    figures = {metric: sum(scores.values()) / len(scores)}
    write_result(path, EvalResult(figures=figures, best=[], worst=[], outcomes=outcomes))
    return path


def test_what_cannot_be_compared_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    good = write(tmp_path / "good.json", {"a1": 1, "b1": 0})
    others = {
        "other.json has no outcome of b1 and 0 more": {"a1": 1.0, "c1": 0.0},
        "more.json": {"a1": 1.0, "b1": 0.0, "b2": 1.0},
    }
    for name, scores in others.items():
        path = write(tmp_path / f"{name.split('.')[0]}.json", scores)
        assert main(["compare", str(good), str(path)]) == 2
        line = capsys.readouterr().err
        assert "compare results on the same set" in line and name.split(".json")[0] in line
    path = write(tmp_path / "images.json", {"a1": 1.0, "b1": 0.0})
    held = outcomes_path(path)
    held.write_text(held.read_text().replace('"image": "b"', '"image": "x"'))
    assert main(["compare", str(good), str(path)]) == 0
    held.write_text(held.read_text().replace('"image": "x"', '"image": "a"'))
    assert main(["compare", str(good), str(path)]) == 2
    assert "put the same ids to other images" in capsys.readouterr().err
    kind = write(tmp_path / "kind.json", {"a1": 1, "b1": 0}, metric="top1")
    assert main(["compare", str(good), str(kind)]) == 2
    assert "one kind of evaluation" in capsys.readouterr().err
    lines = outcomes_path(kind).read_text().splitlines()
    for content, told in (
        (lines[:1], "gives top1 = 1, but kind.json has 0.5"),
        ([*lines, lines[0]], "kind.outcomes.jsonl:3: a1 is there twice"),
        ([lines[0], "{"], "kind.outcomes.jsonl:2 is damaged"),
        (
            [lines[0], lines[1].replace('"score": 0', '"score": 7')],
            "kind.outcomes.jsonl:2 is damaged",
        ),
        ([lines[0], '{"metric": "top1"}'], "kind.outcomes.jsonl:2 is damaged"),
        ([], "kind.outcomes.jsonl is empty"),
    ):
        outcomes_path(kind).write_text("\n".join(content) + "\n" * bool(content))
        assert main(["compare", str(kind), str(kind)]) == 2
        assert told in capsys.readouterr().err
    outcomes_path(kind).unlink()
    assert main(["compare", str(kind), str(kind)]) == 2
    assert "has no kind.outcomes.jsonl beside it" in capsys.readouterr().err
    (tmp_path / "run/eval").mkdir(parents=True)
    for example in ("NAME", "val"):  # a run, without a result and with one
        assert main(["compare", str(good), str(tmp_path / "run")]) == 2
        told = capsys.readouterr().err
        assert (
            f"is a folder; name a result in it, such as {tmp_path}/run/eval/{example}.json" in told
        )
        for name in ("val.json", "val.failed.json"):
            (tmp_path / "run/eval" / name).write_text("{}")
    write_result(good, EvalResult(figures={}, best=[], worst=[]))
    assert not outcomes_path(good).exists(), "an earlier result's"


def test_what_both_do_not_share_is_told(
    results: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
):
    """Samples are known by their names: other pictures, classes or rules under them are told."""
    a, b = results
    capsys.readouterr()
    assert main(["compare", str(a), str(b)]) == 0
    assert not capsys.readouterr().err
    for key in ("data_fingerprint", "classes_fingerprint", "mode"):
        for path, value in ((a, "one"), (b, "other")):
            path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
        assert main(["compare", str(a), str(b)]) == 0
        assert f"{b} has another {key} than {a} (other, one): " in capsys.readouterr().err


def test_a_figure_that_is_no_number_is_no_figure_of_the_outcomes(
    results: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
):
    a, b = results
    b.write_text(json.dumps(json.loads(b.read_text()) | {"accuracy": float("nan")}))
    capsys.readouterr()
    assert main(["compare", str(a), str(b)]) == 2
    assert "has nan: they are of two evaluations" in capsys.readouterr().err
