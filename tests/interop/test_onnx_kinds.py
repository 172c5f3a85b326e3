"""Towers of every kind as graphs, in every number format, and the page's program on all of them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from PIL import Image
from torch import Tensor

import mmtrain
from mmtrain.cli import main
from mmtrain.data.images.transforms import ResizeMode
from mmtrain.interop import onnx_program
from mmtrain.models import ClipConfig, TextConfig, VisionConfig
from mmtrain.nn import TransformerConfig, attention
from tests.interop.test_onnx_files import CONFIG, build, logits_of, picture, said_by_program

pytestmark = pytest.mark.slow


def blocks(**changes: Any) -> TransformerConfig:
    return TransformerConfig(**({"dim": 48, "num_layers": 2, "num_heads": 4} | changes))


def vision(transformer: TransformerConfig, **changes: Any) -> VisionConfig:
    return VisionConfig(transformer=transformer, image_size=32, patch_size=8, **changes)


def text(transformer: TransformerConfig, **changes: Any) -> TextConfig:
    return TextConfig(transformer=transformer, context_length=16, **changes)


KINDS = {
    "plain": (vision(blocks()), text(blocks(mask="causal"))),
    "siglip": (
        vision(blocks(activation="gelu_tanh"), pool="attention", class_token=False),
        text(blocks(mask="full"), pool="last", mask_padding=False, projection_bias=True),
    ),
    "convolutions first": (
        vision(blocks(), stem_channels=(8, 12, 16), pool="mean", class_token=False),
        text(blocks(mask="causal")),
    ),
    "means of real tokens, fixed positions": (
        vision(blocks(), pool="mean", positions="sinusoidal", pool_norm="before"),
        text(blocks(mask="full"), pool="mean", positions="sinusoidal"),
    ),
    "rotary, grouped keys, root mean squares": (
        vision(
            blocks(num_kv_heads=2, norm="partial_rms", norm_fraction=0.5),
            pool="mean",
            class_token=False,
            positions="rope",
            num_registers=3,
        ),
        text(
            blocks(mask="causal", num_kv_heads=1, norm="gemma_rms", activation="geglu"),
            positions="rope",
            end_token_id=None,
        ),
    ),
    "normed queries, scaled layers": (
        vision(
            blocks(qk_norm="layer", layer_scale=0.1, activation="quick_gelu"),
            embed_norm=True,
            patch_bias=True,
            prefix_positions="all",
            num_registers=2,
        ),
        text(blocks(mask="full", qk_norm="rms", activation="swiglu"), pool="first"),
    ),
}


def config_of(kind: str) -> ClipConfig:
    image, words = KINDS[kind]
    return ClipConfig(vision=image, text=words, embed_dim=24)


def export(source: Path, out: Path, *words: str, form: str = "onnx") -> dict[str, Any]:
    """Through the command -> model.json."""
    assert main(["export", str(source), "--out", str(out), "--format", form, *words]) == 0
    return json.loads((out / "model.json").read_text())


def run(folder: Path, tower: dict[str, Any], inputs: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(folder / tower["file"])
    return torch.from_numpy(session.run(None, {tower["input"]["name"]: inputs.numpy()})[0])


@torch.no_grad()
def least_cosine(source: Path, out: Path, told: dict[str, Any], *, batch: int) -> float:
    """Of graphs beside the model that they came from, on inputs that the export did not draw."""
    model, preprocess, tokenizer = mmtrain.load(source)
    size = preprocess.config.image_size
    images = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8)
    tokens = tokenizer(["a small red box on " + "the " * row + "sea" for row in range(batch)])
    pairs = (
        (run(out, told["image"], images), model.encode_image(images)),
        (run(out, told["text"], tokens), model.encode_text(tokens)),
    )
    return min(float((found * wanted).sum(-1).min()) for found, wanted in pairs)


FORMS = {
    "plain": (False, True),
    "siglip": (True,),
    "convolutions first": (
        vision(blocks(), stem_channels=(8, 12, 16), pool="mean", class_token=False),
        text(blocks(mask="causal")),
    ),
    "means of real tokens, fixed positions": (False,),
    "rotary, grouped keys, root mean squares": (False, True),
    "normed queries, scaled layers": (True,),
}
"""Whether attention is fused: both for causal masks, for those of padding, and without one."""


@pytest.mark.parametrize(("kind", "fused"), [(kind, one) for kind in KINDS for one in FORMS[kind]])
def test_a_kind_of_tower(kind: str, fused: bool, tmp_path: Path, monkeypatch):
    """By either form of attention, which the machine chooses."""
    longest = 0 if fused else 1 << 10
    monkeypatch.setattr(attention, "PLAIN_UP_TO", {("cpu", torch.float32): longest})
    source, out = build(tmp_path / "model", config_of(kind)), tmp_path / "out"
    told = export(source, out)
    for batch in (1, 2, 7):
        assert least_cosine(source, out, told, batch=batch) > 1 - 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_of_tower_by_torch_export(kind: str, tmp_path: Path):
    export(build(tmp_path / "model", config_of(kind)), tmp_path / "out", form="torch-export")


@pytest.mark.parametrize("mode", ["shortest", "squash", "longest"])
def test_the_pages_program_resizes_as_we_do(mode: ResizeMode, tmp_path: Path):
    """Wide and tall images, in gray, of a palette, with transparency, in RGB as readers give it."""
    source = build(tmp_path / "model", config_of("plain"), resize_mode=mode)
    export(source, tmp_path / "out")
    for width, height, kind in ((97, 20, "L"), (31, 64, "P"), (32, 32, "RGBA"), (5, 4, "RGB")):
        photo = picture(tmp_path, width, height)
        Image.open(photo).convert(kind).save(photo)
        said = said_by_program(tmp_path / "out", photo)
        assert said == pytest.approx(logits_of(source, photo), abs=2e-4), (width, kind)


@pytest.mark.parametrize(
    ("weights", "share", "is_large"),
    [("fp32", 1.0, True), ("fp16", 0.5, False), ("int8", 0.25, False), ("int8", 0.25, True)],
)
def test_weights_in_fewer_bytes(
    weights: str, share: float, is_large: bool, tmp_path: Path, monkeypatch, capsys
):
    """In one file and with weights beside it; whole ones in one file are those above."""
    if is_large:
        monkeypatch.setattr(onnx_program, "_MOST_INSIDE", 0)
    source, out = build(tmp_path / "model", config_of("siglip")), tmp_path / "out"
    told = export(source, out, "--weights", weights)
    sizes = sum(path.stat().st_size for path in out.glob("text.onnx*"))
    assert (out / "text.onnx.data").is_file() == is_large
    whole = 4 * sum(x.numel() for x in mmtrain.load(source)[0].text.parameters())
    assert share <= sizes / whole < share + 0.1
    cosine = least_cosine(source, out, told, batch=4)
    assert cosine > {"fp32": 1 - 1e-6, "fp16": 1 - 1e-5, "int8": 0.99}[weights]
    said = capsys.readouterr().out
    for name in ("image", "text"):
        least = told[name]["beside_torch"]["least_cosine"]
        assert f"cosine at least {least:.6f}" in said
        assert (told[name]["beside_torch"]["largest_difference"] == 0) is False


def test_a_weight_beyond_fp16_is_named(tmp_path: Path, capsys):
    changed = replace(CONFIG, vision=replace(CONFIG.vision, positions="learned"))
    source, out = build(tmp_path / "model", changed), tmp_path / "out"
    model, preprocess, tokenizer = mmtrain.load(source)
    with torch.no_grad():
        model.text.embed.token.weight[7, 3] = 1e6
    mmtrain.save_model(source, model=model, tokenizer=tokenizer, preprocess=preprocess.config)
    words = ["export", str(source), "--out", str(out), "--format", "onnx", "--weights", "fp16"]
    assert main(words) == 2
    assert "text.embed.token.weight has a weight of 1e+06" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == [source]
