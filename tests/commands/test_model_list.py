"""The list of architectures: it tells of each what building it tells."""

import importlib.util
import json
from pathlib import Path

import pytest

from mmtrain.commands.model_list import SIZES_FILE
from mmtrain.models.named import MODEL_NAMES

_TOOL = Path(__file__).parents[2] / "tools" / "write_model_sizes.py"
_AGAIN = "an architecture is not as it was; run: python tools/write_model_sizes.py"


def size_of(name: str) -> dict[str, int]:
    """As the tool counts it."""
    spec = importlib.util.spec_from_file_location("write_model_sizes", _TOOL)
    assert spec is not None and spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool.size_of(name)


def test_every_name_is_listed_and_small_ones_are_counted_again() -> None:
    sizes = json.loads(SIZES_FILE.read_text())
    assert list(sizes) == list(MODEL_NAMES), _AGAIN
    for name in ("ViT-B-32", "ViT-B-16-SigLIP", "RN50"):
        assert sizes[name] == size_of(name), f"{name}: {_AGAIN}"


@pytest.mark.slow
@pytest.mark.parametrize("name", MODEL_NAMES)
def test_each_is_counted_again(name: str) -> None:
    assert json.loads(SIZES_FILE.read_text())[name] == size_of(name), _AGAIN
