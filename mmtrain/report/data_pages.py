"""Pages about data: figures with histograms, and a sheet of samples."""

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmtrain.data.survey.seen import Seen
from mmtrain.eval.result import thumbnail
from mmtrain.report.chart import short_number
from mmtrain.report.curves import Drawing
from mmtrain.report.histogram import histogram, name_bars
from mmtrain.report.render import percent, render, write_page
from mmtrain.settings.counted import counted

_MAX_NAMES = 12
_MAX_GROUPS = 12
_MAX_PICTURES = 9
_MAX_TURNS = 8
"""Of a dialogue on a sheet; the figures beside it have the number of all."""
_QUANTILES = ("mean", "min", "p1", "p5", "p50", "p95", "p99", "max")
_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


@dataclass(frozen=True, kw_only=True)
class _Column:
    """Values of which a histogram is drawn."""

    key: str
    title: str
    figure: str
    """Their spread in the figures."""
    log: bool = False
    whole: bool = False
    show: Callable[[float], str] = short_number


def size_told(num_bytes: float) -> str:
    """Bytes in the unit that suits them."""
    unit = 0
    while num_bytes >= 1000 and unit < len(_UNITS) - 1:
        num_bytes, unit = num_bytes / 1000, unit + 1
    return f"{num_bytes:.3g}\xa0{_UNITS[unit]}"


_IMAGES = (
    _Column(key="width", title="Width, pixels", figure="width", log=True),
    _Column(key="height", title="Height, pixels", figure="height", log=True),
    _Column(key="aspect", title="Width by height", figure="aspect", log=True),
    _Column(key="image_bytes", title="File", figure="image_bytes", log=True, show=size_told),
)

_TURNS = (
    _Column(key="turns", title="Turns of a dialogue", figure="turns", whole=True),
    _Column(key="images", title="Images of a dialogue", figure="images", whole=True),
    _Column(key="said", title="Tokens of what is said in one", figure="said", whole=True),
    _Column(key="words", title="Words of a turn", figure="caption_words", whole=True),
    _Column(key="tokens", title="Tokens of a turn", figure="caption_tokens", whole=True),
)
_CAPTIONS = (
    _Column(key="words", title="Words of a caption", figure="caption_words", whole=True),
    _Column(key="tokens", title="Tokens of a caption", figure="caption_tokens", whole=True),
)


def write_stats_page(
    path: Path,
    stats: Mapping[str, Any],
    columns: Mapping[str, np.ndarray],
    *,
    title: str,
    picture: Callable[[int, int], np.ndarray],
) -> None:
    """Write the page of a data set's figures.

    Args:
        path: where.
        stats: what `figures` gives.
        columns: the values behind them.
        title: names the data.
        picture: a sample, and which of its images -> the pixels, of duplicates that are shown.

    Raises:
        UsageError: it cannot be written.
    """
    values = dict(columns)
    said = stats.get("dialogues")
    if said is not None:
        of_each = {name: said[name] for name in ("turns", "images")}
        stats = {**stats, **of_each, "said": said["tokens"]}
    texts = _CAPTIONS if said is None else _TURNS
    values["aspect"] = values["width"] / np.maximum(values["height"], 1)
    content = {
        "title": title,
        "notes": [],
        "subtitle": _looked_at(stats),
        "tiles": _tiles(stats),
        "images": [_drawn(one, values, stats) for one in _IMAGES if values[one.key].size]
        + _names("Format", stats["formats"]),
        "texts": "Captions" if said is None else "Dialogues",
        "captions": [_drawn(one, values, stats) for one in texts if values[one.key].size]
        + _names("Script", stats["scripts"]),
        "duplicates": _duplicates(stats["duplicates"], picture),
        "reasons": _names("Reason", stats["bad_by_reason"]),
        "bad": stats["bad"][:20],
        "num_bad": stats["num_bad"],
        "quantiles": _QUANTILES,
        "figures": _figures(stats),
    }
    write_page(path, render("data_stats.html", content))


def write_sheet(path: Path, samples: Sequence[Seen], *, title: str, subtitle: str) -> None:
    """Write the contact sheet of some samples.

    Raises:
        UsageError: it cannot be written.
    """
    content = {
        "title": title,
        "subtitle": subtitle,
        "notes": [],
        "samples": [_shown(seen) for seen in samples],
    }
    write_page(path, render("data_view.html", content))


def _looked_at(stats: Mapping[str, Any]) -> str:
    if stats["num_looked_at"] == stats["num_samples"]:
        return f"{stats['num_samples']:,} samples, all of which were looked at"
    return f"{stats['num_looked_at']:,} of {stats['num_samples']:,} samples, drawn by chance"


