"""GQA's files, drawn: questions, choices and predictions in the published forms."""

import json
import random
from pathlib import Path
from typing import Any

STRUCTURAL = ("verify", "logical", "query", "choose", "compare")
SEMANTIC = ("obj", "attr", "cat", "rel", "global")
DETAILED = ("twoCommon", "verifyAttr", "objThis", "relS", "")
OPERATIONS = ("select", "relate", "filter color", "exist", "query", "choose name", "verify")
ARGUMENTS = ("table (123)", "name", "?", "hposition", "name: x")
ANSWERS = ("yes", "no", "red", "t-shirt", "T-shirt", "t shirt", "color", "shape", "left", "none")


def draw_gqa(seed: int, num: int = 60) -> dict[str, Any]:
    """`questions`, `choices` and `predictions`; every entailed question is among the questions."""
    draw = random.Random(seed)
    ids = [str(9000 + number) for number in range(num)]
    questions, choices = {}, {}
    for question_id in ids:
        steps = [
            {"operation": draw.choice(OPERATIONS), "argument": draw.choice(ARGUMENTS)}
            for _ in range(draw.randint(1, 6))
        ]
        others = draw.sample(ids, draw.randint(0, 3)) + [question_id] * draw.randint(0, 1)
        questions[question_id] = {
            "question": " ".join(["is"] * draw.randint(1, 9)),
            "answer": draw.choice(ANSWERS),
            "imageId": str(draw.randint(1, 12)),
            "isBalanced": draw.random() < 0.7,
            "entailed": others,
            "equivalent": [question_id],
            "groups": {"global": draw.choice(("a", "b", "c", None)), "local": "l"},
            "types": {
                "structural": draw.choice(STRUCTURAL),
                "semantic": draw.choice(SEMANTIC),
                "detailed": draw.choice(DETAILED),
            },
            "semantic": steps,
        }
        choices[question_id] = {
            name: draw.sample(ANSWERS, draw.randint(0, 6)) for name in ("valid", "plausible")
        }
    questions[ids[0]] |= {"isBalanced": True, "groups": {"global": "a"}}
    predictions = [
        {
            "questionId": question_id,
            "prediction": question["answer"] if draw.random() < 0.5 else draw.choice(ANSWERS),
        }
        for question_id, question in questions.items()
    ]
    draw.shuffle(predictions)
    return {"questions": questions, "choices": choices, "predictions": predictions}


def write_gqa(folder: Path, content: dict[str, Any]) -> list[str]:
    """The files below `folder` -> the options that name them."""
    folder.mkdir(parents=True, exist_ok=True)
    words = []
    for name, one in content.items():
        (folder / f"{name}.json").write_text(json.dumps(one))
        words += [f"--{name}", str(folder / f"{name}.json")]
    return words
