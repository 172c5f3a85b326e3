"""Multiple choice from published files: ScienceQA and tables; the letter in a written answer."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmtrain.cli import main
from mmtrain.data.members import json_fields
from mmtrain.data.questions.letters import letter_of
from mmtrain.data.questions.question import Question
from mmtrain.data.questions.source import open_questions
from tests.data.questions.published_files import (
    draw_choices,
    draw_science_qa,
    options_of_row,
    write_images,
    write_json,
    write_lines,
    write_science_qa,
)
from tests.eval.questions.judging import asked, judged
from tests.eval.questions.published_rules import letter_by_hand, science_qa_scores

OPTIONS = ["left", "right", "a red dog", "two"]


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("b", "B"),
        (" (B) ", "B"),
        ("B.", "B"),
        ("**B**", "B"),
        ("'B'", "B"),
        ("B)", "B"),
        ("B. right", "B"),
        ("(b) right", "B"),
        ("B: right", "B"),
        ("The answer is B", "B"),
        ("the answer is (B).", "B"),
        ("Answer: B", "B"),
        ("I think that the answer is **B** because of the dog", "B"),
        ("The answer is b.", "B"),
        ("Right.", "B"),
        ("the red dog", "C"),
        ("2", "D"),
        ("A", "A"),
        ("a", "A"),
        ("E", None),
        ("", None),
        ("a dog", None),
        ("A dog", None),
        ("the answer is a red dog", None),
        ("It is left or right", None),
        ("The answer is A. No, the answer is B.", None),
        ("The answer is A, yes, the answer is A.", "A"),
        ("BC", None),
        ("Both", None),
        ("i.e. B", None),
    ],
)
def test_which_letter_is_read(answer: str, letter: str | None) -> None:
    assert letter_of(answer, OPTIONS) == letter
    assert letter_by_hand(answer, OPTIONS) == letter


def test_texts_that_two_options_share_tell_none() -> None:
    assert letter_of("right", ["right", "Right."]) is None
    assert letter_of("A", ["B", "A"]) == "A"


PARTS = ["A", "b", "C", "E", "(", ")", ".", ":", "answer is ", "Answer: ", "The answer is", "left"]
PARTS += [" ", " ", "\n", "*", "because", "a red dog", "two", ",", "is", "answer", "!"]


def fuzz_letters(num: int, seed: int) -> None:
    draw = random.Random(seed)
    for _ in range(num):
        answer = "".join(draw.choice(PARTS) for _ in range(draw.randint(0, 7)))
        options = draw.sample(OPTIONS, draw.randint(2, 4))
        assert letter_of(answer, options) == letter_by_hand(answer, options), (answer, options)


def test_letters_by_hand_never_differ() -> None:
    fuzz_letters(4_000, seed=0)


@pytest.mark.slow
def test_letters_by_hand_never_differ_on_many() -> None:
    fuzz_letters(300_000, seed=1)


def fuzz_science(folder: Path, seeds: range) -> None:
    for seed in seeds:
        problems, splits = draw_science_qa(seed)
        draw, pids = random.Random(seed), splits["test"]
        places = {pid: draw.randrange(-1, len(problems[pid]["choices"])) for pid in pids}
        files = write_science_qa(folder, problems, splits)[2:]
        if seed % 2:
            found = judged(folder, {"results": places, "outputs": {}}, files)
        else:
            letters = {pid: "ABCDE"[place] if place >= 0 else "?" for pid, place in places.items()}
            rows = [{"question_id": p, "text": f"The answer is {x}."} for p, x in letters.items()]
            found = judged(folder, rows, files)
        right = science_qa_scores(problems, pids, places)
        tables = ("per_subject", "per_context", "per_grade")
        said = {name: value for table in tables for name, value in found[table].items()}
        assert said | {"Avg": found["accuracy"]} == pytest.approx(right), seed
        assert found["num_unread"] == [*places.values()].count(-1)
        assert found.get("num_without_image", 0) == sum(not problems[p]["image"] for p in pids)


def test_science_qa(model: str, tmp_path: Path, capsys) -> None:
    fuzz_science(tmp_path, range(2))
    problems, splits = draw_science_qa(0)
    files = write_science_qa(tmp_path, problems, splits)
    assert asked(model, tmp_path, files)["num_cut"] == len(splits["test"])
    assert "their ends are cut" in capsys.readouterr().out
    written = json.loads((tmp_path / "model.json").read_text())
    assert written["results"].keys() == {*splits["test"]} == written["outputs"].keys()
    # The images of one split, by their own folder.
    files[1] += "/test"
    asked(model, tmp_path, files, "--head", "generate")
    # minitest is of pid_splits.json alone; without that file the problems say what they are of.
    small = [*files[:3], files[3].replace(":test", ":minitest")]
    assert asked(model, tmp_path, small)["num_questions"] == 5
    (tmp_path / "pid_splits.json").unlink()
    assert asked(model, tmp_path, files)["num_questions"] == len(splits["test"])


@pytest.mark.slow
def test_science_qa_on_more(tmp_path: Path) -> None:
    fuzz_science(tmp_path, range(2, 200))


def parquet(path: Path, rows: list[dict[str, Any]], images: Path, column: str = "image") -> str:
    """The rows as the hub keeps them, each with its image's bytes, in several row groups."""
    kept = []
    for row in rows:
        image = row["image"] and {"bytes": (images / row["image"]).read_bytes(), "path": "x.png"}
        bare = {k: v for k, v in row.items() if k != "image"}
        kept.append(bare | {"options": str(options_of_row(row)), column: image})
    pq.write_table(pa.Table.from_pylist(kept), path, row_group_size=7)
    return str(path)


