"""Quantised weights of every maker are refused by name, whatever form the folder has."""

import pytest
import torch
from safetensors.torch import load_file, save_file

import mmtrain
from mmtrain.cli import main
from mmtrain.data.images.transforms import PreprocessConfig
from mmtrain.data.text.tokenizer import TokenizerConfig, build_tokenizer
from mmtrain.interop.open_clip_config import config_from_open_clip
from mmtrain.loading import export_model, save_model
from mmtrain.models import Clip
from tests.interop.decoder_folders import write_peer
from tests.interop.peers import tiny_open_clip


def as_int8(name, x):
    return {name: x.to(torch.int8)}


def as_bitsandbytes(name, x):
    base = name.removesuffix("weight")
    return {
        name: x.flatten()[: x.numel() // 2, None].to(torch.uint8),
        f"{name}.absmax": x[0].clone(),
    } | {f"{base}SCB": x[0]}


def as_gptq(name, x):
    base = name.removesuffix("weight")
    parts = {"qweight": x.to(torch.int32), "qzeros": x[:1].to(torch.int32), "scales": x[:1].clone()}
    return {base + part: value for part, value in parts.items()}


def as_fp8(name, x):
    return {name: x.to(torch.float8_e4m3fn), f"{name}_scale_inv": torch.ones(1)}


MAKERS = {"int8": as_int8, "bitsandbytes": as_bitsandbytes, "gptq": as_gptq, "fp8": as_fp8}


def quantise(path, suffix, maker):
    tensors = load_file(path)
    name = next(name for name in sorted(tensors) if name.endswith(suffix))
    made = MAKERS[maker](name, tensors.pop(name))
    save_file(tensors | {key: x.contiguous() for key, x in made.items()}, path)
    return name.removesuffix("weight")


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("form", ["hf", "open_clip", "decoder"])
def test_the_tensor_is_named(tmp_path, capsys, form, maker):
    folder = tmp_path / form
    if form == "decoder":
        write_peer("llama 3", folder)
        path, suffix = folder / "model.safetensors", "q_proj.weight"
    else:
        model = Clip(config_from_open_clip(tiny_open_clip())).init_weights(0)
        tokenizer = build_tokenizer(TokenizerConfig(context_length=24))
        preprocess = PreprocessConfig(image_size=32)
        save_model(tmp_path / "ours", model=model, tokenizer=tokenizer, preprocess=preprocess)
        export_model(tmp_path / "ours", out=folder, form=form)
        hub = {"hf": ("model", "fc1.weight"), "open_clip": ("open_clip_model", "c_fc.weight")}
        stem, suffix = hub[form]
        path = folder / f"{stem}.safetensors"
    name = quantise(path, suffix, maker)
    words = ["generate", "--model", str(folder), "--prompt", "a"]
    if form != "decoder":
        words = ["convert", str(folder), str(tmp_path / "out")]
    capsys.readouterr()
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert name in line and "quantised weights, which are not read" in line, line


def test_weights_in_double_precision_are_read(tmp_path):
    model = Clip(config_from_open_clip(tiny_open_clip())).init_weights(0)
    tokenizer = build_tokenizer(TokenizerConfig(context_length=24))
    preprocess = PreprocessConfig(image_size=32)
    save_model(tmp_path / "ours", model=model, tokenizer=tokenizer, preprocess=preprocess)
    export_model(tmp_path / "ours", out=tmp_path / "hub", form="open_clip")
    path = tmp_path / "hub" / "open_clip_model.safetensors"
    save_file({name: x.double() for name, x in load_file(path).items()}, path)
    read, _, _ = mmtrain.load(tmp_path / "hub")
    for name, x in model.state_dict().items():
        assert torch.equal(read.state_dict()[name], x), name
