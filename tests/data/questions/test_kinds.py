"""What files say of their questions' kinds is a text, nothing, or told: figures stand under it."""

import json
from pathlib import Path
from typing import Any

import pytest

from mmtrain.cli import main
from tests.data.questions.gqa_files import draw_gqa

ODD = [5, True, 1.5, ["x"], {"a": 1}]
IDS = (1, 2, 3)
GQA = draw_gqa(0, num=3)["questions"]


def vqa(**odd: Any) -> tuple[Any, Any, Any]:
    asked = [{"question_id": i, "image_id": i, "question": "what?"} for i in IDS]
    kinds = {"answer_type": "other", "question_type": "what"}
    answers = [{"answer": "cat"}] * 10
    rows = [{"question_id": i, "image_id": i, "answers": answers} | kinds for i in IDS]
    types = (
        {"question_types": {"what": odd.pop("question_types")}} if "question_types" in odd else {}
    )
    rows[0] |= odd
    said = [{"question_id": i, "answer": "cat"} for i in IDS]
    return {"questions": asked}, {"annotations": rows} | types, said


def vizwiz(**odd: Any) -> tuple[Any, None, Any]:
    row = {"question": "what?", "answers": [{"answer": "cat"}] * 10, "answer_type": "other"}
    rows = [row | {"image": f"{i}.jpg"} for i in IDS]
    rows[0] |= odd
    return rows, None, [{"image": f"{i}.jpg", "answer": "cat"} for i in IDS]


def gqa(**odd: Any) -> tuple[Any, None, Any]:
    content = json.loads(json.dumps(GQA))
    first = next(iter(content.values()))
    for name, value in odd.items():
        table = {"global": "groups"}.get(name, "types")
        within = first if name == "entailed" else first.setdefault(table, {})
        within[name] = value
    return content, None, [{"questionId": id, "prediction": "yes"} for id in content]


def science_qa(**odd: Any) -> tuple[Any, None, Any]:
    row = {"question": "q", "choices": ["l", "r"], "answer": 1, "grade": "grade3", "split": "test"}
    content = {str(i): row | {"subject": "natural science"} for i in IDS}
    content["1"] = content["1"] | odd
    return content, None, {"results": {str(i): 1 for i in IDS}}


def pope(**odd: Any) -> tuple[Any, None, Any]:
    row = {"image": "a.jpg", "text": "Is there a dog?", "label": "yes"}
    rows = [{"question_id": i} | row for i in IDS]
    rows[0] |= odd
    return rows, None, [{"question_id": i, "answer": "yes"} for i in IDS]


PLACES = [
    (vqa, "answer_type"),
    (vqa, "question_type"),
    (vqa, "question_types"),
    (vizwiz, "answer_type"),
    (gqa, "structural"),
    (gqa, "semantic"),
    (gqa, "detailed"),
    (gqa, "global"),
    (gqa, "entailed"),
    (science_qa, "subject"),
    (pope, "category"),
]
MUST_BE = ("subject",)
"""Fields that say something in every row."""


def judge(folder: Path, files: tuple[Any, Any, Any]) -> tuple[int, str]:
    """The exit status of `eval answers`, and which file says the kinds."""
    questions, annotations, _ = files
    names = {}
    for name, content in zip(("questions", "annotations", "said"), files, strict=True):
        names[name] = str(folder / f"{name}.json")
        Path(names[name]).write_text(json.dumps(content))
    is_science = isinstance(questions, dict) and "choices" in next(iter(questions.values()), {})
    words = ["--predictions", names["said"], "--out", str(folder / "result.json")]
    words += ["--questions", names["questions"] + (":test" if is_science else "")]
    words += [] if annotations is None else ["--annotations", names["annotations"]]
    where = names["questions" if annotations is None else "annotations"]
    return main(["eval", "answers", *words]), where


@pytest.mark.parametrize(("form", "name"), PLACES)
def test_a_kind_is_a_text_or_told(form: Any, name: str, tmp_path: Path, capsys: Any) -> None:
    for odd in ODD:
        if name == "entailed" and odd == ["x"]:
            continue
        status, where = judge(tmp_path, form(**{name: odd}))
        error = capsys.readouterr().err
        assert status == 2, odd
        assert error.count("\n") == 1 and where in error and "mmtrain: error: " in error
        assert name.removesuffix("s") in error and repr(odd) in error, error
    status, _ = judge(tmp_path, form(**{name: None}))
    assert status == (2 if name in MUST_BE else 0), capsys.readouterr().err
