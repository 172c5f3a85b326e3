"""A picture of a model's towers as SVG, drawn from its configuration."""

from dataclasses import dataclass
from html import escape

from mmtrain.models import ClipConfig
from mmtrain.nn import TransformerConfig
from mmtrain.report.summary import format_count, summarize
from mmtrain.settings.counted import counted

COLUMN, GAP, BOX = 300, 60, 40
TOP, SIDE = 70, 30
STEP, ENTER, LEAVE = 20, 34, 42
"""Pixels between boxes, above a block and below it, where its frame and its label are."""
INSET, LANE = 36, 16
"""From a column's edge to a block's boxes, and to the residual line beside them."""
HEIGHTS = {"norm": 24, "sum": 16}
CSS = """
  .page { fill: #fbfbf9 } .box { fill: #fff; stroke: #b9b7ae; stroke-width: 1.2 }
  .core { fill: #e8f0fb; stroke: #4d7fc4 } .ends { fill: #eef6ec; stroke: #5f9a58 }
  .frame { fill: none; stroke: #4d7fc4; stroke-dasharray: 5 4 }
  text { font: 13px system-ui, sans-serif; fill: #22221f }
  .small { font-size: 11px; fill: #66645c } .title { font-size: 17px; font-weight: 600 }
  path, circle { fill: none; stroke: #77756c; stroke-width: 1.4 }
  .tip { fill: #77756c; stroke: none } .residual { stroke: #4d7fc4 } .from { fill: #4d7fc4 }
  .norm { fill: #f6f1e4; stroke: #b39b5c }
  @media (prefers-color-scheme: dark) {
    .page { fill: #1b1b1d } .box { fill: #27272a; stroke: #5d5b66 } .core { fill: #1f2c40 }
    .ends { fill: #20301f } text { fill: #ececea } .small { fill: #a5a39b }
    path, circle { stroke: #a5a39b } .tip { fill: #a5a39b }
    .residual { stroke: #6f9fe0 } .from { fill: #6f9fe0 }
    .norm { fill: #37321f; stroke: #8d7b48 }
  }
"""


@dataclass(frozen=True, kw_only=True)
class Box:
    """One step of a tower."""

    title: str
    detail: str = ""
    kind: str = ""
    """A CSS class beside `box`: ends, core or norm; sum is a circle."""
    over: int = 0
    """Of a sum: how many steps the residual line goes past."""
    block: str = ""
    """What the frame around it says; empty: it is in none."""

    @property
    def height(self) -> int:
        """In pixels."""
        return HEIGHTS.get(self.kind, BOX)


def draw_graph(config: ClipConfig, *, title: str) -> str:
    """Both towers side by side, from pixels and text to the one logit: an SVG file's content."""
    summary = summarize(config)
    columns = [_vision(config), _text(config)]
    meet_y = max(_places(column)[-1] for column in columns) + BOX + 34
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
        *([counted(vision.num_registers, "register")] if vision.num_registers else []),
    ]
    joined = f" + {' + '.join(prefix)}" if prefix else ""
    pool = {"first": "class token", "mean": "mean of patches", "attention": "attention pooling"}
    return [
        Box(title="image", detail=f"uint8 [B, 3, {size}, {size}]", kind="ends"),
        Box(
            title="normalise + " + ("convolutions" if vision.stem_channels else "patch embedding"),
            detail=f"{grid} x {grid} patches of {vision.patch_size} pixels{joined}",
        ),
        Box(title="positions", detail=vision.positions.replace("_", " ")),
        *([_norm(vision.transformer)] if vision.embed_norm else []),
        *_core(vision.transformer),
        *([_norm(vision.transformer)] if vision.pool_norm == "before" else []),
        Box(title="pool", detail=pool[vision.pool]),
        *([_norm(vision.transformer)] if vision.pool_norm == "after" else []),
        _projection(vision.projection, vision.transformer.dim, config.embed_dim),
    ]


def _text(config: ClipConfig) -> list[Box]:
    text = config.text
    ids = Box(title="text", detail=f"ids [B, up to {text.max_ids}]", kind="ends")
    projection = _projection(text.projection, text.transformer.dim, config.embed_dim)
    if text.trunk is not None:
        return [ids, Box(title="trunk", detail=text.trunk.name, kind="core"), projection]
    pool = Box(title="pool", detail=f"{text.pool} token" if text.pool != "mean" else "mean")
    norm = _norm(text.transformer)
    return [
        ids,
        Box(
            title="token embedding",
            detail=f"{text.vocab_size:,} x {text.transformer.dim}",
        ),
        Box(title="positions", detail=text.positions),
        *_core(text.transformer),
        *((norm, pool) if text.pool == "mean" else (pool, norm)),
        projection,
    ]


def _norm(core: TransformerConfig, block: str = "") -> Box:
    return Box(title=f"{core.norm} norm", kind="norm", block=block)


