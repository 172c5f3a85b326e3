"""Dialogues about small pictures, as files of every form."""

import io
import json
from pathlib import Path
from typing import Any

from PIL import Image

COLORS = ("red", "green", "blue", "white")


def picture(number: int, *, size: tuple[int, int] = (20, 16)) -> bytes:
    """A PNG of one colour, another for each number up to 200."""
    buffer = io.BytesIO()
    Image.new("RGB", size, (number % 256, 40, 200 - number % 200)).save(buffer, "PNG")
    return buffer.getvalue()


def llava_row(number: int, *, turns: int = 1, image: str | None = None) -> dict[str, Any]:
    """LLaVA's form: an image, and so many questions with answers."""
    said = []
    for turn in range(turns):
        before = "<image>\n" if turn == 0 else ""
        said.append({"from": "human", "value": f"{before}what color is thing {number} {turn}?"})
        said.append({"from": "gpt", "value": COLORS[(number + turn) % 4]})
    row = {"id": f"row{number}", "conversations": said}
    return row | {"image": image or f"pictures/{number}.png"}


def write_pictures(folder: Path, count: int) -> None:
    """`pictures/0.png` and on."""
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / f"pictures/{number}.png").write_bytes(picture(number))


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    """A row a line; a text is a line as it is."""
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def write_llava(folder: Path, count: int = 8, *, turns: int = 1) -> Path:
    """A JSONL of one-image dialogues, and its pictures beside it."""
    write_pictures(folder, count)
    return write_jsonl(folder / "talk.jsonl", [llava_row(n, turns=turns) for n in range(count)])
