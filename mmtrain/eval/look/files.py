"""A look on disk: look.json and its pictures, in a folder of their own."""

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from mmtrain.eval.look.look import Look, MapExample
from mmtrain.eval.look.pictures import SHEET_COLUMNS, TILE
from mmtrain.files import replace_file

LOOK_FILE = "look.json"
_SHEET = "sheet.webp"


def write_look(folder: Path, look: Look, *, told: dict[str, Any]) -> None:
    """Write a look over what the folder held; look.json comes last.

    Args:
        folder: made where it is missing.
        look: the look.
        told: what look.json says beside it, such as of which weights and data it is.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / LOOK_FILE).unlink(missing_ok=True)
    (folder / _SHEET).write_bytes(look.sheet)
    content = told | {
        "num_samples": look.num_samples,
        "keys": look.keys,
        "texts": look.texts,
        "text": look.text_N,
        "nearest": look.nearest_N,
        "planes": {
            name: {"images": _rows(image_N2), "texts": _rows(text_U2)}
            for name, (image_N2, text_U2) in look.planes.items()
        },
        "pca_share": look.pca_share,
        "sheet": {"picture": _SHEET, "columns": SHEET_COLUMNS, "tile": TILE},
        "maps": [_write_map(folder, number, one) for number, one in enumerate(look.maps, 1)]
        or None,  # a tower without patches
    }
    text = json.dumps(content, ensure_ascii=False) + "\n"
    # A caption from a .json may hold half a character, which UTF-8 cannot write.
    replace_file(folder / LOOK_FILE, text.encode("utf-8", "replace"))


def _write_map(folder: Path, number: int, one: MapExample) -> dict[str, Any]:
    pictures = {"picture": one.picture, "text_map": one.text_map, "rollout": one.rollout}
    names = {kind: f"map-{number:02d}-{kind.replace('_', '-')}.webp" for kind in pictures}
    for kind, name in names.items():
        (folder / name).write_bytes(pictures[kind])
    return {
        "key": one.key,
        "text": one.text,
        "cosine": one.cosine,
        "peak": one.peak,
        "shares": list(one.shares),
        "grid": list(one.grid),
        **names,
    }


def _rows(point_N2: Tensor) -> list[list[float]]:
    return [[float(f"{x:.5g}"), float(f"{y:.5g}")] for x, y in point_N2.tolist()]
