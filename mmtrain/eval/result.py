"""What an evaluation found, and its form on disk."""

import io
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import PIL
import torch
from PIL import Image

import mmtrain
from mmtrain.data.sources.source import SampleSource
from mmtrain.errors import UsageError
from mmtrain.eval.encode import Encoder
from mmtrain.eval.forward_size import FIXED_BATCH
from mmtrain.eval.outcomes import Outcome, write_outcomes
from mmtrain.files import replace_file
from mmtrain.models.fingerprint import weights_fingerprint
from mmtrain.settings.decode import encode

PICTURE_SIDE = 192
_PICTURE = re.compile(r"(best|worst)-\d+(-attention)?\.webp")


@dataclass(frozen=True, kw_only=True)
class Example:
    """One image, what it should have found and what it did."""

    key: str
    """The sample's key."""
    text: str
    """The right class name or caption."""
    predicted: str
    """The class name or caption in first place."""
    rank: int
    """Place of the right one, from 1."""
    num_candidates: int
    """How many there were."""
    picture: bytes
    """The image as WebP, at most PICTURE_SIDE pixels wide and high."""
    attention: bytes | None = None
    """The image under what the model looked at, as WebP; None where nothing tells it."""
    remark: str = ""
    """What stands below it; empty: the rank."""


@dataclass(frozen=True, kw_only=True)
class EvalResult:
    """The same figures on every rank; the examples only where `Encoder.is_main`."""

    figures: dict[str, Any]
    """What the JSON file holds."""
    best: list[Example]
    """The clearest successes."""
    worst: list[Example]
    """The worst failures, the worst first."""
    outcomes: tuple[Outcome, ...] = ()
    """What became of each sample."""


def provenance(encoder: Encoder, source: SampleSource) -> dict[str, Any]:
    """What a figure needs beside it to be compared with another."""
    fast = encoder.batch_size != FIXED_BATCH
    return {
        "data_fingerprint": source.fingerprint,
        "model_fingerprint": weights_fingerprint(encoder.model),
        "preprocess": encode(encoder.preprocess),
        "precision": encoder.precision,
        **({"fast_batch_size": encoder.batch_size} if fast else {}),
        "versions": {
            "mmtrain": mmtrain.__version__,
            "torch": torch.__version__,
            "pillow": PIL.__version__,
        },
    }


def thumbnail(image: Image.Image) -> bytes:
    """A small WebP of an image."""
    image = image.convert("RGB")
    image.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=85)
    return buffer.getvalue()


def write_result(path: Path, result: EvalResult, *, step: int | None = None) -> None:
    """Write the figures as JSON to `path` (NAME.json), over what an earlier evaluation left.

    Outcomes go beside it (NAME.outcomes.jsonl), examples' pictures into the folder NAME. With
    `step` the figures are also added to NAME.history.jsonl, from which a report draws their course.
    The figures come first, so that a disk that fills up takes the examples and leaves them.

    Raises:
        UsageError: one of them cannot be written.
    """
    if path.suffix != ".json":
        raise UsageError(f"out = {path} must end in .json")
    figures = dict(result.figures)
    if step is not None:
        figures = {"step": step, **figures}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_figures(path, figures)
        write_outcomes(path, result.outcomes)
        if step is not None:
            _add_to_history(path.with_suffix(".history.jsonl"), figures)
    except OSError as error:
        raise UsageError(f"out = {path} cannot be written: {error}") from error
    if not (result.best or result.worst):
        return
    folder = path.with_suffix("")
    try:
        figures["examples"] = _write_pictures(folder, result)
        _write_figures(path, figures)
    except OSError as error:
        raise UsageError(
            f"{path} has the figures, its examples in {folder} cannot be written: {error}"
        ) from error


def _write_figures(path: Path, figures: dict[str, Any]) -> None:
    replace_file(path, json.dumps(figures, indent=2, ensure_ascii=False) + "\n")


def _write_pictures(folder: Path, result: EvalResult) -> dict[str, list[dict[str, Any]]]:
    folder.mkdir(exist_ok=True)
    # Only what an earlier evaluation left: the folder may hold something else of that name.
    for old in folder.glob("*.webp"):
        if _PICTURE.fullmatch(old.name):
            old.unlink(missing_ok=True)  # another process may be writing this result too
    rows: dict[str, list[dict[str, Any]]] = {}
    for side, examples in (("best", result.best), ("worst", result.worst)):
        rows[side] = []
        for number, example in enumerate(examples, 1):
            file = folder / f"{side}-{number:02d}.webp"
            file.write_bytes(example.picture)
            row = asdict(example) | {"picture": f"{folder.name}/{file.name}"}
            if example.attention is not None:
                over = file.with_stem(f"{file.stem}-attention")
                over.write_bytes(example.attention)
                row["attention"] = f"{folder.name}/{over.name}"
            rows[side].append({key: value for key, value in row.items() if value not in (None, "")})
    return rows


def _add_to_history(path: Path, figures: dict[str, Any]) -> None:
    """One line of plain numbers. A step that a resumed run does again is there twice; the later
    line counts."""
    numbers = {k: v for k, v in figures.items() if isinstance(v, int | float)}
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(numbers) + "\n")
