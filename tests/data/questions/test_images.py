"""A question's image is the file of its name, and never one that merely has the same digits."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmtrain.cli import main
from mmtrain.data.questions.source import QuestionSource, open_questions
from mmtrain.errors import UsageError
from tests.data.questions.vqa_files import change, write_set

COCO = "COCO_val2014_000000000009.jpg"


def write_images(folder: Path, *names: str) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (8, 8)).save(folder / name)
    return str(folder)


def write_questions(path: Path, form: str, image_id: Any, **top: Any) -> str:
    """A file of one question about one image, in the form of a set."""
    answers = [{"answer": "yes"}] * 10
    content: Any = {
        "vqa_v2": {"questions": [{"question_id": 5, "image_id": image_id, "question": "Is it?"}]},
        "vizwiz": [{"image": image_id, "question": "Is it?", "answers": answers}],
        "gqa": {"5": {"imageId": image_id, "question": "Is it?", "answer": "yes"}},
        "easy": [["Is it?", "yes", image_id]],
    }[form]
    path.write_text(json.dumps(content | top if top else content))
    return str(path)


def found(images: str, questions: str) -> str:
    source = open_questions(images, questions=questions)
    assert isinstance(source, QuestionSource)
    return source.images[0].path.name


@pytest.mark.parametrize(
    ("form", "image_id", "name"),
    [
        ("vqa_v2", 9, COCO),
        ("vqa_v2", 9, "000000000009.jpg"),
        ("vqa_v2", 9, "9.png"),
        ("vqa_v2", 581929, "COCO_test2015_000000581929.jpg"),
        ("vqa_v2", 9, "abstract_v002_val2015_000000000009.png"),
        ("vqa_v2", "e19d6f3ba1e5ba31", "e19d6f3ba1e5ba31.jpg"),
        ("vqa_v2", "1234567890123456", "1234567890123456.jpg"),
        ("gqa", "2354786", "2354786.jpg"),
        ("gqa", "n161313", "n161313.jpg"),
        ("vizwiz", "VizWiz_val_00000000.jpg", "VizWiz_val_00000000.jpg"),
        ("vizwiz", "VizWiz_val_00000000.jpg", "VizWiz_val_00000000.png"),
        ("easy", 0, "0.png"),
    ],
)
def test_each_sets_names_are_known(tmp_path: Path, form: str, image_id: Any, name: str):
    images = write_images(tmp_path / "images", name, "other.jpg", "._9.jpg", f"._{name}")
    assert found(images, write_questions(tmp_path / "q.json", form, image_id)) == name


@pytest.mark.parametrize(
    ("form", "image_id", "name"),
    [
        ("vqa_v2", 1, "0001.jpg"),
        ("vqa_v2", 1, "IMG_1.jpg"),
        ("vqa_v2", 1, "frame_000000000001.jpg"),
        ("vqa_v2", 1, "photo_0001.png"),
        ("gqa", "1", "VizWiz_val_00000001.jpg"),
        ("gqa", "0001", "000000000001.jpg"),
        ("easy", 1, "01.png"),
        ("vizwiz", "VizWiz_val_00000001.jpg", "VizWiz_train_00000001.jpg"),
        ("vizwiz", "VizWiz_val_00000001.jpg", "1.jpg"),
        ("vqa_v2", "COCO_val2014_000000000001", "COCO_train2014_000000000001.jpg"),
    ],
)
def test_another_image_with_these_digits_is_not_taken(
    tmp_path: Path, form: str, image_id: Any, name: str
):
    images = write_images(tmp_path / "images", name)
    with pytest.raises(UsageError, match=r"1 of 1 images are not there, .*looked for as") as caught:
        found(images, write_questions(tmp_path / "q.json", form, image_id))
    assert name in str(caught.value)  # what is there instead


@pytest.mark.parametrize(
    ("image_id", "names"),
    [
        (9, (COCO, "COCO_train2014_000000000009.jpg")),
        (9, (COCO, "000000000009.jpg")),
        (9, ("9.jpg", "9.png")),
        ("a_photo", ("a_photo.jpg", "a_photo.webp")),
    ],
)
def test_two_files_that_may_be_the_image_are_named(tmp_path: Path, image_id: Any, names: Any):
    images = write_images(tmp_path / "images", *names)
    with pytest.raises(UsageError, match="may be") as caught:
        found(images, write_questions(tmp_path / "q.json", "vqa_v2", image_id))
    assert all(name in str(caught.value) for name in names)


def test_the_exact_name_comes_first(tmp_path: Path):
    images = write_images(tmp_path / "images", "9.jpg", COCO, "a.jpg", "a.png")
    assert found(images, write_questions(tmp_path / "q.json", "vqa_v2", 9)) == "9.jpg"
    assert found(images, write_questions(tmp_path / "q.json", "vizwiz", "a.png")) == "a.png"


def test_the_files_own_split_decides(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    both = write_images(tmp_path / "both", COCO, "COCO_train2014_000000000009.jpg")
    questions = write_questions(tmp_path / "q.json", "vqa_v2", 9, data_subtype="val2014")
    assert found(both, questions) == COCO
    other = write_images(tmp_path / "other", "COCO_train2014_000000000009.jpg")
    words = ["data", "vqa", "--images", other, "--questions", questions]
    assert main([*words, "--out", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err
    assert "COCO_train2014_000000000009.jpg is of another split than val2014" in told
    test = write_images(tmp_path / "test", "COCO_test2015_000000000009.jpg")
    questions = write_questions(tmp_path / "q.json", "vqa_v2", 9, data_subtype="test-dev2015")
    assert found(test, questions) == "COCO_test2015_000000000009.jpg"


def test_two_splits_in_one_file_keep_their_images(tmp_path: Path):
    names = [f"VizWiz_{part}_00000000.jpg" for part in ("train", "val")]
    path = tmp_path / "q.json"
    path.write_text(json.dumps([{"image": name, "question": "What?"} for name in names]))
    source = open_questions(write_images(tmp_path / "images", *names), questions=str(path))
    assert isinstance(source, QuestionSource)
    assert [(one.image_id, one.path.name) for one in source.images] == [(n, n) for n in names]
    with pytest.raises(UsageError, match="1 of 2 images are not there"):
        open_questions(write_images(tmp_path / "train", names[0]), questions=str(path))


@pytest.mark.parametrize(
    ("file", "edit", "told"),
    [
        ("questions", lambda rows: rows.append(rows[4]), "question_id 11 is there twice"),
        ("annotations", lambda rows: rows.append(rows[4]), "question_id 11 is there twice"),
        ("annotations", lambda rows: rows[4].update(image_id=7), "about image 7, the question in"),
        ("annotations", lambda rows: rows[4].update(answers=["yes"]), "question_id 11 has answers"),
        ("annotations", lambda rows: rows.append("x"), "row 36 is without 'question_id'"),
        ("questions", lambda rows: rows.append([1]), "row 36 is without 'question_id'"),
    ],
)
def test_answers_are_those_of_the_question(tmp_path: Path, file: str, edit: Any, told: str):
    files = write_set(tmp_path)
    change(Path(files[file]), lambda content: edit(content[file]))
    with pytest.raises(UsageError, match=told) as caught:
        open_questions(**files)
    assert str(caught.value).startswith(f"{file} = ")
