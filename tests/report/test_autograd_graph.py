"""The autograd graph: whole, in its modules, drawn by Graphviz, and refused in one line."""

import shutil
import sys
from dataclasses import replace
from itertools import groupby, pairwise
from xml.etree import ElementTree

import pytest
import torch

from mmtrain.errors import UsageError
from mmtrain.models import Clip
from mmtrain.report.autograd_graph import draw_autograd_graph, trace_operations
from mmtrain.report.operations import Operation, fold_repeats
from tests.report.test_measure import config


def test_the_graph_is_the_one_that_a_real_backward_goes_through() -> None:
    operations = trace_operations(config())
    model = Clip(config()).init_weights(0)
    image = model.encode_image(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    text = model.encode_text(torch.full((1, 12), 63))
    last = (image @ text.T * model.logit_scale.exp()).grad_fn
    waiting, seen = [last], {last}
    while waiting:
        for node, _ in waiting.pop().next_functions:
            if node is not None and node not in seen:
                seen.add(node)
                waiting.append(node)
    kinds = [node.name() for node in seen if hasattr(node, "variable")]
    assert len(kinds) == len(list(model.parameters()))
    for kind in ("NativeLayerNorm", "Gelu", "Embedding"):
        real = sum(node.name().startswith(f"{kind}Backward") for node in seen)
        assert sum(one.name == kind for one in operations.values()) == real > 0, kind
    # Every input comes before what reads it, and all but the last are read.
    assert all(source < number for number, one in operations.items() for source in one.inputs)
    read = {source for one in operations.values() for source in one.inputs}
    assert set(operations) - read == {max(operations)}


def test_operations_are_in_their_modules_with_their_weights() -> None:
    operations = trace_operations(config()).values()
    norms = [one for one in operations if one.module == "vision.transformer.blocks.1.norm1"]
    assert [(one.name, one.weights) for one in norms] == [
        ("NativeLayerNorm", ["weight 48", "bias 48"])
    ]
    (scale,) = [one for one in operations if one.weights == ["logit_scale"]]
    assert (scale.name, scale.module) == ("Exp", "")
    modules = {one.module for one in operations}
    assert {"text.embed.token", "vision.head.projection", ""} <= modules


def test_blocks_that_are_alike_are_one() -> None:
    """However many there are: the same picture with another number, and nothing is left loose."""
    left: list[list[tuple[str, str]]] = []
    for num_layers in (2, 5):
        small = config()
        blocks = replace(small.vision.transformer, num_layers=num_layers)
        whole = trace_operations(replace(small, vision=replace(small.vision, transformer=blocks)))
        operations, told = fold_repeats(whole)
        alike = f"0 to {num_layers - 1}, {num_layers} alike"
        assert told["vision.transformer.blocks.0"] == alike
        assert not any("vision.transformer.blocks.1" in one.module for one in operations.values())
        read = {source for one in operations.values() for source in one.inputs}
        assert set(operations) - read == {max(whole)} and read < set(operations)
        left.append([(one.name, one.module) for one in operations.values()])
    assert left[0] == left[1]


@pytest.mark.parametrize(
    ("kinds", "told"),
    [
        ("aab", {"x.0": "0 to 1, 2 alike"}),
        ("abab", {}),
        ("abb", {"x.1": "1 to 2, 2 alike"}),
        ("a" * 12, {"x.0": "0 to 11, 12 alike"}),
        ("aabb", {"x.0": "0 to 1, 2 alike", "x.2": "2 to 3, 2 alike"}),
    ],
)
def test_others_stay_apart(kinds: str, told: dict[str, str]) -> None:
    """A block of another kind is drawn, between those that it is between."""
    chain = {-1: Operation(name="start", module="")} | {
        number: Operation(name=kind, module=f"x.{number}", inputs=[number - 1])
        for number, kind in enumerate(kinds)
    }
    end = Operation(name="end", module="", inputs=[len(kinds) - 1])
    operations, found = fold_repeats(chain | {99: end})
    assert found == told
    seen = [one.name for one in operations.values()]
    assert seen == ["start", *(kind for kind, _ in groupby(kinds)), "end"]
    for before, one in pairwise(operations):
        assert operations[one].inputs == [before]


def test_it_is_drawn() -> None:
    pytest.importorskip("graphviz")
    if shutil.which("dot") is None:
        pytest.skip("Graphviz is not installed")
    svg = draw_autograd_graph(config(), title="a & <b>")
    root = ElementTree.fromstring(svg)
    texts = ["".join(one.itertext()) for one in root.iter("{http://www.w3.org/2000/svg}text")]
    assert any(text.endswith(" alike") for text in texts)
    assert "a & <b>" in texts and "NativeLayerNorm" in texts and "feed_forward" in texts
    assert "prefers-color-scheme: dark" in svg and "http://www.w3.org/1999/xhtml" not in svg


def test_what_is_missing_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("graphviz")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UsageError, match=r"Graphviz's program dot, which is not on the path"):
        draw_autograd_graph(config(), title="x")
    monkeypatch.setitem(sys.modules, "graphviz", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'mmtrain\[graph\]'"):
        draw_autograd_graph(config(), title="x")
