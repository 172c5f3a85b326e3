"""`mmtrain data check` of questions: every row, answer and image that a training would not use."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmtrain.cli import main
from mmtrain.data.questions.question import questions_from_json
from tests.data.questions.vqa_files import change, write_set
from tests.data.shard_files import encoded, picture, write_shard

Check = Callable[..., tuple[int, str, list[str]]]
JPEG = encoded(picture(), "JPEG")


@pytest.fixture
def check(capsys: pytest.CaptureFixture[str]) -> Check:
    def run(*words: str) -> tuple[int, str, list[str]]:
        status = main(["data", "check", *words])
        out, err = capsys.readouterr()
        return status, out, err.splitlines()

    return run


def words_of(files: dict[str, str]) -> list[str]:
    questions, annotations = files["questions"], files["annotations"]
    return [files["data"], "--questions", questions, "--annotations", annotations]


def test_a_sound_set(tmp_path: Path, check: Check):
    files = write_set(tmp_path)
    status, out, err = check(*words_of(files))
    assert (status, err) == (0, []) and "36 questions about 12 images, all can be used" in out
    status, out, err = check("easy_vqa:val", "--min-count", "1")
    assert (status, err) == (0, []) and "all can be used" in out


def test_all_that_is_wrong_with_vqa_v2_is_named_at_once(tmp_path: Path, check: Check):
    def spoil_questions(content: Any) -> None:
        rows = content["questions"]
        del rows[0]["question"]  # image 0
        rows[4]["image_id"] = None
        rows[5]["question_id"] = None
        rows[7] = "what?"
        rows[9] = rows[10]

    def spoil_annotations(content: Any) -> None:
        rows = content["annotations"]
        rows[13]["answers"] = []
        rows[14]["answers"] = [{"answer": 3}]
        rows[16]["image_id"] = 11
        del rows[17]

    files = write_set(tmp_path)
    change(Path(files["questions"]), spoil_questions)
    change(Path(files["annotations"]), spoil_annotations)
    images = tmp_path / "images"
    (images / f"COCO_train2014_{6:012d}.png").unlink()
    (images / f"COCO_train2014_{8:012d}.png").write_bytes(JPEG[:200])
    (images / f"COCO_train2014_{10:012d}.png").write_bytes(b"<html>")
    (images / f"COCO_val2014_{11:012d}.png").write_bytes(JPEG)
    status, _, err = check(*words_of(files))
    told = {
        "question_id 0: without 'question'": 1,
        "question_id 11: image_id = None names no image": 1,
        "row 5 is without 'question_id'": 1,
        "row 7 is without 'question_id'": 1,
        "question_id 31 is there twice": 1,
        "question_id 41 has no answers": 1,
        "question_id 42: the answer 3 is no text": 1,
        "the answers to question_id 51 are about image 11": 1,
        "no annotation, such as question_id 52": 1,
        "such as 6, of question_id 60": 1,
        f"{images}: 8: image truncated": 1,
        f"{images}: 10: no image": 1,
        "image 11 may be COCO_train2014": 1,
    }
    assert status == 1 and len(err) == len(told) + 1, "\n".join(err)
    for line in told:
        assert sum(line in each for each in err[:-1]) == 1, line
    assert "13 rows, answers or images would not be used" in err[-1]
    assert "malformed row: 5" in err[-1] and "image missing: 1" in err[-1]


def write_one_file(folder: Path, content: Any) -> list[str]:
    """A set that is one file, about images a, b and c -> the words that name it."""
    folder.mkdir()
    for name in "abc":
        (folder / f"{name}.jpg").write_bytes(JPEG)
    path = folder.with_suffix(".json")
    path.write_text(json.dumps(content))
    return [str(folder), "--questions", str(path)]


ASKED = {"question": "what?", "answers": [{"answer": "cat"}]}
GQA = {"question": "what?", "answer": "cat", "isBalanced": True}
ONE_FILE: dict[str, tuple[Any, list[str]]] = {
    "vizwiz": (
        [
            {"image": "a.jpg", **ASKED},
            {"image": "b.jpg", "question": "what?"},
            {"image": "c.jpg", "question": "what?", "answers": []},
            {"image": "d.jpg", **ASKED},
            {"image": 3, **ASKED},
            [],
        ],
        ["question_id b.jpg has no", "question_id c.jpg has no", "d.jpg", "image 3", "row 5"],
    ),
    "gqa": (
        {
            "1": {"imageId": "a", **GQA},
            "2": {"imageId": "b", **GQA, "answer": ["cat"]},
            "3": {"imageId": "z", **GQA},
            "4": {"imageId": "c", **GQA, "isBalanced": 3},
            "5": GQA,
            "6": {"imageId": True, **GQA},
            "7": None,
            "8": {"imageId": "c", "question": "what?", "isBalanced": False},
        },
        [
            *("question 2", "such as z", "question 4", "question 5", "question 6", "question 7"),
            "question_id 8 has no answers",
        ],
    ),
    "easy": (
        [["what?", "cat", "a"], ["what?", "cat"], ["what?", 3, "b"], ["what?", "cat", "q"], None],
        ["row 1", "row 2: answer = 3", "such as q", "row 4"],
    ),
}


@pytest.mark.parametrize("form", ONE_FILE)
def test_sets_of_one_file(tmp_path: Path, check: Check, form: str):
    content, named = ONE_FILE[form]
    status, _, err = check(*write_one_file(tmp_path / "images", content))
    assert status == 1 and len(err) == len(named) + 1, "\n".join(err)
    for name in named:
        assert any(name in line for line in err[:-1]), (name, err)


def row(**changes: Any) -> dict[str, Any]:
    return {"question_id": 7, "question": "what?", "answers": ["cat"]} | changes


SPOILT = {
    "no answers": row(answers=[]),
    "one text for a list": row(answers="cat"),
    "an answer that is no text": row(answers=[3]),
    "a question that is no text": row(question=None),
    "no question": {"question_id": 7, "answers": ["cat"]},
    "a key of another set": row(colour="red"),
    "no table": "what?",
}


def test_packed_questions(tmp_path: Path, check: Check):
    samples: list[tuple[str, dict[str, Any]]] = []
    for number, spoilt in enumerate((row(), *SPOILT.values())):
        fields = {"questions": [row(question_id=1), spoilt]}
        samples.append((f"{number:04}", {"jpg": JPEG, "json": fields}))
    samples.append(("0100", {"jpg": JPEG, "json": {"questions": "none"}}))
    samples.append(("0101", {"jpg": JPEG[:200], "json": {"questions": [row()]}}))
    path = str(write_shard(tmp_path / "a.tar", samples))
    status, out, err = check(path)
    assert status == 1 and "the samples hold questions" in out
    named = [line.split(": ")[2] for line in err[:-1]]
    assert named == [key for key, _ in samples[1:]], "\n".join(err)
    assert "9 rows, answers or images would not be used" in err[-1]
    status, _, err = check(path, "--captions", "txt")  # another reading, by its word
    assert status == 1 and "no caption: 10" in err[-1]
    assert check(path, "--label-key", "x")[0] == 2


@pytest.mark.parametrize("spoilt", SPOILT)
def test_what_is_no_question_is_not_read_as_one(spoilt: str):
    """`answers = "cat"` was three answers, c, a and t."""
    if spoilt == "no answers":
        return  # a test set's
    with pytest.raises(ValueError, match="questions malformed"):
        questions_from_json({"questions": [row(), SPOILT[spoilt]]})


def test_answers_that_no_classifier_learns(tmp_path: Path, check: Check):
    content = [["what?", "cat", name] for name in "aab"] + [["what?", "gnu", "c"]]
    words = write_one_file(tmp_path / "images", content)
    assert check(*words)[0] == 0
    status, _, err = check(*words, "--min-count", "2")
    assert status == 1 and "question_id 3: its answer 'gnu'" in err[0] and len(err) == 2


def test_what_has_no_effect_is_refused(tmp_path: Path, check: Check):
    files = write_set(tmp_path)
    shard = str(write_shard(tmp_path / "a.tar", [("0", {"jpg": JPEG, "txt": "a cat"})]))
    for words in (
        [*words_of(files), "--captions", "txt"],
        [*words_of(files), "--no-captions"],
        [*words_of(files), "--label-key", "x"],
        [*words_of(files), "--image-key", "x"],
        [*words_of(files), "--index-dir", str(tmp_path)],
        [*words_of(files), "--shard-range", "0/2"],
        [shard, "--min-count", "3"],
        [shard, "--annotations", files["annotations"]],
        ["easy_vqa:val", "--questions", files["questions"]],
    ):
        status, _, err = check(*words)
        assert status == 2 and len(err) == 1, (words, err)
    status, _, err = check(files["data"], "--questions", files["questions"])
    assert status == 2 and "36 of 36 have no answers" in err[-1]  # the annotations are not named
