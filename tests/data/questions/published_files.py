"""Small files in the published forms of sets, drawn, and their images."""

import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import Image

MARKS = [*';/[]"{}()=+\\_-><@`,?!.']
WORDS = ["a", "an", "The", "one", "none", "Ten", "dont", "Im", "1,000", "3.5", "U.S.", "no", "yes"]
WORDS += ["hi-fi", "cat", "dog", "dog's", "Dogs'", "...", "\n", "\t", "red", "blue"]


def draw_text(draw: random.Random) -> str:
    """Words of which the rules make something else, with marks between them."""
    joint = ("", " ", " ", "'s ", *draw.sample(MARKS, 2))
    parts = [draw.choice(WORDS) + draw.choice(joint) for _ in range(draw.randint(0, 4))]
    return "".join(parts)


def draw_answers(draw: random.Random) -> list[str]:
    """Ten, of which some are the same."""
    pool = [draw_text(draw) for _ in range(draw.randint(1, 4))]
    return [draw.choice(pool) for _ in range(10)]


def write_images(folder: Path, names: Iterable[str]) -> str:
    """A picture of each name, of another colour each."""
    for number, name in enumerate(dict.fromkeys(names)):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (number * 40 % 256, number * 90 % 256, 90)).save(path)
    return str(folder)


def write_json(path: Path, content: Any) -> str:
    """The file's name, for a command."""
    path.write_text(json.dumps(content))
    return str(path)


def draw_text_vqa(seed: int, *, num: int = 30) -> dict[str, Any]:
    """TextVQA_0.5.1_val.json."""
    draw = random.Random(seed)
    images = [f"{draw.randrange(16**16):016x}" for _ in range(6)]
    rows = [
        {
            "question": draw.choice(("what does it say?", "what color is the sign?")),
            "image_id": draw.choice(images),
            "image_classes": ["Sign"],
            "image_width": 16,
            "image_height": 16,
            "answers": draw_answers(draw),
            "question_tokens": ["what", "does", "it", "say"],
            "question_id": 34602 + number,
            "set_name": "val",
        }
        for number in range(num)
    ]
    head = {"dataset_type": "val", "dataset_name": "textvqa", "dataset_version": "0.5.1"}
    return head | {"data": rows}


OK_TYPES = {"one": "Vehicles and Transportation", "two": "Brands", "other": "Other"}


def draw_ok_vqa(seed: int, *, num: int = 30) -> tuple[dict[str, Any], dict[str, Any]]:
    """OpenEnded_mscoco_val2014_questions.json and mscoco_val2014_annotations.json of OK-VQA 1.1."""
    draw = random.Random(seed)
    head = {"license": {}, "data_subtype": "val2014", "data_type": "mscoco", "info": {}}
    questions, notes = [], []
    for number in range(num):
        row = {"image_id": draw.randint(1, 9), "question_id": 2971475 + number}
        questions.append(row | {"question": "what is it for?"})
        answers = [
            {"answer_id": place + 1, "raw_answer": answer, "answer": answer}
            | {"answer_confidence": "yes"}
            for place, answer in enumerate(draw_answers(draw))
        ]
        kind = draw.choice(list(OK_TYPES))
        notes.append(row | {"question_type": kind, "answer_type": "other", "answers": answers})
    asked = head | {"task_type": "Open-Ended", "questions": questions}
    return asked, head | {"annotations": notes, "question_types": OK_TYPES}


POPE = ("random", "popular", "adversarial")


def draw_pope(seed: int, *, num: int = 30, joined: bool = False) -> list[dict[str, Any]]:
    """The rows of coco_pope_random.json, or of a file with all categories."""
    draw = random.Random(seed)
    return [
        {
            "question_id": number + 1,
            "image": f"COCO_val2014_{draw.randint(1, 6):012d}.png",
            "text": draw.choice(
                ("Is there a dog in the image?", "Is there a red car in the image?")
            ),
            "label": ("yes", "no", draw.choice(("yes", "no")))[number // 3 % 3],
        }
        | ({"category": POPE[number % 3]} if joined else {})
        for number in range(num)
    ]


def write_lines(path: Path, rows: Iterable[Any]) -> str:
    """A JSON value a line; the file's name."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


SUBJECTS = ("natural science", "social science", "language science")


def draw_science_qa(seed: int, *, num: int = 40) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """problems.json and pid_splits.json; of the test split more than of the others."""
    draw = random.Random(seed)
    problems = {}
    for pid in map(str, range(1, num + 1)):
        problems[pid] = {
            "question": draw.choice(("Which is red?", "Which word is a noun?")),
            "choices": draw.sample(
                ("a dog", "a cat", "It is red.", "none", "B"), draw.randint(2, 5)
            ),
            "answer": 0,
            "hint": draw.choice(("", "Look at the picture.", "Read the text.")),
            "image": draw.choice((None, "image.png")),
            "task": "closed choice",
            "grade": f"grade{draw.randint(1, 12)}",
            "subject": draw.choice(SUBJECTS),
            "topic": draw.choice(("biology", "geography")),
            "category": "Animals",
            "skill": "Identify",
            "lecture": "",
            "solution": "",
            "split": draw.choice(("train", "val", "test", "test", "test")),
        }
        problems[pid]["answer"] = draw.randrange(len(problems[pid]["choices"]))
    splits: dict[str, list[str]] = {name: [] for name in ("train", "val", "test")}
    for pid, row in problems.items():
        splits[row["split"]].append(pid)
    return problems, splits | {"minitest": splits["test"][:5]}


def write_science_qa(folder: Path, problems: dict[str, Any], splits: dict[str, Any]) -> list[str]:
    """The files below `folder` -> the options that name the test split."""
    names = (f"{r['split']}/{pid}/image.png" for pid, r in problems.items() if r["image"])
    images = write_images(folder / "images", names)
    write_json(folder / "pid_splits.json", splits)
    return [
        "--data",
        images,
        "--questions",
        write_json(folder / "problems.json", problems) + ":test",
    ]


def draw_choices(seed: int, *, num: int = 30) -> list[dict[str, Any]]:
    """Rows as MMStar's, MMMU's and MMBench's: options in the question, in a list, in columns."""
    draw = random.Random(seed)
    rows = []
    for number in range(num):
        options = draw.sample(("left", "right", "a red dog", "two", "none of them"), 4)
        row: dict[str, Any] = {"index": number, "category": draw.choice(("math", "logic"))}
        row |= {"answer": "ABCD"[draw.randrange(4)], "question": "Which <image 1> is it?"}
        lettered = dict(zip("ABCD", options, strict=True))
        if number % 3 == 0:
            told = ", ".join(f"{letter}: {text}" for letter, text in lettered.items())
            row |= {"question": f"Which is it?\nOptions: {told}", "l2_category": "geometry"}
        elif number % 3 == 1:
            row |= {"options": str(options) if number % 2 else options}
        else:
            row |= lettered
        row |= {"image": draw.choice((f"pictures/{number % 5}.png", None))}
        if row["image"] is None:
            row["question"] = row["question"].replace(" <image 1>", "")
        rows.append(row)
    return rows


def options_of_row(row: dict[str, Any]) -> list[str]:
    """What the letters of one of `draw_choices` stand for."""
    if "options" in row:
        given = row["options"]
        return (
            [part.strip(" '[]") for part in given.split(",")] if isinstance(given, str) else given
        )
    if "A" in row:
        return [row[letter] for letter in "ABCD"]
    told = row["question"].split("Options: ")[1]
    return [part.split(": ")[1] for part in told.split(", ")]
