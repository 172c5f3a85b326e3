"""POPE from its files: yes or no by the published reading of an answer."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from mmtrain.cli import main
from mmtrain.eval.questions.pope import says
from tests.data.questions.published_files import (
    POPE,
    draw_pope,
    write_images,
    write_json,
    write_lines,
)
from tests.eval.questions.judging import asked, judged
from tests.eval.questions.published_rules import pope_score

PARTS = ["No", "no", "not", "NO", "yes", "Yes", "there", "is", "dog", "No,", "nothing", "no\n", ""]
FIVE = ("accuracy", "precision", "recall", "f1", "yes_ratio")


def say(draw: random.Random) -> str:
    joint = (" ", " ", ". ", ", ", ".", "\n", "! ")
    return "".join(draw.choice(PARTS) + draw.choice(joint) for _ in range(draw.randint(0, 4)))


def fuzz(folder: Path, seeds: range) -> None:
    for seed in seeds:
        draw, joined = random.Random(seed), seed % 2 == 1
        questions = draw_pope(seed, joined=joined)
        # Of every category one rightly, as the published program would divide by nothing.
        rows = [
            {"question_id": row["question_id"], "text": "yes" if n < 3 else say(draw)}
            for n, row in enumerate(questions)
        ]
        name = "joined.jsonl" if joined else f"coco_pope_{POPE[seed % 3]}.json"
        files = ["--questions", write_lines(folder / name, questions)]
        found = judged(folder, rows, files)
        pairs = [(one["text"], row["label"]) for one, row in zip(rows, questions, strict=True)]
        right = pope_score(pairs)
        assert found["accuracy"] == pytest.approx(right["accuracy"])
        assert all(found[f"pope_{key}"] == pytest.approx(right[key]) for key in FIVE[1:]), seed
        for number, category in enumerate(POPE if joined else [POPE[seed % 3]]):
            own = pairs[number::3] if joined else pairs
            assert found["per_category"][category] == pytest.approx(pope_score(own)), seed


def test_the_published_rule(tmp_path: Path) -> None:
    fuzz(tmp_path, range(6))


@pytest.mark.slow
def test_the_published_rule_on_more(tmp_path: Path) -> None:
    fuzz(tmp_path, range(6, 600))


@pytest.mark.parametrize(
    ("answer", "read"),
    [
        ("No.", "no"),
        ("no", "no"),
        ("Yes. No.", "yes"),
        ("It is not there", "no"),
        ("NO", "yes"),
        ("", "yes"),
        ("No, there is none", "no"),
        ("no\nyes", "yes"),
        ("nothing", "yes"),
    ],
)
def test_what_an_answer_is_read_as(answer: str, read: str) -> None:
    assert says(answer) == read


def test_a_model_is_asked(model: str, tmp_path: Path, capsys) -> None:
    questions = draw_pope(0, joined=True)
    images = write_images(tmp_path / "images", (row["image"] for row in questions))
    files = ["--data", images, "--questions", write_lines(tmp_path / "pope.json", questions)]
    found = asked(model, tmp_path, files)
    lines = (tmp_path / "model.json").read_text().splitlines()
    # The published program pairs answers and labels by their place.
    assert [json.loads(line)["question_id"] for line in lines] == [*range(1, 31)]
    assert found["per_category"].keys() == {*POPE} and found["mode"] == "pope"
    assert "yes_ratio" in capsys.readouterr().out


def test_a_figure_over_nothing_is_none_at_all(tmp_path: Path) -> None:
    rows = [{"question_id": number + 1, "answer": "no"} for number in range(30)]
    files = ["--questions", write_lines(tmp_path / "q.json", draw_pope(0))]
    found = judged(tmp_path, rows, files)
    assert [found[f"pope_{key}"] for key in FIVE[1:]] == [0, 0, 0, 0] and found["accuracy"] > 0


ROWS = draw_pope(0, num=3)
DAMAGED: dict[str, tuple[list[Any], str]] = {
    "a label": ([ROWS[0] | {"label": "Yes"}, *ROWS[1:]], "question_id 1: label = 'Yes' is neither"),
    "no image": ([ROWS[0], {**ROWS[1], "image": None}], "question_id 2: image = None is no text"),
    "a text": ([ROWS[0], {**ROWS[1], "text": 3}], "question_id 2: text = 3 is no text"),
    "twice": ([*ROWS, ROWS[0]], "question_id 1 is there twice"),
    "no id": ([ROWS[0], {"image": "a", "text": "b"}], "row 1 is without 'question_id'"),
    "a list": ([ROWS[0], ["x"]], "row 1 is without 'question_id'"),
    "LLaVA's answers": (
        [{"question_id": n, "text": "yes", "answer_id": "a"} for n in (1, 2)],
        "holds answers without questions",
    ),
    "some without label": ([ROWS[0], {k: v for k, v in ROWS[1].items() if k != "label"}], "1 of 2"),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_damaged_files_are_one_line(tmp_path: Path, capsys, what: str) -> None:
    rows, told = DAMAGED[what]
    said = [{"question_id": row["question_id"], "answer": "no"} for row in ROWS[: len(rows)]]
    words = ["--questions", write_lines(tmp_path / "asked.json", rows)]
    words += ["--predictions", write_json(tmp_path / "said.json", said)]
    assert main(["eval", "answers", *words, "--out", str(tmp_path / "out.json")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line and "questions" in line


def test_lines_that_are_none(tmp_path: Path, capsys) -> None:
    asked_file = write_lines(tmp_path / "asked.json", ROWS)
    (tmp_path / "said.jsonl").write_text('{"question_id": 1, "text": "no"}\n{"question_id": 2, "te')
    words = ["--predictions", str(tmp_path / "said.jsonl"), "--out", str(tmp_path / "out.json")]
    assert main(["eval", "answers", "--questions", asked_file, *words]) == 2
    assert "said.jsonl is no JSON (line 2: " in capsys.readouterr().err
    # The questions are no answers to themselves, though they have a text.
    words[1] = asked_file
    assert main(["eval", "answers", "--questions", asked_file, *words]) == 2
    assert "row 0 is a question or an annotation" in capsys.readouterr().err
    write_lines(tmp_path / "said.jsonl", [{"question_id": n, "answer": "no"} for n in (1, 2, 3)])
    words[1] = str(tmp_path / "said.jsonl")
    assert main(["eval", "answers", "--questions", asked_file, *words, "--mode", "exact"]) == 2
    assert "POPE has one rule" in capsys.readouterr().err
    assert main(["eval", "answers", "--questions", asked_file, *words]) == 0
