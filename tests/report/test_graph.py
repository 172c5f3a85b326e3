"""The picture of the towers: norms and residual lines where a block has them."""

from dataclasses import replace
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from mmtrain.models import ClipConfig
from mmtrain.report.graph import Box, _core, _places, _text, _vision, draw_graph
from tests.report.test_measure import config

ORDERS = {
    "pre": ["norm", "core", "sum 2"] * 2,
    "branch": ["core", "norm", "sum 2"] * 2,
    "sandwich": ["norm", "core", "norm", "sum 3"] * 2,
    "post": ["core", "sum 1", "norm"] * 2,
}


def with_order(order: str) -> ClipConfig:
    whole = config()
    blocks = replace(whole.text.transformer, norm_order=order)  # pyright: ignore[reportArgumentType]
    return replace(whole, text=replace(whole.text, transformer=blocks))


@pytest.mark.parametrize("order", ORDERS)
def test_a_block_has_its_norms_and_residuals(order: str) -> None:
    """By `norm_order`; nothing lies on anything else, and every sum has a line past its branch."""
    whole = with_order(order)
    boxes = _core(whole.text.transformer)
    assert [f"{b.kind} {b.over}".removesuffix(" 0") for b in boxes] == ORDERS[order]
    column = _text(whole)
    spans = [(y, y + b.height) for y, b in zip(_places(column), column, strict=True)]
    assert all(before[1] + 12 <= after[0] for before, after in pairwise(spans))
    root = ElementTree.fromstring(draw_graph(whole, title="a & <b>"))
    kinds = [one.get("class") for one in root.iter()]
    assert kinds.count("residual") == 4 and kinds.count("residual from") == 4  # of both towers
    assert kinds.count("frame") == 2
    height = float(root.get("height", "0"))
    assert all(float(one.get("y", 0)) < height for one in root.iter())


def test_norms_of_the_towers_stand_where_they_act() -> None:
    """Before or after pooling, and behind the embedding where there is one."""
    vision = config().vision
    for embed_norm, pool_norm in ((True, "after"), (False, "before")):
        changed = replace(vision, embed_norm=embed_norm, pool_norm=pool_norm)  # pyright: ignore[reportArgumentType]
        column = [b for b in _vision(replace(config(), vision=changed)) if not b.block]
        titles = [box.title for box in column]
        assert titles.count("layer norm") == 1 + embed_norm
        near = 1 if pool_norm == "after" else -1
        assert titles[titles.index("pool") + near] == "layer norm"
    assert Box(title="x", kind="norm").height < Box(title="x").height
