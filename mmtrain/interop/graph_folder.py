"""What lies beside exported graphs: the tokenizer's files, and model.json, which says all the rest.

Whoever runs the graphs has neither our code nor our defaults, so nothing is left out of it.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmtrain import __version__
from mmtrain.data.images.transforms import PreprocessConfig
from mmtrain.data.text.cleaning import Cleaning
from mmtrain.data.text.tokenizer import Kind, Tokenizer
from mmtrain.files import replace_file
from mmtrain.interop.forms import DESCRIPTION
from mmtrain.interop.package import ModelPackage
from mmtrain.interop.tower_graphs import Agreement, TowerGraph
from mmtrain.models.vision_config import VisionConfig

_REPAIR = "ftfy.fix_text, then html.unescape twice"
_SPACES = "white space to single spaces, none around"
_CLEANING: dict[Cleaning, list[str]] = {
    "none": [],
    "whitespace": [_REPAIR, _SPACES],
    "lower": [_REPAIR, _SPACES, "lower case"],
    "canonicalize": [_REPAIR, "_ to a space", "ASCII punctuation away", "lower case", _SPACES],
}
"""In words, in order."""
_READ_BY: dict[Kind, str] = {
    "clip": "tokenizers",
    "json": "tokenizers",
    "sentencepiece": "sentencepiece",
}
"""The library that cuts texts by a kind's file; mmtrain alone for the others."""


@dataclass(frozen=True, kw_only=True)
class WrittenGraph:
    """A tower's file."""

    graph: TowerGraph
    """What it computes."""
    file: str
    """Its name in the folder."""
    found: Agreement
    """How near to torch it is."""


def describe(
    package: ModelPackage,
    folder: Path,
    *,
    form: str,
    towers: Sequence[WrittenGraph],
    facts: Mapping[str, Any],
) -> None:
    """Write model.json and the tokenizer's files.

    Args:
        package: the model.
        folder: of the graphs.
        form: of the graphs.
        towers: the image's and the text's.
        facts: of this form alone, such as the opset.
    """
    package.tokenizer.save(folder)
    image, text = towers
    content = {
        **facts,
        "image": _tower(image) | describe_preprocess(package.config.vision, package.preprocess),
        "text": _tower(text) | describe_tokenizer(package.tokenizer),
        "logits": _logits(package),
    }
    write_description(folder, form=form, facts=content)


def write_description(folder: Path, *, form: str, facts: Mapping[str, Any]) -> None:
    """Write model.json, which says first what it is."""
    content = {
        "format": f"mmtrain.{form}",
        "format_version": 1,
        "written_by": f"mmtrain {__version__}",
        **facts,
    }
    text_of_it = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    replace_file(folder / DESCRIPTION, text_of_it + "\n")


def _tower(written: WrittenGraph) -> dict[str, Any]:
    graph = written.graph
    dtype = str(graph.example.dtype).removeprefix("torch.")
    return {
        "file": written.file,
        "input": {
            "name": graph.input_name,
            "dtype": dtype,
            "shape": ["batch", *graph.example.shape[1:]],
        },
        "output": {"name": graph.output_name, "dtype": "float32", "unit_norm": True},
        "beside_torch": {
            "largest_difference": written.found.difference,
            "least_cosine": written.found.cosine,
        },
    }


def describe_preprocess(vision: VisionConfig, how: PreprocessConfig) -> dict[str, Any]:
    """What an image goes through before the graph, and in it."""
    return {
        "size": how.image_size,
        "resize_mode": how.resize_mode,
        "interpolation": how.interpolation,
        "resized_by": "Pillow, before the change to RGB",
        "mean": list(vision.mean),
        "std": list(vision.std),
        "normalised_by": "the graph",
    }


def describe_tokenizer(tokenizer: Tokenizer) -> dict[str, Any]:
    """How a text becomes a row of ids."""
    before, after = tokenizer.turn_ends
    kind = tokenizer.config.kind
    return {
        "context_length": tokenizer.context_length,
        "tokenizer_file": tokenizer.file_name,
        "tokenizer_read_by": _READ_BY.get(kind, "mmtrain"),
        "cleaning": _CLEANING[tokenizer.config.clean],
        "start_ids": before,
        "end_ids": after,
        "pad_id": tokenizer.pad_id,
    }


def _logits(package: ModelPackage) -> dict[str, Any]:
    bias = package.tensors.get("logit_bias")
    return {
        "scale": math.exp(package.tensors["logit_scale"].item()),
        "bias": 0.0 if bias is None else bias.item(),
        "probabilities": "softmax over texts" if bias is None else "sigmoid of each pair",
    }
