import json
from pathlib import Path

import pytest

from mmtrain.errors import UsageError
from mmtrain.eval.classify.classes import ClassList, class_list, read_classes
from mmtrain.eval.classify.prompts import TEMPLATES, load_templates


def written(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_classes_from_every_form(tmp_path: Path) -> None:
    wanted = ClassList(ids=("0", "1"), names=("red fox", "owl"))
    forms = [
        written(tmp_path / "a.json", ["red fox", "owl"]),
        written(tmp_path / "b.json", [{"id": 0, "name": "red fox"}, {"id": "1", "name": "owl"}]),
        written(tmp_path / "classnames.txt", "red fox\nowl\n\n"),
        str(tmp_path / "a.json"),
        ["red fox", "owl"],
        wanted,
    ]
    assert [class_list(form) for form in forms] == [wanted] * len(forms)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "cannot be read"),
        ({"a": 1}, r'is no list; write \[{"id": ..., "name": ...}, ...\]'),
        ([], "classes are empty"),
        ([{"id": "x"}], 'entry 0 is {"id": "x"}; write'),
        (["owl", 3], "entry 1 is 3; write"),
        (["owl", " "], 'entry 1 is " "; write'),
        ([{"id": 1, "name": "a"}, {"id": "1", "name": "b"}], "the id '1' is there more than once"),
    ],
)
def test_a_wrong_file_is_one_line_that_names_it(tmp_path: Path, content, told: str) -> None:
    path = written(tmp_path / "classes.json", content)
    with pytest.raises(UsageError, match=told) as caught:
        read_classes(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_blank_line_among_names_is_refused(tmp_path: Path) -> None:
    """It would move the ids of all that follow."""
    path = written(tmp_path / "classnames.txt", "owl\n\nfox\n")
    with pytest.raises(UsageError, match="entry 1 is"):
        read_classes(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"classes = .*none.json cannot be read"):
        read_classes(tmp_path / "none.json")


def test_half_a_character_in_a_name_has_a_fingerprint() -> None:
    assert class_list(["\ud83d", "x"]).fingerprint != class_list(["\ud83c", "x"]).fingerprint


def test_templates_from_every_form(tmp_path: Path) -> None:
    wanted = ("a {name}.", "the {name}")
    file = written(tmp_path / "t.txt", "a {}.\n\n  the {name}\n")
    theirs = written(tmp_path / "zeroshot_classification_templates.txt", "a {c}.\nthe {c}\n")
    for form in (str(file), str(theirs), ["a {}.", "the {c}"]):
        assert load_templates(form) == wanted
    assert load_templates("imagenet") == TEMPLATES["imagenet"]


@pytest.mark.parametrize(
    ("content", "told"),
    [("a {}\na photo\n", "t.txt:2: 'a photo' has no place"), ("\n\n", "t.txt has no prompts")],
)
def test_wrong_templates_are_one_line(tmp_path: Path, content: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        load_templates(str(written(tmp_path / "t.txt", content)))


def test_unknown_templates_name_those_known(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="neither one of name, simple, imagenet nor a file"):
        load_templates("imagnet")
    with pytest.raises(UsageError, match="nor a file that can be read"):
        load_templates(str(tmp_path))
    with pytest.raises(UsageError, match="templates:1: 'a photo' has no place"):
        load_templates(["a photo"])
