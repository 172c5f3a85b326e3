"""A CLIP as two ONNX graphs, image.onnx and text.onnx, held against torch before they are kept."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmtrain.data.text.tokenizer import Tokenizer
from mmtrain.errors import UsageError
from mmtrain.interop.graph_folder import WrittenGraph, describe, written_whole
from mmtrain.interop.package import ModelPackage
from mmtrain.interop.tower_graphs import (
    TowerGraph,
    agreement,
    check_agreement,
    quiet,
    refusing,
    tower_graphs,
    traced,
)

FORM = "onnx"
OPSET = 18
"""The newest that every tool of the last years reads."""
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_MOST_INSIDE = 3 << 29
"""Bytes of weights that go into the graph's own file; protobuf ends at 2 GiB."""


def write_onnx(
    package: ModelPackage, folder: Path, *, weights: str, say: Callable[[str], None]
) -> Tokenizer:
    """Write both towers, the tokenizer's files and model.json, which says how to use them.

    Args:
        package: the model.
        folder: a new one; it is not made where something fails.
        weights: fp32, or fp16 or int8 for smaller files.
        say: how near to torch the features of what was written are.

    Returns:
        The tokenizer, which model.json describes whole.

    Raises:
        UsageError: the extra is not installed, the exporter cannot take a tower, or features of
            fp32 weights are not torch's.
    """
    for name in _PACKAGES:
        if find_spec(name) is None:
            raise UsageError(
                f'format = {FORM} needs the package {name}; pip install "mmtrain[onnx]"'
            )
    with written_whole(folder) as place:
        towers = [_write(graph, place, weights, say) for graph in tower_graphs(package)]
        facts = {"opset": OPSET, "weights": weights}
        describe(package, place, form=FORM, towers=towers, facts=facts)
    return package.tokenizer


def _write(
    graph: TowerGraph, folder: Path, weights: str, say: Callable[[str], None]
) -> WrittenGraph:
    from mmtrain.interop.onnx_weights import shrink

    path = folder / f"{graph.name}.onnx"
    tensors = graph.network.state_dict().values()
    is_large = sum(x.numel() * x.element_size() for x in tensors) > _MOST_INSIDE
    program = traced(graph, form=FORM)
    with refusing(graph, form=FORM), quiet():
        made: Any = torch.onnx.export(
            program,
            opset_version=OPSET,
            input_names=[graph.input_name],
            output_names=[graph.output_name],
            dynamo=True,
            verbose=False,
        )
        for value in (*made.model.graph.inputs, *made.model.graph.outputs):
            value.shape[0] = "batch"
        for node in made.model.graph.all_nodes():
            node.metadata_props.clear()  # which module and line of Python it came from
        made.save(path, external_data=is_large)
        shrink(path, weights=weights, is_large=is_large)
    found = agreement(graph, _session(path, graph), form=FORM)
    if weights == "fp32":
        check_agreement(graph, found, form=FORM)
    say(
        f"{path.name}: opset {OPSET}, {weights}; features beside torch's: at most "
        f"{found.difference:.1g} away, cosine at least {found.cosine:.6f}"
    )
    return WrittenGraph(graph=graph, file=path.name, found=found)


def _session(path: Path, graph: TowerGraph) -> Callable[[Tensor], Tensor]:
    """Runs a file, which is read when it is first used."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = torch.get_num_threads()
    made: list[Any] = []

    def run(inputs: Tensor) -> Tensor:
        if not made:
            cpu = ["CPUExecutionProvider"]
            made.append(onnxruntime.InferenceSession(path, options, providers=cpu))
        (features,) = made[0].run([graph.output_name], {graph.input_name: inputs.numpy()})
        return torch.from_numpy(features)

    return run
