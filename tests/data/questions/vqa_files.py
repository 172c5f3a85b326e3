"""A small set of coloured squares with questions, in the forms of VQAv2, VizWiz and GQA."""

import json
from pathlib import Path
from typing import Any

from PIL import Image

COLOURS = {"red": (220, 30, 30), "green": (20, 180, 40), "blue": (30, 40, 220)}


def write_set(folder: Path, *, num: int = 12) -> dict[str, Any]:
    """Images and VQAv2 files below `folder` -> what open_questions takes."""
    images = folder / "images"
    images.mkdir(parents=True)
    questions, annotations = [], []
    for image_id in range(num):
        name = list(COLOURS)[image_id % 3]
        picture = Image.new("RGB", (16, 16), COLOURS[name])
        picture.save(images / f"COCO_train2014_{image_id:012d}.png")
        for number, (text, answer, kind) in enumerate(
            (
                ("What color is it?", name, "other"),
                ("Is it red?", "yes" if name == "red" else "no", "yes/no"),
                ("Is it blue?", "yes" if name == "blue" else "no", "yes/no"),
            )
        ):
            question_id = image_id * 10 + number
            questions.append({"question_id": question_id, "image_id": image_id, "question": text})
            answers = [answer] * 8 + ["maybe", "The box"]
            annotations.append(
                {
                    "question_id": question_id,
                    "image_id": image_id,
                    "question_type": text.split()[0].lower(),
                    "answer_type": kind,
                    "answers": [
                        {"answer_id": i + 1, "answer": a, "answer_confidence": "yes"}
                        for i, a in enumerate(answers)
                    ],
                }
            )
    (folder / "questions.json").write_text(json.dumps({"questions": questions}))
    (folder / "annotations.json").write_text(json.dumps({"annotations": annotations}))
    return {
        "data": str(images),
        "questions": str(folder / "questions.json"),
        "annotations": str(folder / "annotations.json"),
    }


def change(path: Path, edit: Any) -> None:
    """Rewrite a JSON file by a function of its content."""
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))
