"""A picture of a model's towers as SVG, drawn from its configuration."""

from dataclasses import dataclass
from html import escape

from mmtrain.models import ClipConfig
from mmtrain.nn import TransformerConfig
from mmtrain.report.summary import format_count, summarize

COLUMN, GAP, BOX, STEP = 300, 60, 40, 58
TOP, SIDE = 70, 30
CSS = """
  .page { fill: #fbfbf9 } .box { fill: #fff; stroke: #b9b7ae; stroke-width: 1.2 }
  .core { fill: #e8f0fb; stroke: #4d7fc4 } .ends { fill: #eef6ec; stroke: #5f9a58 }
  .frame { fill: none; stroke: #4d7fc4; stroke-dasharray: 5 4 }
  text { font: 13px system-ui, sans-serif; fill: #22221f }
  .small { font-size: 11px; fill: #66645c } .title { font-size: 17px; font-weight: 600 }
  path { fill: none; stroke: #77756c; stroke-width: 1.4 }
  .tip { fill: #77756c; stroke: none }
  @media (prefers-color-scheme: dark) {
    .page { fill: #1b1b1d } .box { fill: #27272a; stroke: #5d5b66 } .core { fill: #1f2c40 }
    .ends { fill: #20301f } text { fill: #ececea } .small { fill: #a5a39b }
    path { stroke: #a5a39b } .tip { fill: #a5a39b }
  }
"""


@dataclass(frozen=True, kw_only=True)
class Box:
    """One step of a tower."""

    title: str
    detail: str
    kind: str = ""
    """A CSS class beside `box`."""


def draw_graph(config: ClipConfig, *, title: str) -> str:
    """Both towers side by side, from pixels and text to the one logit: an SVG file's content."""
    summary = summarize(config)
    columns = [_vision(config), _text(config)]
    rows = max(len(column) for column in columns)
    meet_y = TOP + rows * STEP + 30
    height = meet_y + BOX + 24
    width = 2 * SIDE + 2 * COLUMN + GAP
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" role="img" aria-label="{escape(title)}"><style>{CSS}</style>',
        f'<rect class="page" width="{width}" height="{height}"/>',
        f'<text class="title" x="{SIDE}" y="34">{escape(title)}</text>',
        f'<text class="small" x="{SIDE}" y="53">{format_count(summary.num_parameters)} parameters'
        f" · {format_count(summary.image_flops)}FLOPs an image"
        f" · {format_count(summary.text_flops)}FLOPs a text</text>",
    ]
    for number, column in enumerate(columns):
        parts += _column(column, SIDE + number * (COLUMN + GAP), meet_y)
    parts += _box(
        Box(
            title=_meeting(config),
            detail=f"unit-norm features [B, {config.embed_dim}]",
            kind="ends",
        ),
        SIDE + COLUMN / 2 - 40,
        meet_y,
        width=COLUMN + GAP + 80,
    )
    return "".join(parts) + "</svg>\n"


def _vision(config: ClipConfig) -> list[Box]:
    vision = config.vision
    size, grid = vision.image_size, vision.grid_size
    if vision.trunk is not None:
        return [
            Box(title="image", detail=f"uint8 [B, 3, {size}, {size}]", kind="ends"),
            Box(title="normalise + trunk", detail=vision.trunk.title, kind="core"),
            _projection(vision.projection, vision.transformer.dim, config.embed_dim),
        ]
    prefix = [
        *(["class token"] if vision.class_token else []),
        *([f"{vision.num_registers} registers"] if vision.num_registers else []),
    ]
    joined = f" + {' + '.join(prefix)}" if prefix else ""
    pool = {"first": "class token", "mean": "mean of patches", "attention": "attention pooling"}
    return [
        Box(title="image", detail=f"uint8 [B, 3, {size}, {size}]", kind="ends"),
        Box(
            title="normalise + patch embedding",
            detail=f"{grid} x {grid} patches of {vision.patch_size} pixels{joined}",
        ),
        Box(title="positions", detail=vision.positions.replace("_", " ")),
        *_core(vision.transformer),
        Box(title="pool", detail=f"{pool[vision.pool]}, norm {vision.pool_norm}"),
        _projection(vision.projection, vision.transformer.dim, config.embed_dim),
    ]


def _text(config: ClipConfig) -> list[Box]:
    text = config.text
    return [
        Box(title="text", detail=f"ids [B, up to {text.context_length}]", kind="ends"),
        Box(
            title="token embedding",
            detail=f"{text.vocab_size:,} x {text.transformer.dim}",
        ),
        Box(title="positions", detail=text.positions),
        *_core(text.transformer),
        Box(title="pool", detail=f"{text.pool} token" if text.pool != "mean" else "mean"),
        _projection(text.projection, text.transformer.dim, config.embed_dim),
    ]


def _core(core: TransformerConfig) -> list[Box]:
    """One block's two branches, which the frame around them repeats."""
    kv = "" if core.kv_heads == core.num_heads else f", {core.kv_heads} key heads"
    extra = f", qk-norm {core.qk_norm}" if core.qk_norm else ""
    return [
        Box(
            title=f"{core.mask} attention",
            detail=f"{core.num_heads} heads of {core.head_size}{kv}{extra}",
            kind=f"core first:{core.num_layers}, width {core.dim}, {core.norm_order}-norm",
        ),
        Box(title="feed-forward", detail=f"{core.activation} {core.hidden_dim}", kind="core last"),
    ]


def _projection(projects: bool, dim: int, embed_dim: int) -> Box:
    if projects:
        return Box(title="projection", detail=f"{dim} -> {embed_dim}")
    return Box(title="no projection", detail=f"width {dim} is the shared embedding's")


def _meeting(config: ClipConfig) -> str:
    return "scale * <image, text>" + (" + bias" if config.init_logit_bias is not None else "")


def _column(boxes: list[Box], x: float, meet_y: float) -> list[str]:
    parts: list[str] = []
    middle = x + COLUMN / 2
    y = float(TOP)
    for box in boxes:
        kind, _, label = box.kind.partition(":")
        if label:
            parts.append(
                f'<rect class="frame" x="{x - 8}" y="{y - 8}" width="{COLUMN + 16}" '
                f'height="{STEP + BOX + 16}" rx="8"/>'
                f'<text class="small" x="{middle + 10}" y="{y + STEP + BOX + 22}">'
                f"x {escape(label)}</text>"
            )
        parts += _box(box, x, y, width=COLUMN)
        end = y + STEP + (22 if kind.endswith("last") else 0)
        last = box is boxes[-1]
        parts.append(_arrow(middle, y + BOX, meet_y if last else end))
        y = end
    return parts


def _box(box: Box, x: float, y: float, *, width: float) -> list[str]:
    kind = box.kind.partition(" ")[0]
    middle = x + width / 2
    return [
        f'<rect class="box {kind}" x="{x:g}" y="{y:g}" width="{width:g}" height="{BOX}" rx="6"/>',
        f'<text x="{middle:g}" y="{y + 17:g}" text-anchor="middle">{escape(box.title)}</text>',
        f'<text class="small" x="{middle:g}" y="{y + 32:g}" text-anchor="middle">'
        f"{escape(box.detail)}</text>",
    ]


def _arrow(x: float, start: float, end: float) -> str:
    return (
        f'<path d="M{x:g} {start:g}V{end - 6:g}"/>'
        f'<path class="tip" d="M{x - 4:g} {end - 7:g}h8L{x:g} {end - 1:g}z"/>'
    )
