"""A CLIP as two ONNX graphs, image.onnx and text.onnx, held against torch before they are kept."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmtrain.data.text.tokenizer import Tokenizer
from mmtrain.files import replacing_folder
from mmtrain.interop.graph_folder import WrittenGraph, describe
from mmtrain.interop.graphs import Port
from mmtrain.interop.onnx_program import (
    FORM,
    OPSET,
    check_packages,
    open_session,
    write_program,
)
from mmtrain.interop.package import ModelPackage
from mmtrain.interop.tower_graphs import (
    TowerGraph,
    agreement,
    check_agreement,
    tower_graphs,
    traced,
)


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
    check_packages()
    with replacing_folder(folder) as place:
        towers = [_write(graph, place, weights, say) for graph in tower_graphs(package)]
        facts = {"opset": OPSET, "weights": weights}
        describe(package, place, form=FORM, towers=towers, facts=facts)
    return package.tokenizer


def _write(
    graph: TowerGraph, folder: Path, weights: str, say: Callable[[str], None]
) -> WrittenGraph:
    path = folder / f"{graph.name}.onnx"
    write_program(
        traced(graph, form=FORM),
        path,
        of=graph,
        inputs=(Port(graph.input_name, ("batch", *graph.example.shape[1:])),),
        outputs=(Port(graph.output_name, ("batch",)),),
        weights=weights,
    )
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
    made: list[Any] = []

    def run(inputs: Tensor) -> Tensor:
        if not made:
            made.append(open_session(path))
        (features,) = made[0].run([graph.output_name], {graph.input_name: inputs.numpy()})
        return torch.from_numpy(features)

    return run
