"""The page of `mmtrain data labels`: which tokens of batches are learnt."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from mmtrain.data.labels import LabelledBatch, LabelledRow, Shown, Stretch
from mmtrain.eval.result import thumbnail
from mmtrain.report.render import percent, render, write_page

_MOST_PICTURES = 10
"""Pieces of a row's images that are drawn."""


@dataclass(frozen=True, kw_only=True)
class PageBatch:
    """One batch of the page."""

    title: str
    labelled: LabelledBatch
    images_NCHW: Tensor
    """uint8."""
    bad: tuple[str, ...]
    """Samples that were replaced, each with its reason."""


def write_labels_page(
    path: Path, batches: Sequence[PageBatch], *, title: str, num_rows: int
) -> None:
    """Write the page.

    Args:
        path: FILE.html.
        batches: in their order.
        title: above it.
        num_rows: rows of each batch that are shown.

    Raises:
        UsageError: it cannot be written.
    """
    content = {"title": title, "notes": [], "batches": [_batch(one, num_rows) for one in batches]}
    write_page(path, render("labels.html", content))


def _batch(one: PageBatch, num_rows: int) -> dict[str, Any]:
    found = one.labelled
    rest = found.num_tokens - found.num_trained - found.num_image - found.num_padding
    parts = [
        ("trained", "trained", found.num_trained),
        ("image", "images", found.num_image),
        ("context", "other text", rest),
        ("padding", "padding", found.num_padding),
    ]
    return {
        "title": one.title,
        "note": found.note,
        "bad": one.bad,
        "tokens": f"{found.num_tokens:,}",
        "parts": [
            {
                "kind": kind,
                "name": name,
                "num": f"{num:,}",
                "share": percent(found.share(num)),
                "width": f"{100 * found.share(num):.3f}",
            }
            for kind, name, num in parts
        ],
        "rows": [shown_row(row, one.images_NCHW) for row in found.rows[:num_rows]],
        "num_more": max(0, len(found.rows) - num_rows),
    }


def shown_row(row: LabelledRow, images_NCHW: Tensor) -> dict[str, Any]:
    """A row as a template draws it, with its pictures among the batch's."""
    first, last = row.pieces
    return {
        "key": row.key,
        "note": row.note,
        "pictures": [
            _uri(image) for image in images_NCHW[first : min(last, first + _MOST_PICTURES)]
        ],
        "num_more": max(0, last - first - _MOST_PICTURES),
        "stretches": [_stretch(one) for one in row.stretches],
    }


def _stretch(one: Stretch) -> dict[str, Any]:
    return {
        "kind": one.kind,
        "text": f"image {one.num_pieces} × {one.per_piece}",
        "tokens": [_token(token) for token in one.tokens],
    }


def _token(token: Shown) -> dict[str, Any]:
    return {
        "lines": token.text.split("\n"),
        "is_special": token.is_special,
        "ids": ", ".join(map(str, token.ids)),
    }


def _uri(image_CHW: Tensor) -> str:
    image = Image.fromarray(image_CHW.permute(1, 2, 0).numpy())
    return f"data:image/webp;base64,{base64.b64encode(thumbnail(image)).decode()}"
