"""The autograd graph: whole, in its modules, drawn by Graphviz, and refused in one line."""

import shutil
import sys
from xml.etree import ElementTree

import pytest
import torch

from mmtrain.errors import UsageError
from mmtrain.models import Clip
from mmtrain.report.autograd_graph import draw_autograd_graph, trace_operations
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


def test_it_is_drawn() -> None:
    pytest.importorskip("graphviz")
    if shutil.which("dot") is None:
        pytest.skip("Graphviz is not installed")
    svg = draw_autograd_graph(config(), title="a & <b>")
    root = ElementTree.fromstring(svg)
    texts = ["".join(one.itertext()) for one in root.iter("{http://www.w3.org/2000/svg}text")]
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