def _core(core: TransformerConfig) -> list[Box]:
    """One block, which the frame around it repeats: its branches, norms and residual sums."""
    block = f"\N{MULTIPLICATION SIGN} {core.num_layers}, width {core.dim}"
    kv = "" if core.kv_heads == core.num_heads else f", {core.kv_heads} key heads"
    extra = f", qk-norm {core.qk_norm}" if core.qk_norm else ""
    scale = "" if core.layer_scale is None else f", scaled from {core.layer_scale:g}"
    branches = (
        Box(
            title=f"{core.mask} attention",
            detail=f"{core.num_heads} heads of {core.head_size}{kv}{extra}{scale}",
            kind="core",
            block=block,
        ),
        Box(
            title="feed-forward",
            detail=f"{core.activation} {core.hidden_dim}{scale}",
            kind="core",
            block=block,
        ),
    )
    return [step for branch in branches for step in _branch(core, branch)]


def _branch(core: TransformerConfig, inner: Box) -> list[Box]:
    """What `norm_order` makes of a branch."""
    norm, order = _norm(core, inner.block), core.norm_order
    steps = [
        *([norm] if order in ("pre", "sandwich") else []),
        inner,
        *([norm] if order in ("branch", "sandwich") else []),
    ]
    steps.append(Box(title="+", kind="sum", over=len(steps), block=inner.block))
    return [*steps, norm] if order == "post" else steps


def _projection(projects: bool, dim: int, embed_dim: int) -> Box:
    if projects:
        return Box(title="projection", detail=f"{dim} -> {embed_dim}")
    return Box(title="no projection", detail=f"width {dim} is the shared embedding's")


def _meeting(config: ClipConfig) -> str:
    return "scale * <image, text>" + (" + bias" if config.init_logit_bias is not None else "")


def _places(boxes: list[Box]) -> list[int]:
    """Where each box begins, from the picture's top."""
    places, y = list[int](), TOP
    for number, box in enumerate(boxes):
        before = boxes[number - 1].block if number else ""
        if number:
            gap = STEP if before == box.block else ENTER if box.block else LEAVE
            y += boxes[number - 1].height + gap
        places.append(y)
    return places


def _column(boxes: list[Box], x: float, meet_y: float) -> list[str]:
    parts: list[str] = []
    places, middle = _places(boxes), x + COLUMN / 2
    parts += _frame(boxes, places, x)
    for number, (box, y) in enumerate(zip(boxes, places, strict=True)):
        inset = INSET if box.block else 0
        if box.kind == "sum":
            parts += _sum(middle, y + box.height / 2, box.height / 2)
            above = places[number - box.over]
            parts += _residual(x + LANE, middle, above - STEP / 2, y + box.height / 2)
        else:
            parts += _box(box, x + inset, y, width=COLUMN - 2 * inset)
        end = meet_y if box is boxes[-1] else places[number + 1]
        parts.append(_arrow(middle, y + box.height, end))
    return parts


def _frame(boxes: list[Box], places: list[int], x: float) -> list[str]:
    inside = [number for number, box in enumerate(boxes) if box.block]
    if not inside:
        return []
    top = places[inside[0]] - ENTER / 2 - 8
    bottom = places[inside[-1]] + boxes[inside[-1]].height + 10
    return [
        f'<rect class="frame" x="{x:g}" y="{top:g}" width="{COLUMN}" height="{bottom - top:g}" '
        f'rx="8"/><text class="small" x="{x + COLUMN - 4:g}" y="{bottom + 16:g}" '
        f'text-anchor="end">'
        f"{escape(boxes[inside[0]].block)}</text>"
    ]


def _sum(x: float, y: float, radius: float) -> list[str]:
    cross = f"M{x - 4:g} {y:g}h8M{x:g} {y - 4:g}v8"
    return [f'<circle cx="{x:g}" cy="{y:g}" r="{radius:g}"/><path d="{cross}"/>']


def _residual(lane: float, x: float, start: float, end: float) -> list[str]:
    """The line that goes past a branch, from above it to its sum."""
    into = x - HEIGHTS["sum"] / 2
    return [
        f'<circle class="residual from" cx="{x:g}" cy="{start:g}" r="2"/>'
        f'<path class="residual" d="M{x:g} {start:g}H{lane + 8:g}q-8 0 -8 8V{end - 8:g}q0 8 8 8'
        f'H{into - 5:g}"/>'
        f'<path class="tip from" d="M{into - 7:g} {end - 4:g}v8L{into - 1:g} {end:g}z"/>'
    ]


def _box(box: Box, x: float, y: float, *, width: float) -> list[str]:
    middle, first = x + width / 2, 17 if box.detail else box.height / 2 + 4.5
    return [
        f'<rect class="box {box.kind}" x="{x:g}" y="{y:g}" width="{width:g}" '
        f'height="{box.height}" rx="6"/>',
        f'<text class="{"" if box.detail else "small"}" x="{middle:g}" y="{y + first:g}" '
        f'text-anchor="middle">{escape(box.title)}</text>',
        f'<text class="small" x="{middle:g}" y="{y + 32:g}" text-anchor="middle">'
        f"{escape(box.detail)}</text>"
        if box.detail
        else "",
    ]


def _arrow(x: float, start: float, end: float) -> str:
    return (
        f'<path d="M{x:g} {start:g}V{end - 6:g}"/>'
        f'<path class="tip" d="M{x - 4:g} {end - 7:g}h8L{x:g} {end - 1:g}z"/>'
    )
