"""Writes docs/tutorials/first_clip.ipynb from first_clip.md: the same text, its blocks as cells.

    python tools/write_notebook.py

Shell lines become `!` cells; a block that begins with what it needs (`# needs ...`) stays text.
"""

import json
import re
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[1] / "docs/tutorials/first_clip.md"
NOTEBOOK = PAGE.with_suffix(".ipynb")
_FENCED = re.compile(r"^```(sh|python)\n(.*?)^```\n", re.MULTILINE | re.DOTALL)


def notebook(page: str) -> dict[str, Any]:
    """A page as a notebook, without outputs."""
    cells: list[dict[str, Any]] = []
    text, end = "", 0
    for block in _FENCED.finditer(page):
        text += page[end : block.start()]
        end = block.end()
        language, code = block.groups()
        if code.startswith("# needs "):
            text += block[0]
            continue
        if language == "sh":
            code = "".join(f"!{line}\n" for line in code.splitlines())
        cells += [_cell("markdown", text), _cell("code", code)]
        text = ""
    cells.append(_cell("markdown", text + page[end:]))
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number:02d}"
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}


def _cell(kind: str, source: str) -> dict[str, Any]:
    more = {"execution_count": None, "outputs": []} if kind == "code" else {}
    lines = source.strip("\n").splitlines(keepends=True)
    return {"cell_type": kind, "metadata": {}, "source": lines, **more}


def written(page: str) -> str:
    """What the file holds."""
    return json.dumps(notebook(page), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    NOTEBOOK.write_text(written(PAGE.read_text("utf-8")), encoding="utf-8")
