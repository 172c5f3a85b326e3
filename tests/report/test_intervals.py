"""Tables of accuracies tell how sure each is."""

import json
from pathlib import Path

import pytest

from mmtrain.eval.intervals import mean_interval, wilson_interval
from mmtrain.eval.outcomes import Outcome, outcomes_path
from mmtrain.eval.result import EvalResult, write_result
from mmtrain.report import write_report
from mmtrain.report.render import interval_text
from tests.report.folders import RECALLS, make_run, write_probes
from tests.report.test_report import Page

COUNTS = {"num_images": 40, "num_texts": 200}


def told(*runs: Path) -> str:
    return " ".join(Page(write_report(runs, out=runs[0] / "r.html")).texts)


def write(run: Path, name: str, figures: dict[str, object], outcomes: list[Outcome]) -> Path:
    path = run / "eval" / f"{name}.json"
    write_result(path, EvalResult(figures=figures, best=[], worst=[], outcomes=tuple(outcomes)))
    return path


def questions(run: Path, name: str, *, period: int) -> list[Outcome]:
    """Four questions about each of 30 images."""
    found = [
        Outcome(
            metric="accuracy",
            id=str(n),
            image=str(n // 4),
            score=float(n // 4 % period > 0),
            kinds={"answer_type": "yes/no" if n % 4 else "other"},
        )
        for n in range(120)
    ]
    mean = sum(one.score for one in found) / 120
    figures = {"accuracy": mean, "num_questions": 120, "num_images": 30}
    write(run, name, figures | {"per_answer_type": {"yes/no": mean, "other": mean}}, found)
    return found


def text_of(outcomes: list[Outcome]) -> str:
    interval = mean_interval(outcomes)
    assert interval is not None
    return interval_text(interval)


@pytest.mark.parametrize("period", [2, 3, 7])
def test_every_table_has_intervals(tmp_path: Path, period: int) -> None:
    run = make_run(tmp_path / "run")
    write_probes(run)
    found = questions(run, "vqa", period=period)
    texts = [
        Outcome(metric="t2i_recall@1", id=str(n), image=str(n // 5), score=float(n % period < 1))
        for n in range(200)
    ]
    share = sum(one.score for one in texts) / 200
    write(run, "caps", RECALLS | COUNTS | {"t2i_recall@1": share}, texts)
    pairs = [
        Outcome(metric="accuracy", id=str(n), image=str(n), score=float(n % period > 0))
        for n in range(50)
    ]
    right = sum(one.score for one in pairs) / 50
    write(run, "pairs", {"accuracy": right, "num_samples": 50, "num_negatives": 50}, pairs)
    shown = told(run)
    assert f"linear probe 41.0 % {interval_text(wilson_interval(25, 60))}" in shown
    assert f"{100 * share:.1f} % {text_of(texts)}" in shown
    assert (
        f"{100 * RECALLS['i2t_recall@5']:.1f} % {interval_text(wilson_interval(10, 40))}" in shown
    )
    # A share of 200 texts of 40 images whose outcomes nobody wrote tells none.
    assert f"{100 * RECALLS['t2i_recall@5']:.1f} % 50.0 %" in shown
    assert f"{100 * found_mean(found):.1f} % {text_of(found)}" in shown
    other = [one for one in found if one.kinds["answer_type"] == "other"]
    assert f"other {100 * found_mean(other):.1f} % ({text_of(other)})" in shown
    assert text_of(pairs) in shown and "pairs.json has no figure" not in shown
    assert "Wilson's" in shown and "percentile bootstrap" in shown
    another = make_run(tmp_path / "another")
    both = told(run, another)
    assert f"{100 * found_mean(found):.1f} % {text_of(found)} –" in both and "Wilson's" in both


def found_mean(outcomes: list[Outcome]) -> float:
    return sum(one.score for one in outcomes) / len(outcomes)


def test_damaged_outcomes_are_told_and_no_page_is_lost(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    questions(run, "vqa", period=3)
    path = run / "eval/vqa.json"
    outcomes_path(path).write_text('{"metric"\n')
    shown = told(run)
    assert "No intervals of vqa are told" in shown and "percentile bootstrap" not in shown
    questions(run, "vqa", period=3)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"accuracy": 0.125}))
    assert "they are of two evaluations" in told(run)
