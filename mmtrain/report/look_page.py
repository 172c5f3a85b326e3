"""How the page shows a look: the maps as they are, the planes as dots in percent of a square."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmtrain.eval.look.files import LOOK_FILE
from mmtrain.files import parse_json
from mmtrain.report.pictures import picture_uri

_MARGIN = 2.5
"""Percent of the square that stay free at each edge."""


@dataclass(frozen=True, kw_only=True)
class ShownMap:
    """An image with its two maps."""

    key: str
    text: str
    cosine: float
    peak: float
    """The most that a patch adds to the cosine."""
    shares: tuple[float, float]
    """The smallest and the largest share of a patch in what the tower pools."""
    grid: tuple[int, int]
    """Rows and columns of patches."""
    uris: dict[str, str]
    """Data URIs of `picture`, `text_map` and `rollout`."""


@dataclass(frozen=True, kw_only=True)
class Dot:
    """An image on both planes, and its text."""

    key: str
    text: str
    nearest: str
    """The text nearest to the image; the same as `text` where the model is right."""
    style: str
    """CSS variables: x, y and their like on the other plane; of the text; of the small picture."""

    @property
    def is_right(self) -> bool:
        """Whether its own text is the nearest."""
        return self.text == self.nearest


@dataclass(frozen=True, kw_only=True)
class ShownLook:
    """What the page shows of RUN/look/."""

    evaluation: str
    """Which of the recipe's evaluations names the data."""
    is_captions: bool
    """The texts are captions, not names of classes."""
    num_samples: int
    """Of the whole set."""
    maps: list[ShownMap]
    dots: list[Dot]
    words: list[tuple[str, str]]
    """Texts with their CSS variables."""
    pca_share: float
    """The part of the variance that the plane of PCA holds."""
    sheet: str
    """Data URI of all small pictures."""
    sheet_columns: int
    sheet_rows: int
    tile: int
    """Pixels of the side of a small picture."""

    @property
    def num_right(self) -> int:
        """Images whose own text is the nearest of all shown."""
        return sum(dot.is_right for dot in self.dots)


def read_look(folder: Path, notes: list[str]) -> ShownLook | None:
    """A look as the page shows it; None where there is none, and a note where it is damaged."""
    path = folder / LOOK_FILE
    try:
        return _shown(folder, parse_json(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError):
        notes.append(f"{folder.name}/{path.name} is damaged and left out.")
        return None


def _shown(folder: Path, look: dict[str, Any]) -> ShownLook:
    keys, texts = [str(key) for key in look["keys"]], [str(text) for text in look["texts"]]
    if not keys or look["maps"] == []:
        raise ValueError("nothing is in it")
    image_xyuv, text_xyuv = _places(look["planes"], len(keys), len(texts))
    columns, tile = int(look["sheet"]["columns"]), int(look["sheet"]["tile"])
    rows = max(1, -(-len(keys) // columns))
    dots = [
        Dot(
            key=key,
            text=texts[own],
            nearest=texts[nearest],
            style=_style("xyuv", image_xyuv[number])
            + _style("XYUV", text_xyuv[own])
            + _tile_style(number, columns, rows),
        )
        for number, (key, own, nearest) in enumerate(
            zip(keys, look["text"], look["nearest"], strict=True)
        )
    ]
    return ShownLook(
        evaluation=str(look["evaluation"]["name"]),
        is_captions=look["evaluation"]["kind"] == "retrieval",
        num_samples=int(look["num_samples"]),
        maps=[_map(folder, one) for one in look["maps"] or []],
        dots=dots,
        words=[(text, _style("xyuv", xyuv)) for text, xyuv in zip(texts, text_xyuv, strict=True)],
        pca_share=float(look["pca_share"]),
        sheet=_uri(folder, look["sheet"]["picture"]),
        sheet_columns=columns,
        sheet_rows=rows,
        tile=tile,
    )


def _map(folder: Path, one: dict[str, Any]) -> ShownMap:
    least, most = (float(share) for share in one["shares"])
    rows, columns = (int(count) for count in one["grid"])
    return ShownMap(
        key=str(one["key"]),
        text=str(one["text"]),
        cosine=float(one["cosine"]),
        peak=float(one["peak"]),
        shares=(least, most),
        grid=(rows, columns),
        uris={kind: _uri(folder, one[kind]) for kind in ("picture", "text_map", "rollout")},
    )


def _uri(folder: Path, name: str) -> str:
    uri = picture_uri(folder, name)
    if uri is None:
        raise ValueError(f"{name} is missing")
    return uri


Place = list[float]
"""x and y on the plane of t-SNE, u and v on that of PCA, in percent."""


def _places(planes: dict[str, Any], num: int, num_texts: int) -> tuple[list[Place], list[Place]]:
    """The images' places and the texts'."""
    by_plane: list[list[tuple[float, float]]] = []
    for name in ("tsne", "pca"):
        images, texts = planes[name]["images"], planes[name]["texts"]
        if (len(images), len(texts)) != (num, num_texts):
            raise ValueError(f"the plane {name} has other points")
        by_plane.append(_fit([(float(x), float(y)) for x, y in images + texts]))
    places = [[*near, *wide] for near, wide in zip(*by_plane, strict=True)]
    return places[:num], places[num:]


def _fit(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points in percent of a square, to one scale in both directions; up is up."""
    if not all(math.isfinite(value) for point in points for value in point):
        raise ValueError("a place is no number")
    lows, highs = zip(*((min(axis), max(axis)) for axis in zip(*points, strict=True)), strict=True)
    spread = max(high - low for low, high in zip(lows, highs, strict=True)) or 1.0
    scale = (100 - 2 * _MARGIN) / spread
    middles = [(low + high) / 2 for low, high in zip(lows, highs, strict=True)]
    return [(50 + scale * (x - middles[0]), 50 - scale * (y - middles[1])) for x, y in points]


def _style(names: str, values: Place) -> str:
    return "".join(f"--{name}:{value:.2f};" for name, value in zip(names, values, strict=True))


def _tile_style(number: int, columns: int, rows: int) -> str:
    """Where the small picture is on the sheet, as background-position counts."""
    row, column = divmod(number, columns)
    across = 100 * column / (columns - 1) if columns > 1 else 0
    down = 100 * row / (rows - 1) if rows > 1 else 0
    return f"--l:{across:.4g}%;--t:{down:.4g}%"
