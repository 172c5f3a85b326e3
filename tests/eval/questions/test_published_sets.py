"""Sets in their published files: asked of a model, judged from a file, and by a second writing of
their rules, all the same."""

import errno
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmtrain.cli import main
from mmtrain.data.questions.answers import build_vocabulary, every_question
from mmtrain.data.questions.source import open_questions
from tests.data.questions.published_files import (
    OK_TYPES,
    draw_ok_vqa,
    draw_text,
    draw_text_vqa,
    write_images,
    write_json,
)
from tests.eval.questions.judging import asked, judged
from tests.eval.questions.published_rules import text_vqa_score
from tests.eval.questions.test_accuracy import port


def ok_vqa(folder: Path, seed: int = 0) -> tuple[list[str], list[dict[str, Any]]]:
    """The options that name OK-VQA's files, and its annotations."""
    questions, notes = draw_ok_vqa(seed)
    names = [f"COCO_val2014_{row['image_id']:012d}.png" for row in questions["questions"]]
    images = write_images(folder / "images", names)
    files = ["--questions", write_json(folder / "asked_ok.json", questions)]
    files += ["--annotations", write_json(folder / "notes_ok.json", notes)]
    return ["--data", images, *files], notes["annotations"]


def text_vqa(folder: Path, seed: int = 0) -> tuple[list[str], list[dict[str, Any]]]:
    """The options that name TextVQA's files, and its rows."""
    content = draw_text_vqa(seed)
    images = write_images(folder / "images", (f"{r['image_id']}.png" for r in content["data"]))
    return ["--data", images, "--questions", write_json(folder / "text.json", content)], content[
        "data"
    ]


def say(draw: random.Random, answers: list[str]) -> str:
    return draw.choice([draw.choice(answers), draw.choice(answers).upper(), draw_text(draw)])


def test_ok_vqa(model: str, tmp_path: Path) -> None:
    files, notes = ok_vqa(tmp_path)
    draw, rows = random.Random(1), []
    for note in notes:
        given = [one["answer"] for one in note["answers"]]
        rows.append({"question_id": note["question_id"], "answer": say(draw, given)})
    scores = [
        port(row["answer"], [one["answer"] for one in note["answers"]], always=False)
        for row, note in zip(rows, notes, strict=True)
    ]
    found = judged(tmp_path, rows, files[2:])
    assert found["accuracy"] == pytest.approx(sum(scores) / len(scores)) and found["accuracy"] > 0
    assert found["per_question_type"].keys() <= set(OK_TYPES.values()) and found["mode"] == (
        "official"
    )
    assert asked(model, tmp_path, files)["num_images"] == len({n["image_id"] for n in notes})


def fuzz_text_vqa(folder: Path, seeds: range) -> None:
    for seed in seeds:
        files, questions = text_vqa(folder, seed)
        draw = random.Random(seed)
        rows = [
            {"question_id": row["question_id"], "answer": say(draw, row["answers"])}
            for row in questions
        ]
        scores = [
            text_vqa_score(row["answer"], one["answers"])
            for row, one in zip(rows, questions, strict=True)
        ]
        found = judged(folder, rows, files[2:])
        assert found["accuracy"] == pytest.approx(sum(scores) / len(scores)), seed
        assert found["accuracy"] > 0 and found["mode"] == "textvqa"


def test_text_vqa(model: str, tmp_path: Path) -> None:
    fuzz_text_vqa(tmp_path, range(4))
    files, _ = text_vqa(tmp_path)
    asked(model, tmp_path, files)
    asked(model, tmp_path, files, "--head", "generate")


@pytest.mark.slow
def test_text_vqa_on_more(tmp_path: Path) -> None:
    fuzz_text_vqa(tmp_path, range(4, 300))


def test_text_vqa_is_trained_on(tmp_path: Path) -> None:
    """Answers are learned as they are compared."""
    content = draw_text_vqa(0)
    for row in content["data"]:
        row["answers"] = ["Dog's, house"] * 10
    images = write_images(tmp_path / "i", (f"{row['image_id']}.png" for row in content["data"]))
    asked = open_questions(images, questions=write_json(tmp_path / "text.json", content))
    assert build_vocabulary(every_question(asked), min_count=9).answers == ("dog 's house",)