def test_tables(model: str, tmp_path: Path) -> None:
    rows = draw_choices(0)
    images = write_images(tmp_path / "i", (row["image"] for row in rows if row["image"]))
    draw = random.Random(0)
    said = [
        draw.choice(("A", "(B)", "C. two", "no idea", options_of_row(row)[3], row["answer"]))
        for row in rows
    ]
    right = [
        letter_by_hand(one, options_of_row(row)) == row["answer"]
        for one, row in zip(said, rows, strict=True)
    ]
    lines = [
        {"question_id": row["index"], "answer": one} for row, one in zip(rows, said, strict=True)
    ]
    files = ["--data", images, "--questions", write_lines(tmp_path / "rows.jsonl", rows)]
    found = judged(tmp_path, lines, files[2:])
    assert found["accuracy"] == pytest.approx(sum(right) / 30) and found["mode"] == "letter"
    assert found["per_question_type"].keys() == {"logic", "math"}
    assert found["per_answer_type"].keys() == {"geometry"}
    asked_rows = asked(model, tmp_path, files)
    # The same in Parquet, with the images inside.
    table = parquet(tmp_path / "t.parquet", rows, tmp_path / "i")
    assert judged(tmp_path, lines, ["--questions", table])["accuracy"] == found["accuracy"]
    words = ["--model", model, "--data", table, "--out", str(tmp_path / "p.json")]
    assert main(["eval", "vqa", *words, "--predictions", str(tmp_path / "said.json")]) == 0
    same = json.loads((tmp_path / "p.json").read_text())
    assert same["accuracy"] == asked_rows["accuracy"]
    assert same["num_without_image"] == sum(row["image"] is None for row in rows)


def test_each_question_has_its_own_picture(tmp_path: Path) -> None:
    rows = draw_choices(1)
    images = write_images(tmp_path / "i", (row["image"] for row in rows if row["image"]))
    jsonl = write_lines(tmp_path / "rows.jsonl", rows)
    table = parquet(tmp_path / "t.parquet", rows, tmp_path / "i", "image_1")
    whole, packed = open_questions(images, questions=jsonl), open_questions(table, key="data")

    def pictures(source: Any) -> dict[int, bytes]:
        found = {}
        for number in range(source.num_samples):
            members = source.read(number)
            for question in json_fields(members.pop("json"))["questions"]:
                (found[question["question_id"]],) = members.values()
        return found

    assert pictures(whole) == pictures(packed) and len(pictures(packed)) == 30
    assert packed.fingerprint != whole.fingerprint


