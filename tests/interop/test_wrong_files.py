"""A folder whose files do not belong together ends in one line, and says which file it is."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmtrain.data.images.transforms import PreprocessConfig
from mmtrain.data.text.tokenizer import TokenizerConfig, build_tokenizer
from mmtrain.errors import UsageError
from mmtrain.interop.hf_clip_files import read_weights
from mmtrain.interop.open_clip_config import config_from_open_clip
from mmtrain.interop.tensor_links import check_tensors
from mmtrain.loading import export_model, read_package, save_model
from mmtrain.models import Clip
from tests.interop.peers import tiny_open_clip


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One model in both other forms."""
    base = tmp_path_factory.mktemp("forms")
    model = Clip(config_from_open_clip(tiny_open_clip())).init_weights(0)
    tokenizer = build_tokenizer(TokenizerConfig(context_length=24))
    save_model(
        base / "ours",
        model=model,
        tokenizer=tokenizer,
        preprocess=PreprocessConfig(image_size=32),
    )
    for form in ("hf", "open_clip"):
        export_model(base / "ours", out=base / form, form=form)
    return base


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool, torch.float8_e4m3fn])
@pytest.mark.parametrize("name", ["positional_embedding", "attn.in_proj_weight", "logit_scale"])
def test_no_tensor_that_the_model_computes_with_is_an_integer(name: str, dtype: torch.dtype):
    """Also those that are not called weight or bias."""
    wanted = {name: torch.zeros(4, 4)}
    with pytest.raises(UsageError, match=f"{name} is .*quantised weights"):
        check_tensors(wanted, {name: torch.ones(4, 4).to(dtype)}, source="file")
    check_tensors(wanted, {name: torch.ones(4, 4, dtype=torch.float16)}, source="file")


def test_complex_weights_are_called_so():
    with pytest.raises(UsageError, match="x is complex64, and weights are real numbers"):
        check_tensors({"x": torch.zeros(2)}, {"x": torch.zeros(2).cfloat()}, source="file")


def test_a_tensor_comes_from_the_piece_that_the_index_names(tmp_path: Path):
    old, new = {"a": torch.zeros(2)}, {"a": torch.ones(2), "b": torch.ones(3)}
    save_file(new, tmp_path / "1.safetensors")
    save_file(old | {"c": torch.ones(1)}, tmp_path / "2.safetensors")
    places = {"a": "1.safetensors", "b": "1.safetensors", "c": "2.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    assert torch.equal(read_weights(tmp_path)["a"], torch.ones(2))


@pytest.mark.parametrize("kept", [0, 1, 30_000])
def test_merges_of_clips_own_words_are_all_there(forms: Path, tmp_path: Path, kept: int):
    folder = shutil.copytree(forms / "hf", tmp_path / "hf")
    lines = (folder / "merges.txt").read_text().splitlines(keepends=True)
    (folder / "merges.txt").write_text("".join(lines[: 1 + kept]))
    with pytest.raises(UsageError, match=f"merges.txt has {kept:,} merges that are not the 48,894"):
        read_package(folder)


def test_both_forms_of_it_hold_the_same(forms: Path):
    """The folders that the others of this file damage."""
    one, other = (read_package(forms / form) for form in ("hf", "open_clip"))
    assert all(torch.equal(x, other.tensors[name]) for name, x in one.tensors.items())
    assert load_file(forms / "hf" / "model.safetensors")
