"""A CLIP as two programs of torch.export, image.pt2 and text.pt2, held against torch."""

from collections.abc import Callable
from pathlib import Path

import torch

from mmtrain.data.text.tokenizer import Tokenizer
from mmtrain.files import replacing_folder
from mmtrain.interop.graph_folder import WrittenGraph, describe
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

FORM = "torch-export"


def write_torch_export(
    package: ModelPackage, folder: Path, *, weights: str, say: Callable[[str], None]
) -> Tokenizer:
    """Write both towers, the tokenizer's files and model.json;
    `torch.export.load("FOLDER/image.pt2").module()` runs one where mmtrain is not installed.

    Args:
        package: the model.
        folder: a new one; it is not made where something fails.
        weights: fp32, the only kind.
        say: how near to torch the features of what was written are.

    Returns:
        The tokenizer, which model.json describes whole.

    Raises:
        UsageError: torch.export cannot take a tower, or its features are other ones.
    """
    with replacing_folder(folder) as place:
        towers = [_write(graph, place, say) for graph in tower_graphs(package)]
        facts = {"torch": torch.__version__, "weights": weights}
        describe(package, place, form=FORM, towers=towers, facts=facts)
    return package.tokenizer


def _write(graph: TowerGraph, folder: Path, say: Callable[[str], None]) -> WrittenGraph:
    path = folder / f"{graph.name}.pt2"
    program = traced(graph, form=FORM)
    with refusing(graph, form=FORM), quiet():
        torch.export.save(program, path)
        run = torch.export.load(path).module()
    found = agreement(graph, run, form=FORM)
    check_agreement(graph, found, form=FORM)
    say(f"{path.name}: features beside torch's: at most {found.difference:.1g} away")
    return WrittenGraph(graph=graph, file=path.name, found=found)
