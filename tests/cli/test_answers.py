"""`mmtrain eval answers`: files of answers in every official form, judged without a model."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mmtrain.cli import main
from mmtrain.eval.questions.accuracy import vqa_accuracy
from tests.data.questions.gqa_files import draw_gqa, write_gqa
from tests.data.questions.vqa_files import change, write_set

EASY = [["what color is it?", "red", 0], ["is it a circle?", "no", 0], ["a square?", "yes", 7]]


def vizwiz() -> list[dict[str, Any]]:
    return [
        {
            "image": f"VizWiz_val_{number:08d}.jpg",
            "question": "what is this?",
            "answers": [{"answer": "cat", "answer_confidence": "yes"}] * number
            + [{"answer": "the Dog", "answer_confidence": "maybe"}] * (10 - number),
            "answer_type": "other",
            "answerable": 1,
        }
        for number in range(5)
    ]


def answers_of(files: dict[str, Any], say: Any) -> list[dict[str, Any]]:
    """VQAv2's form for every question of `write_set`'s files."""
    rows = json.loads(Path(files["questions"]).read_text())["questions"]
    return [{"question_id": row["question_id"], "answer": say(row)} for row in rows]


def judge(folder: Path, said: Any, questions: Any, *more: str) -> int:
    (folder / "said.json").write_text(json.dumps(said))
    if not isinstance(questions, str):
        (folder / "asked.json").write_text(json.dumps(questions))
        questions = str(folder / "asked.json")
    words = ["--predictions", str(folder / "said.json"), "--questions", questions]
    return main(["eval", "answers", *words, *more, "--out", str(folder / "out.json")])


def figures(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "out.json").read_text())


@pytest.mark.parametrize("mode", ["official", "evalai", "exact"])
def test_vqa_v2(tmp_path: Path, capsys, mode: str):
    files = write_set(tmp_path)
    said = answers_of(files, lambda row: ("red", "the box", "no")[row["question_id"] % 3])
    words = ["--annotations", files["annotations"], "--mode", mode]
    assert judge(tmp_path, said[::-1], files["questions"], *words) == 0
    notes = json.loads(Path(files["annotations"]).read_text())["annotations"]
    scores = [
        vqa_accuracy(row["answer"], [one["answer"] for one in note["answers"]], mode)  # pyright: ignore[reportArgumentType]
        for row, note in zip(said, notes, strict=True)
    ]
    found = figures(tmp_path)
    assert found["accuracy"] == pytest.approx(sum(scores) / 36) and 0 < found["accuracy"] < 1
    assert (found["mode"], found["num_questions"], found["num_images"]) == (mode, 36, 12)
    assert found["per_answer_type"].keys() == {"other", "yes/no"}
    assert found["provenance"]["files"].keys() == {"predictions", "questions", "annotations"}
    assert f"accuracy                 {found['accuracy']:.2%}" in capsys.readouterr().out


def test_vizwiz_and_easy_vqa(tmp_path: Path):
    asked = vizwiz()
    said = [{"image": row["image"], "answer": "dog"} for row in asked]
    assert judge(tmp_path, said, asked) == 0
    # No annotator of the first disagrees, so that nothing is normalised: "dog" is not "the Dog".
    assert figures(tmp_path)["accuracy"] == pytest.approx(4 / 5)
    said = [{"question_id": number, "answer": "Yes."} for number in range(3)]
    assert judge(tmp_path, said, EASY) == 0
    found = figures(tmp_path)
    assert (found["accuracy"], found["mode"]) == (pytest.approx(1 / 3), "exact")
    assert found["num_images"] == 2


def test_the_packages_own_questions(tmp_path: Path, capsys):
    """easy_vqa:PART stands for the file in the package, its ids those of the file."""
    import easy_vqa

    folder = Path(easy_vqa.__file__).parent / "data/test"
    rows = json.loads((folder / "questions.json").read_text())
    said = [{"question_id": number, "answer": row[1]} for number, row in enumerate(rows)]
    assert judge(tmp_path, said, "easy_vqa:test") == 0
    assert figures(tmp_path)["accuracy"] == 1.0
    assert judge(tmp_path, said, "easy_vqa:test", "--annotations", "x.json") == 2
    assert "brings its answers" in capsys.readouterr().err


def test_torch_is_not_waited_for(tmp_path: Path):
    words = [*write_gqa(tmp_path, draw_gqa(0)), "--out", str(tmp_path / "out.json")]
    code = (
        "import sys; from mmtrain.cli import main; "
        f"status = main({['eval', 'answers', *words]!r}); "
        "assert status == 0 and 'torch' not in sys.modules, status"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


SAID: list[Any] = [{"question_id": number, "answer": "yes"} for number in range(3)]
OF_GQA = [{"questionId": str(number), "prediction": "yes"} for number in range(3)]
MISTAKES: dict[str, tuple[Any, str]] = {
    "missing": (SAID[:2], "1 of 3 questions have no answer, the first is question_id 2"),
    "extra": ([*SAID, {"question_id": 9, "answer": "no"}], "the first is question_id 9; name"),
    "another split": (
        [{"question_id": number + 50, "answer": "no"} for number in range(3)],
        "3 of 3 answer no question of this file, the first is question_id 50",
    ),
    "ids as text": (
        [{"question_id": str(number), "answer": "no"} for number in range(3)],
        "question_id '0' (text, where the questions have a number)",
    ),
    "twice": ([*SAID, SAID[1] | {"answer": "no"}], "1 is answered twice ('yes' and 'no')"),
    "no text": ([*SAID[:2], {"question_id": 2, "answer": 4}], "question_id 2 is 4, no text"),
    "null": ([*SAID[:2], {"question_id": 2, "answer": None}], "question_id 2 is None, no text"),
    "list of answers": ([*SAID[:2], {"question_id": 2, "answer": ["a"]}], "is ['a'], no text"),
    "GQA's": (OF_GQA, "it is in GQA's form and the questions are in VQAv2's"),
    "VizWiz's": ([{"image": "a.jpg", "answer": "x"}], "it is in VizWiz's form and the questions"),
    "a table": ({"0": "yes"}, 'is no list; write it in VQAv2\'s form, [{"question_id": ..., '),
    "texts": (["yes", "no", "no"], "row 0 is no object"),
    "other names": ([{"id": 0, "pred": "yes"}], "row 0 has id, pred; write it in VQAv2's form"),
    "empty": ([], "3 of 3 questions have no answer"),
    "an annotation": (
        [{"question_id": 0, "answers": [{"answer": "a"}]}],
        "row 0 is a question or an annotation",
    ),
    "no id": ([{"question_id": 0.5, "answer": "a"}], "question_id = 0.5 names no question"),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_files_that_are_no_answers_are_one_line(tmp_path: Path, capsys, what: str):
    said, told = MISTAKES[what]
    assert judge(tmp_path, said, EASY) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line and "predictions = " in line and not (tmp_path / "out.json").exists()


def test_each_form_is_refused_for_each_other_set(tmp_path: Path, capsys):
    gqa = draw_gqa(1)
    sets = {
        "VQAv2's": (EASY, SAID),
        "VizWiz's": (vizwiz(), [{"image": row["image"], "answer": "x"} for row in vizwiz()]),
        "GQA's": (gqa["questions"], gqa["predictions"]),
    }
    for asked_name, (asked, _) in sets.items():
        for name, (_, said) in sets.items():
            status = judge(tmp_path, said, asked)
            told = capsys.readouterr().err
            assert status == (0 if name == asked_name else 2)
            assert (
                name == asked_name
                or f"in {name} form and the questions are in {asked_name}" in told
            )


def test_some_of_gqas_others_are_not_enough(tmp_path: Path, capsys):
    """All of them or the balanced ones: anything between is a file that lost answers."""
    content = draw_gqa(2)
    lost = next(key for key, row in content["questions"].items() if not row["isBalanced"])
    content["predictions"] = [row for row in content["predictions"] if row["questionId"] != lost]
    words = [*write_gqa(tmp_path, content), "--out", str(tmp_path / "out.json")]
    assert main(["eval", "answers", *words]) == 2
    assert f"the first is questionId '{lost}'" in capsys.readouterr().err


def test_what_cannot_be_judged_is_one_line(tmp_path: Path, capsys):
    files = write_set(tmp_path)
    said = answers_of(files, lambda row: "red")
    assert judge(tmp_path, said, files["questions"]) == 2
    assert "36 of 36 questions have no answers" in capsys.readouterr().err
    words = ["--annotations", files["annotations"]]
    change(
        tmp_path / "annotations.json", lambda c: c["annotations"][3]["answers"][0].update(answer=2)
    )
    assert judge(tmp_path, said, files["questions"], *words) == 2
    assert "question_id 10: the answer 2 is no text" in capsys.readouterr().err
    assert judge(tmp_path, SAID, EASY, "--choices", str(tmp_path / "none.json")) == 2
    assert "choices = " in capsys.readouterr().err
    words = ["--predictions", str(tmp_path / "said.json"), "--questions", files["questions"]]
    assert main(["eval", "answers", *words, "--out", words[1]]) == 2
    assert "is another file of this command; name a new one" in capsys.readouterr().err
    (tmp_path / "said.json").write_text("[{]")
    words = ["--predictions", str(tmp_path / "said.json"), "--questions", files["questions"]]
    assert main(["eval", "answers", *words, "--out", str(tmp_path / "out.json")]) == 2
    assert "said.json is no JSON" in capsys.readouterr().err
    assert main(["eval", "answers", *words, "--out", str(tmp_path / "out.csv")]) == 2
    assert "must end in .json" in capsys.readouterr().err
