"""A file of questions that is another file, or not whole, is told by what it is."""

import json
from pathlib import Path
from typing import Any

import pytest

from mmtrain.cli import main
from mmtrain.data.questions.answers import build_vocabulary, every_question
from mmtrain.data.questions.predictions import write_predictions
from mmtrain.data.questions.question import Question, Said
from mmtrain.data.questions.source import open_questions, refuse_unanswered
from mmtrain.errors import UsageError
from tests.data.questions.gqa_files import draw_gqa
from tests.data.questions.vqa_files import write_set

VIZWIZ = {"image": "a.jpg", "question": "what?", "answers": [{"answer": "cat"}]}
SCENE = {"width": 9, "height": 9, "objects": {"1": {"name": "cat", "x": 0}}}
GQA = draw_gqa(0, num=3)
CAPTION = {"id": 1, "image_id": 1, "caption": "a cat"}


def gqa(**changes: Any) -> dict[str, Any]:
    return {key: row | changes for key, row in GQA["questions"].items()}


OTHERS: dict[str, tuple[Any, str]] = {
    "annotations": (
        {"annotations": [{"question_id": 1}]},
        "holds VQAv2's annotations, the answers",
    ),
    "captions": ({"annotations": [CAPTION]}, "for which there are no figures (CIDEr needs"),
    "scene graphs": ({"1": SCENE, "2": SCENE}, "holds GQA's scene graphs; name its questions"),
    "choices": (GQA["choices"], "holds GQA's choices"),
    "GQA's predictions": (GQA["predictions"], "holds answers without questions"),
    "predictions": ([{"question_id": 1, "answer": "a"}], "holds answers without questions"),
    "annotations alone": ([{"question_id": 1, "answers": []}], "holds answers without questions"),
    "no VQAv2 question": ({"questions": []}, "holds no question"),
    "no GQA question": ({}, "holds no question"),
    "no VizWiz question": ([], "holds no question"),
    "a list of numbers": ([1, 2], "of no known form"),
    "a number": (3, "of no known form"),
    "texts": ({"1": "what?"}, "of no known form"),
    "rows of one": ([["what?"]], "row 0 is no question, answer and image"),
    "an easy answer": ([["what?", 3, 1]], "row 0: answer = 3 is no text"),
    "a list for an object": ({"questions": [["what?"]]}, "row 0 is without 'question_id'"),
    "no text": (
        {"questions": [{"question_id": 1, "image_id": 1, "question": 7}]},
        "question_id 1: question = 7 is no text",
    ),
    "no image": ({"questions": [{"question_id": 1, "question": "a"}]}, "without 'image_id'"),
    "an image that is none": (
        {"questions": [{"question_id": 1, "image_id": [1], "question": "a"}]},
        "image_id = [1] names no image",
    ),
    "VizWiz's twice": ([VIZWIZ, VIZWIZ], "image a.jpg is there twice"),
    "VizWiz's answer": ([VIZWIZ | {"answers": [{"answer": 1}]}], "the answer 1 is no text"),
    "GQA's groups": (gqa(groups=["a"]), "groups = ['a'] is no table"),
}


@pytest.mark.parametrize("what", OTHERS)
def test_a_file_that_asks_nothing_is_named(tmp_path: Path, what: str):
    content, told = OTHERS[what]
    (tmp_path / "other.json").write_text(json.dumps(content))
    with pytest.raises(UsageError) as error:
        open_questions(str(tmp_path), questions=str(tmp_path / "other.json"))
    assert told in str(error.value) and f"questions = {tmp_path / 'other.json'}" in str(error.value)


def test_an_id_twice_is_seen_where_json_keeps_the_last(tmp_path: Path):
    rows = [f'"{key}": {json.dumps(row)}' for key, row in GQA["questions"].items()]
    (tmp_path / "asked.json").write_text("{" + ", ".join([*rows, rows[0]]) + "}")
    with pytest.raises(UsageError, match="9000 is there twice"):
        open_questions(str(tmp_path), questions=str(tmp_path / "asked.json"))


def test_a_byte_order_mark_changes_nothing(tmp_path: Path):
    files = write_set(tmp_path)
    wanted = open_questions(**files).fingerprint
    for name in ("questions", "annotations"):
        text = Path(files[name]).read_bytes()
        Path(files[name]).write_bytes(b"\xef\xbb\xbf" + text)
    assert open_questions(**files).fingerprint == wanted


def test_swapped_files_are_told(tmp_path: Path, capsys):
    files = write_set(tmp_path)
    asked, noted = files["questions"], files["annotations"]
    said = tmp_path / "said.json"
    said.write_text("[]")
    judge = ["eval", "answers", "--predictions", str(said), "--out", str(tmp_path / "out.json")]
    pack = ["data", "vqa", "--images", files["data"], "--out", str(tmp_path / "shards")]
    for command in (judge, pack):
        for words, told in (
            (["--questions", noted, "--annotations", asked], "the two are swapped"),
            (["--questions", noted], "holds VQAv2's annotations"),
            (["--questions", asked, "--annotations", asked], "annotations.* holds questions"),
            (["--questions", asked, "--annotations", str(said)], "has no list of annotations"),
        ):
            assert main([*command, *words]) == 2
            (line,) = capsys.readouterr().err.splitlines()
            assert all(part in line for part in told.split(".*")), line


def test_an_id_that_two_packed_splits_share_is_not_sent_twice(tmp_path: Path):
    question = Question(question_id=7, question="what?")
    said = [Said(question=question, prediction=text) for text in ("a", "b")]
    with pytest.raises(UsageError, match="question_id 7 is asked twice"):
        write_predictions(tmp_path / "said.json", said)
    write_predictions(tmp_path / "said.json", said[:1])
    wanted = [{"question_id": 7, "answer": "a"}]
    assert json.loads((tmp_path / "said.json").read_text()) == wanted


def test_questions_without_answers_are_told_with_what_their_set_does_about_it(tmp_path: Path):
    files = write_set(tmp_path)
    noted = files.pop("annotations")
    with pytest.raises(UsageError, match=r"36 of 36 .*annotations \(--annotations, vqa\.data"):
        refuse_unanswered(open_questions(**files))
    refuse_unanswered(open_questions(**files, annotations=noted))
    with pytest.raises(UsageError, match="none of its questions has an answer"):
        build_vocabulary(every_question(open_questions(**files)), min_count=1)
    # Packed, as a test set would be.
    pack = ["data", "vqa", "--images", files["data"], "--questions", files["questions"]]
    assert main([*pack, "--out", str(tmp_path / "shards")]) == 0
    with pytest.raises(UsageError, match="3 of 3 have no answers"):
        refuse_unanswered(open_questions(str(tmp_path / "shards/*.tar")))
    row = {"image": "COCO_train2014_000000000003.png", "question": "what?"}
    (tmp_path / "asked.json").write_text(json.dumps([row]))
    with pytest.raises(UsageError, match=r"1 of 1 .* a split whose answers are published"):
        refuse_unanswered(open_questions(files["data"], questions=str(tmp_path / "asked.json")))