def _tiles(stats: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    looked = stats["num_looked_at"]
    found = [
        ("Usable", percent(stats["num_usable"] / looked), f"{stats['num_bad']:,} cannot be used"),
        ("Images", size_told(stats["image_bytes"]["total"]), "in all, as files"),
    ]
    if stats["short_side"]:
        low = f"{stats['short_side']['p5']:.0f} in the smallest twentieth"
        found.append(("Shorter side", f"{stats['short_side']['p50']:.0f} px", low))
    if "dialogues" in stats:
        found += _tiles_of_dialogues(stats)
    elif stats["num_captions"]:
        distinct = stats["distinct_captions"] / stats["num_captions"]
        found.append(
            ("Captions", f"{stats['num_captions']:,}", f"{percent(distinct)} of them distinct")
        )
        cut = percent(stats["captions_cut"] / stats["num_captions"])
        remark = f"median; {cut} above {stats['context_length']}"
        found.append(("Tokens", f"{stats['caption_tokens']['p50']:.0f}", remark))
    same = stats["duplicates"]["same_picture"]["num_superfluous"]
    found.append(("Seen before", percent(same / looked), f"{same:,} pictures are nearly another"))
    if "labels" in stats:
        labels = stats["labels"]
        remark = f"of {labels['num_labelled']:,} samples with one"
        found.append(("Labels", f"{labels['num_distinct']:,}", remark))
    return found


def _tiles_of_dialogues(stats: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    of = stats["dialogues"]
    images = f"median; at most {of['images']['max']:.0f}"
    longest = f"of what is said in one, at most {of['tokens']['max']:,.0f}"
    return [
        ("Turns", short_number(of["turns"]["p50"]), f"median; {stats['num_captions']:,} in all"),
        ("Images of one", short_number(of["images"]["p50"]), images),
        ("Tokens", f"{of['tokens']['p50']:.0f}", longest),
    ]


def _drawn(one: _Column, values: Mapping[str, np.ndarray], stats: Mapping[str, Any]) -> Drawing:
    median = one.show(stats[one.figure]["p50"])
    svg = histogram(values[one.key], label=one.title, log=one.log, whole=one.whole, show=one.show)
    return Drawing(title=one.title, value=f"median {median}", svg=svg)


def _names(title: str, counts: Mapping[str, int]) -> list[Drawing]:
    if not counts:
        return []
    listed = list(counts.items())
    if len(listed) > _MAX_NAMES:
        rest = sum(count for _, count in listed[_MAX_NAMES - 1 :])
        listed = [*listed[: _MAX_NAMES - 1], ("others", rest)]
    return [Drawing(title=title, value="", svg=name_bars(listed, label=title))]


def _figures(stats: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    rows = {
        "width": "Width",
        "height": "Height",
        "short_side": "Shorter side",
        "aspect": "Width by height",
        "image_bytes": "File",
        "captions_per_image": "Captions of an image",
        "turns": "Turns",
        "images": "Images of a dialogue",
        "said": "Tokens of a dialogue",
        "caption_words": "Words",
        "caption_tokens": "Tokens",
    }
    show = {"image_bytes": size_told}
    return [
        (name, [show.get(key, short_number)(stats[key][each]) for each in _QUANTILES])
        for key, name in rows.items()
        if "mean" in stats.get(key, ())
    ]


def _duplicates(
    found: Mapping[str, Any], picture: Callable[[int, int], np.ndarray]
) -> list[tuple[str, str, list[dict[str, Any]], int]]:
    titles = {
        "same_file": ("The same files", "byte for byte"),
        "same_picture": ("Nearly the same pictures", "by a hash of their brightness"),
    }
    told = []
    for key, (title, how) in titles.items():
        one = found[key]
        if not one["num_groups"]:
            continue
        num, num_groups = one["num_superfluous"], one["num_groups"]
        remark = (
            f"{num:,} image{'s are' if num > 1 else ' is'} another one again, {how}, in "
            f"{counted(num_groups, 'group')}"
        )
        groups = [
            {"num": group["num"], "keys": group["keys"], "pictures": _pictures(group, picture)}
            for group in one["largest"][:_MAX_GROUPS]
        ]
        told.append((title, remark, groups, num_groups - len(groups)))
    return told


def _pictures(
    group: Mapping[str, Any], picture: Callable[[int, int], np.ndarray]
) -> list[tuple[str, str]]:
    images = group.get("images", [0] * len(group["samples"]))
    named = zip(group["samples"], images, group["keys"], strict=True)
    return [(_uri(Image.fromarray(picture(sample, image))), key) for sample, image, key in named]


def _shown(seen: Seen) -> dict[str, Any]:
    size = seen.size
    told = f"{size[0]} x {size[1]}, " if size else ""
    facts = [("where", seen.place), *((k, _brief(v)) for k, v in seen.fields.items())]
    uris = [_uri(Image.fromarray(one.pixels_HWC)) for one in seen.pictures]
    return {
        "uri": uris[0] if uris else "",
        "more": uris[1:_MAX_PICTURES],
        "turns": list(zip(seen.roles, seen.captions, strict=True))[:_MAX_TURNS]
        if seen.roles
        else [],
        "more_turns": max(0, len(seen.roles) - _MAX_TURNS),
        "key": seen.key,
        "captions": seen.captions,
        "reason": seen.reason,
        "remark": f"{told}{seen.kind} {size_told(len(seen.image))}" if seen.image else "more",
        "facts": facts,
    }


def _brief(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 300 else f"{text[:300]} ..."


def _uri(image: Image.Image) -> str:
    return f"data:image/webp;base64,{base64.b64encode(thumbnail(image)).decode()}"
