"""Recipes over dialogues about the coloured squares that questions are asked of."""

import json
import tomllib
from pathlib import Path
from typing import Any

from PIL import Image

from mmtrain.settings.decode import dump_toml
from tests.tasks.test_vqa_run import CORE, write_recipe


def write_dialogues(folder: Path, *, size: tuple[int, int] = (16, 16)) -> Path:
    """A dialogue of three turns about each image that `write_recipe` wrote below `folder`; the
    last shows another image, and one has none. Images become as large as `size`."""
    questions = json.loads((folder / "questions.json").read_text())["questions"]
    annotations = json.loads((folder / "annotations.json").read_text())["annotations"]
    said = {row["question_id"]: row["answers"][0]["answer"] for row in annotations}
    names = sorted(path.name for path in (folder / "images").iterdir())
    for name in names:
        path = folder / "images" / name
        Image.open(path).resize(size).save(path)
    rows: list[dict[str, Any]] = []
    for image, name in enumerate(names):
        turns, own = [], [row for row in questions if row["image_id"] == image]
        first = image // 3 % len(own)  # every question is the first of some
        for row in own[first:] + own[:first]:
            turns += [{"from": "human", "value": row["question"]}]
            turns += [{"from": "gpt", "value": said[row["question_id"]]}]
        turns[0]["value"] = f"<image>\n{turns[0]['value']}"
        rows.append({"conversations": turns, "image": [name]})
    other = next(turn for turn in rows[1]["conversations"])
    rows[0]["conversations"] += [dict(other), dict(rows[1]["conversations"][1])]
    rows[0]["image"].append(names[1])
    rows[2]["conversations"][0]["value"] = "is water wet?"
    rows[2]["image"] = []
    path = folder / "dialogues.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def dialogue_recipe(
    folder: Path, *, size: tuple[int, int] = (16, 16), vqa: dict[str, Any] | None = None
) -> Path:
    """A recipe that learns them; `vqa` are further keys of that section."""
    path = write_recipe(folder)
    content = tomllib.loads(path.read_text())
    content["data"]["train"] = str(write_dialogues(folder, size=size))
    content["vqa"] = {
        "connector": {"kind": "pixel_shuffle"},
        "dialogues": {"images": str(folder / "images"), "max_length": 96},
        "data": {"answer_length": 4},
        "generate": {"transformer": CORE | {"mask": "causal"}},
    } | (vqa or {})
    path.write_text(dump_toml(content))
    return path