def damage(edit: Callable[[list[dict[str, Any]]], object]) -> dict[str, Any]:
    content = draw_text_vqa(0, num=3)
    edit(content["data"])
    return content


DAMAGED: dict[str, tuple[Any, str]] = {
    "no rows": (draw_text_vqa(0, num=0), "holds no question"),
    "nine answers": (damage(lambda rows: rows[1]["answers"].pop()), "34603 has 9 answers"),
    "a number": (damage(lambda r: r[2]["answers"].__setitem__(3, 7)), "34604: answers = "),
    "one text": (damage(lambda r: r[0].update(answers="cat")), "34602: answers = 'cat' is no list"),
    "no image": (damage(lambda r: r[0].pop("image_id")), "34602: without 'image_id'"),
    "no question": (damage(lambda r: r[0].update(question=None)), "question = None is no text"),
    "twice": (damage(lambda r: r[1].update(question_id=34602)), "34602 is there twice"),
    "no id": (damage(lambda r: r[1].pop("question_id")), "row 1 is without 'question_id'"),
    "no answers": (damage(lambda r: r[1].update(answers=[])), "34603 has no answers"),
    "another set": ({"data": [{"paragraphs": [], "title": "x"}]}, "of no known form"),
    "a text for a row": ({"data": ["what?"]}, "of no known form"),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_damaged_files_are_one_line(tmp_path: Path, capsys, what: str) -> None:
    content, told = DAMAGED[what]
    words = ["--questions", write_json(tmp_path / "asked.json", content)]
    words += ["--predictions", write_json(tmp_path / "said.json", [])]
    assert main(["eval", "answers", *words, "--out", str(tmp_path / "out.json")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line and "questions = " in line and not (tmp_path / "out.json").exists()


def test_what_has_no_effect_is_refused(tmp_path: Path, capsys) -> None:
    files, questions = text_vqa(tmp_path)
    rows = [{"question_id": row["question_id"], "answer": "cat"} for row in questions]
    words = ["eval", "answers", "--predictions", write_json(tmp_path / "said.json", rows)]
    words += [*files[2:], "--out", str(tmp_path / "out.json")]
    assert main([*words, "--mode", "evalai"]) == 2
    assert "mode = evalai is VQAv2's" in capsys.readouterr().err
    assert main([*words, "--annotations", files[-1]]) == 2
    assert "only VQAv2 and OK-VQA have such a file" in capsys.readouterr().err
    _, notes = draw_ok_vqa(0)
    asked_ok, _ = ok_vqa(tmp_path)
    notes["question_types"] = ["one"]
    broken = write_json(tmp_path / "notes_ok.json", notes)
    assert main([*words[:4], *asked_ok[2:4], "--annotations", broken, *words[-2:]]) == 2
    assert "question_types = ['one'] is no table" in capsys.readouterr().err


@pytest.mark.parametrize("blocked", ["model.json", "asked.json"])
def test_a_file_that_cannot_be_written_leaves_the_figures(
    model: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    blocked: str,
) -> None:
    """On the screen and in the file that can; whether the model's answers or somebody's."""
    files, _ = ok_vqa(tmp_path)
    replace = os.replace

    def full(source: Path, target: Path) -> None:
        if Path(target).name == blocked:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(source))
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    outs = {name: str(tmp_path / name) for name in ("model.json", "asked.json")}
    words = ["--predictions", outs["model.json"], "--out", outs["asked.json"]]
    assert main(["eval", "vqa", "--model", model, *files, *words]) == 2
    shown = capsys.readouterr()
    assert "accuracy " in shown.out and f"{blocked} cannot be written" in shown.err
    other = next(path for name, path in outs.items() if name != blocked)
    assert json.loads(Path(other).read_text())
    if blocked == "asked.json":
        own = files[files.index("--questions") :]
        assert main(["eval", "answers", *own, *words]) == 2
        shown = capsys.readouterr()
        assert "accuracy " in shown.out and f"{blocked} cannot be written" in shown.err
