"""The autograd graph of a model as a picture: every operation that a backward goes through, in the
module that it comes from, of blocks that are alike the first. Graphviz lays it out.

The forward runs on fake tensors, so that a large model's graph takes no memory for its weights.
"""

import importlib.util
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch._subclasses import FakeTensorMode

from mmtrain.errors import UsageError
from mmtrain.models import Clip, ClipConfig
from mmtrain.nn import unit_norm
from mmtrain.report.operations import Operation, Operations, fold_repeats

_CSS = """
  text { font: 11px system-ui, sans-serif; fill: #22221f }
  .op path { fill: #fff; stroke: #b9b7ae } .weighty path { fill: #e8f0fb; stroke: #4d7fc4 }
  .cluster path { fill: none; stroke: #c9c7be } .cluster text { fill: #66645c }
  .alike > path { stroke: #4d7fc4; stroke-width: 2; stroke-dasharray: 6 4 }
  .alike > text { fill: #2f62a8; font-weight: 600 }
  .graph > text { font-size: 15px; font-weight: 600 }
  .edge path { fill: none; stroke: #77756c } .edge polygon { fill: #77756c; stroke: #77756c }
  @media (prefers-color-scheme: dark) {
    svg { background: #1b1b1d } text { fill: #ececea } .cluster text { fill: #a5a39b }
    .op path { fill: #27272a; stroke: #5d5b66 } .weighty path { fill: #1f2c40; stroke: #4d7fc4 }
    .cluster path { stroke: #45434c } .alike > path { stroke: #6f9fe0 }
    .alike > text { fill: #8fb4ea } .edge path { stroke: #a5a39b }
    .edge polygon { fill: #a5a39b; stroke: #a5a39b }
  }
"""


def draw_autograd_graph(config: ClipConfig, *, title: str) -> str:
    """Both towers up to the scaled cosine of an image and a text: an SVG file's content.

    Raises:
        UsageError: the package graphviz or the program dot is missing.
    """
    if importlib.util.find_spec("graphviz") is None:
        raise UsageError("autograd needs the package graphviz; pip install 'mmtrain[graph]'")
    # Only what the extra brings, after the check above.
    import graphviz

    operations, alike = fold_repeats(trace_operations(config))
    graph = graphviz.Digraph(
        graph_attr={"label": title, "labelloc": "t", "bgcolor": "transparent", "ranksep": "0.25"},
        node_attr={"shape": "box", "style": "rounded", "height": "0.3", "class": "op"},
        edge_attr={"arrowsize": "0.6"},
    )
    _add_modules(graph, operations, "", alike)
    for number, one in operations.items():
        for source in one.inputs:
            graph.edge(str(source), str(number))
    try:
        svg = graph.pipe(format="svg", encoding="utf-8")
    except graphviz.ExecutableNotFound as error:
        raise UsageError(
            "autograd needs Graphviz's program dot, which is not on the path; install Graphviz "
            "(apt-get install graphviz, brew install graphviz)"
        ) from error
    svg = svg[svg.index("<svg") :].replace("</title>", f"</title><style>{_CSS}</style>", 1)
    # Its own colours, which the style's dark half could not change.
    return re.sub(r' (?:fill|stroke|font-family|font-size)="[^"]*"', "", svg)


def trace_operations(config: ClipConfig) -> Operations:
    """The operations of one image and one text by numbers that rise from input to output."""
    size, length = config.vision.image_size, config.text.max_ids
    with FakeTensorMode():
        model = Clip(config)
        model.text.num_groups = 1  # groups of equal length look at the numbers
        spans = _watch(model)
        image_BE = model.vision(torch.zeros(1, 3, size, size, dtype=torch.uint8))
        tokens, length_B = torch.ones(1, length, dtype=torch.int64), torch.tensor([length])
        text_BE = model.text(tokens, length_B=length_B)
        logits_BB = unit_norm(image_BE) @ unit_norm(text_BE).T
        logits_BB = logits_BB * model.logit_scale.exp()
        if model.logit_bias is not None:
            logits_BB = logits_BB + model.logit_bias
        return _operations(logits_BB.grad_fn, model, spans)


def _watch(model: nn.Module) -> list[tuple[int, int, str]]:
    """Hooks that tell in which span of autograd's own numbers each module ran, filled later."""
    spans: list[tuple[int, int, str]] = []
    starts: list[int] = []
    for name, module in model.named_modules():
        module.register_forward_pre_hook(lambda *_: starts.append(_next_number()))

        def leave(*_: Any, name: str = name) -> None:
            spans.append((starts.pop(), _next_number(), name))

        module.register_forward_hook(leave)
    return spans


def _next_number() -> int:
    node = torch.ones(1, requires_grad=True).exp().grad_fn
    assert node is not None
    return node._sequence_nr()


def _operations(last: Any, model: nn.Module, spans: list[tuple[int, int, str]]) -> Operations:
    weights = {
        parameter: f"{name.rpartition('.')[2]} {' × '.join(map(str, parameter.shape))}".strip()
        for name, parameter in model.named_parameters()
    }
    nodes = list(_reachable(last))
    real = [node for node in nodes if not hasattr(node, "variable")]
    number = {node: place for place, node in enumerate(sorted(real, key=_sequence_number))}
    operations: Operations = {}
    for node, place in sorted(number.items(), key=lambda item: item[1]):
        one = Operation(
            name=re.sub(r"Backward\d*$", "", node.name()),
            module=_innermost(_sequence_number(node), spans),
        )
        for source, _ in node.next_functions:
            if source in number:
                one.inputs.append(number[source])
            elif source is not None and source.variable in weights:
                one.weights.append(weights[source.variable])
        operations[place] = one
    return operations


def _reachable(last: Any) -> Iterator[Any]:
    seen, waiting = {last}, [last]
    while waiting:
        node = waiting.pop()
        yield node
        for source, _ in node.next_functions:
            if source is not None and source not in seen:
                seen.add(source)
                waiting.append(source)


def _sequence_number(node: Any) -> int:
    return node._sequence_nr()


def _innermost(number: int, spans: list[tuple[int, int, str]]) -> str:
    around = [span for span in spans if span[0] < number < span[1]]
    return min(around, key=lambda span: span[1] - span[0])[2] if around else ""


def _add_modules(graph: Any, operations: Operations, module: str, alike: dict[str, str]) -> None:
    """The operations of a module, and a frame for each module inside of it."""
    depth = len(module.split(".")) if module else 0
    inner: dict[str, None] = {}
    for number, one in operations.items():
        if one.module == module:
            kind = "op weighty" if one.weights else "op"
            graph.node(str(number), "\n".join([one.name, *one.weights]), **{"class": kind})
        elif not module or one.module.startswith(f"{module}."):
            inner[".".join(one.module.split(".")[: depth + 1])] = None
    for name in inner:
        with graph.subgraph(name=f"cluster_{name}") as frame:
            label = alike.get(name, name.rpartition(".")[2])
            kind = "cluster alike" if name in alike else "cluster"
            frame.attr(label=label, style="rounded", labeljust="l", **{"class": kind})
            _add_modules(frame, operations, name, alike)
