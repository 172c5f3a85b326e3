"""A run that is read while it goes on: what is half written waits, what came before stays."""

import json
from pathlib import Path
from typing import Any

import pytest

from mmtrain.eval import EvalResult, write_result
from mmtrain.report import live_run
from mmtrain.report.live_run import LiveRun, Tail
from mmtrain.report.run_folder import read_run
from tests.report.folders import make_run


def add(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def steps(tail: Tail) -> list[int]:
    tail.read_on()
    return [row["step"] for row in tail.rows]


def test_a_line_is_read_when_it_is_ended(tmp_path: Path) -> None:
    """Wherever the writer was interrupted in it."""
    path = tmp_path / "metrics.jsonl"
    tail, line = Tail(path), json.dumps({"step": 1, "name": "Zürich"}, ensure_ascii=False) + "\n"
    assert steps(tail) == []
    written = line.encode()
    for cut in range(len(written)):
        with path.open("ab") as file:
            file.write(written[cut : cut + 1])
        assert steps(tail) == [1] * (cut + 1 == len(written))
    assert tail.rows[0]["name"] == "Zürich" and tail.num_damaged == 0
    add(path, 'nonsense\n[1]\n{"step": 2}\n{"step": 3}')
    assert steps(tail) == [1, 2] and tail.num_damaged == 2


@pytest.mark.parametrize("shorter", [True, False])
def test_a_log_that_a_resume_cut_is_read_anew(tmp_path: Path, shorter: bool) -> None:
    """As `MetricsLog` does it: another file in its place, which may be longer than the old one."""
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n')
    tail = Tail(path)
    assert steps(tail) == [1, 2, 3]
    new = tmp_path / "new"
    new.write_text('{"step": 1}\n' if shorter else '{"step": 7}\n' * 9)
    new.replace(path)
    assert steps(tail) == ([1] if shorter else [7] * 9)
    path.write_text("")
    assert steps(tail) == []
    path.unlink()
    assert steps(tail) == []


def test_a_log_that_has_the_number_of_an_older_one(tmp_path: Path) -> None:
    """A disk gives the number of a file that is gone to the next one: two resumes between two
    looks."""
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n')
    tail = Tail(path)
    assert steps(tail) == [1, 2]
    path.write_text('{"step": 1}\n{"step": 7}\n{"step": 8}\n')
    assert steps(tail) == [1, 7, 8]


def test_a_long_log_is_kept_by_what_is_drawn_of_it(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": n, "loss": 1.0, "more": n}) + "\n" for n in (1, 2)))
    tail = Tail(path, shown={"step", "loss"})
    tail.read_on()
    whole = [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 1.0, "more": 2}]
    assert tail.rows == whole
    # A failed evaluation's line is of no step: the account of epochs is in the one before it.
    add(path, '{"step": 2, "eval_failed": "pairs", "error": "no"}\n')
    tail.read_on()
    assert tail.rows == [*whole, {"step": 2}]
    add(path, '{"step": 3, "more": 3}\n')
    tail.read_on()
    assert tail.rows == [whole[0], {"step": 2, "loss": 1.0}, {"step": 2}, {"step": 3, "more": 3}]


def test_what_it_reads_is_what_a_report_reads(tmp_path: Path, monkeypatch: Any) -> None:
    """At once and after more came; what did not change is not read again."""
    path = tmp_path / "run"
    counts: list[str] = []
    live = LiveRun(path)
    assert live.read() is None
    make_run(path)
    monkeypatch.setattr(live_run, "_SHOWN", None)  # all, as the report
    read = live_run.read_evaluation

    def counted(file: Path, *rest: Any) -> Any:
        counts.append(file.stem)
        return read(file, *rest)

    monkeypatch.setattr(live_run, "read_evaluation", counted)
    live = LiveRun(path)
    assert live.read() == read_run(path)
    assert live.read() == read_run(path) and counts == ["held-out", "pairs"]
    add(path / "metrics.jsonl", '{"step": 41, "loss": 2.0, "samples_seen": 9}\n')
    add(path / "metrics.jsonl", '{"step": 41, "eval_failed": "pairs", "error": "no"}\n')
    add(path / "bad_samples.jsonl", '{"key": "x", "reason": "none"}\n')
    write_result(path / "eval" / "pairs.json", EvalResult(figures={"a": 1.0}, best=[], worst=[]))
    (path / "run.json").write_text('{"total_steps": 50}')
    now = live.read()
    assert now is not None and now == read_run(path) and counts == ["held-out", "pairs", "pairs"]
    assert now.notes == ["Evaluation pairs failed at step 41, and was done later."]