def test_what_is_asked(tmp_path: Path) -> None:
    rows = draw_choices(0)[:3]
    images = write_images(tmp_path / "i", (row["image"] for row in rows if row["image"]))
    source = open_questions(images, questions=write_lines(tmp_path / "r.jsonl", rows))
    asked_texts = {
        question["question_id"]: Question(**question)
        for number in range(source.num_samples)
        for question in json_fields(source.read(number)["json"])["questions"]
    }
    for row in rows:
        lines = [
            f"{letter}. {text}" for letter, text in zip("ABCD", options_of_row(row), strict=True)
        ]
        head, *rest = asked_texts[row["index"]].question.split("\n")
        assert rest[:-1] == lines and head in ("Which is it?", "Which  is it?")
        assert rest[-1].startswith("Answer with the option's letter")


def science(edit: Callable[[dict[str, Any]], object]) -> Callable[[Path], list[str]]:
    def write(folder: Path) -> list[str]:
        problems, splits = draw_science_qa(0)
        row = problems[splits["test"][0]]
        edit(row)
        return write_science_qa(folder, problems, splits)[2:]

    return write


def table_of(edit: Callable[[dict[str, Any]], object]) -> Callable[[Path], list[str]]:
    def write(folder: Path) -> list[str]:
        rows = draw_choices(0)
        for row in rows[:3]:
            row.pop("A", None) if "options" in row else None
        edit(rows[2])
        return ["--questions", write_lines(folder / "rows.jsonl", rows)]

    return write


def no_split(folder: Path) -> list[str]:
    return ["--questions", science(lambda row: None)(folder)[1].removesuffix(":test")]


def other_split(folder: Path) -> list[str]:
    return ["--questions", science(lambda row: None)(folder)[1].replace(":test", ":tests")]


def lost_problem(folder: Path) -> list[str]:
    files = science(lambda row: None)(folder)
    write_json(folder / "pid_splits.json", {"test": ["1", "999"]})
    return files


def damaged_parquet(folder: Path) -> list[str]:
    (folder / "x.parquet").write_bytes(b"PAR1 is not what it is")
    return ["--questions", str(folder / "x.parquet")]


def other_parquet(folder: Path) -> list[str]:
    pq.write_table(pa.table({"caption": ["a"]}), folder / "x.parquet")
    return ["--questions", str(folder / "x.parquet")]


def parquet_of(images: list[Any]) -> Callable[[Path], list[str]]:
    def write(folder: Path) -> list[str]:
        num = len(images)
        columns = {
            "question": ["which?"] * num,
            "options": [["a", "b"]] * num,
            "answer": ["A"] * num,
        }
        pq.write_table(pa.table(columns | {"image": images}), folder / "x.parquet")
        return ["--questions", str(folder / "x.parquet")]

    return write


DAMAGED: dict[str, tuple[Callable[[Path], list[str]], str]] = {
    "no split": (no_split, "it has several splits; name "),
    "another split": (other_split, ":tests: no such split; name "),
    "a problem that is lost": (
        lost_problem,
        "1 of 2 problems of pid_splits.json are not in problems.json",
    ),
    "an answer beyond": (science(lambda row: row.update(answer=9)), "answer = 9 is none of its"),
    "no choices": (science(lambda row: row.update(choices=["a"])), "choices has 1 options"),
    "choices of numbers": (science(lambda row: row.update(choices=[1, 2])), "is no list of texts"),
    "a subject": (science(lambda row: row.update(subject="art")), "subject = 'art' is none of"),
    "a grade": (science(lambda row: row.update(grade="grade0")), "grade = 'grade0' is none of"),
    "a hint": (science(lambda row: row.update(hint=3)), "hint = 3 is no text"),
    "a letter beyond": (table_of(lambda row: row.update(answer="E")), "2: answer = 'E' is none"),
    "a gap": (table_of(lambda row: row.update(C=None)), "2: option D follows no C"),
    "two images": (table_of(lambda row: row.update(image="a", image_2="b")), "2 has 2 images"),
    "an image lost": (
        table_of(lambda row: row.update(image=None, question="<image>what?")),
        "2 speaks of 1 image (<image>) and has 0; name it as image, or leave such rows out",
    ),
    "an image shown twice": (
        table_of(lambda row: row.update(image="a", question="<image> and <image>?")),
        "2 speaks of 2 images (<image>, <image>) and has 1; write <image 1> wherever that one is "
        "meant, or leave such rows out",
    ),
    "an image shown twice among options": (
        table_of(lambda row: row.update(image="a", question="<image>?", B="<image>")),
        "(<image>, <image>) and has 1; write <image 1> wherever",
    ),
    "an image shown and numbered": (
        table_of(lambda row: row.update(image="a", question="<image> as in <image 1>?")),
        "(<image 1>, <image>) and has 1; leave such rows out",
    ),
    "images for options": (
        table_of(lambda row: row.update(image="a", B="<image 1>", C="<image 2>")),
        "2 speaks of 2 images (<image 1>, <image 2>) and has 1; leave such rows out",
    ),
    "images in a list": (
        table_of(lambda row: row.update(image=None, images=["a.png"])),
        "2: the image in images is not read; write it as the row's image",
    ),
    "an image's other name": (
        table_of(lambda row: row.update(image=None, path="val/a.JPG")),
        "2: the image in path is not read",
    ),
    "an image of another column": (
        table_of(lambda row: row.update(image="", shown={"bytes": None, "path": "a"})),
        "2: the image in shown is not read",
    ),
    "an open question": (table_of(lambda row: row.update(question_type="open")), "no options"),
    "twice": (table_of(lambda row: row.update(index=1)), "question_id 1 is there twice"),
    "no question": (table_of(lambda row: row.pop("question")), "2: without 'question'"),
    "no id": (table_of(lambda row: row.update(index=None)), "None is no id"),
    "a damaged table": (damaged_parquet, "is no Parquet file"),
    "paths in a table": (parquet_of(["val/1.jpg"]), "row 0: image = 'val/1.jpg' is no image"),
    "an image that is elsewhere": (
        parquet_of([{"bytes": None, "path": "1.jpg"}]),
        "row 0: image = {'bytes': None, 'path': '1.jpg'} is no image",
    ),
    "a table of captions": (other_parquet, "is of no known form"),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_damaged_files_are_one_line(tmp_path: Path, capsys, what: str) -> None:
    write, told = DAMAGED[what]
    words = ["--predictions", write_json(tmp_path / "said.json", []), *write(tmp_path)]
    assert main(["eval", "answers", *words, "--out", str(tmp_path / "out.json")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line and "questions" in line and not (tmp_path / "out.json").exists()


def test_predictions_that_are_none(tmp_path: Path, capsys) -> None:
    problems, splits = draw_science_qa(0)
    files = write_science_qa(tmp_path, problems, splits)[2:]
    first = splits["test"][0]

    def told(said: Any, *more: str) -> str:
        words = ["--predictions", write_json(tmp_path / "said.json", said), *files, *more]
        assert main(["eval", "answers", *words, "--out", str(tmp_path / "out.json")]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    places = dict.fromkeys(splits["test"], 0)
    assert f"the answer to {first} is 'A'" in told({"results": places | {first: "A"}})
    assert "is -2; write the place" in told({"results": places | {first: -2}})
    assert "results = [] is no table" in told({"results": []})
    assert "the first is question_id '999'" in told({"results": places | {"999": 1}})
    places.pop(first)
    assert f"the first is question_id '{first}'" in told({"results": places})
    assert "leave it out" in told({"results": places | {first: 0}}, "--mode", "exact")
    rows = draw_choices(0)
    files[:] = ["--questions", write_lines(tmp_path / "rows.jsonl", rows)]
    # The questions hold their answers, which are nobody's predictions.
    with_ids = [row | {"question_id": row["index"]} for row in rows]
    assert "row 0 is a question or an annotation" in told(with_ids)


def test_missing_images_are_told(tmp_path: Path, model: str, capsys) -> None:
    problems, splits = draw_science_qa(0)
    files = write_science_qa(tmp_path, problems, splits)
    pid = next(pid for pid in splits["test"] if problems[pid]["image"])
    (tmp_path / f"images/test/{pid}/image.png").unlink()
    words = ["eval", "vqa", "--model", model, *files, "--out", str(tmp_path / "out.json")]
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"looked for as test/{pid}/image.png and {pid}/image.png" in line
    rows = draw_choices(0)
    rows[0]["image"] = "../secret.png"
    files[3] = write_lines(tmp_path / "rows.jsonl", rows)
    assert main(words[:4] + files + words[-2:]) == 2
    assert "image ../secret.png is no path below it" in capsys.readouterr().err
