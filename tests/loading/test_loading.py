"""Our own folder form: what goes in comes out, and what is damaged is refused in one line."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import mmtrain
from mmtrain.data.images.transforms import PreprocessConfig
from mmtrain.data.text.tokenizer import TokenizerConfig, build_tokenizer
from mmtrain.errors import UsageError
from mmtrain.loading import export_model, save_model
from mmtrain.models import Clip, ClipConfig, TextConfig, VisionConfig
from mmtrain.nn import TransformerConfig

# Everything that a config may hold and no other form can say.
CORE = TransformerConfig(
    dim=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    activation="swiglu",
    norm="rms",
    qk_norm="rms",
    qkv_bias=False,
    layer_scale=0.1,
    stochastic_depth=0.1,
)
CONFIG = ClipConfig(
    vision=VisionConfig(
        transformer=CORE,
        image_size=32,
        patch_size=8,
        mean=(0.1, 0.2, 0.3),
        positions="rope_2d",
        class_token=False,
        num_registers=2,
        pool="mean",
    ),
    text=TextConfig(
        transformer=dataclasses.replace(CORE, mask="causal"), context_length=16, positions="rope"
    ),
    embed_dim=16,
    init_logit_bias=-10.0,
)
PREPROCESS = PreprocessConfig(image_size=32, resize_mode="longest", interpolation="bilinear")


def save(folder: Path, seed: int = 0) -> Clip:
    model = Clip(CONFIG).init_weights(seed).eval()
    with torch.no_grad():
        model.logit_scale.fill_(3.25)
    tokenizer = build_tokenizer(TokenizerConfig(context_length=16))
    save_model(folder, model=model, tokenizer=tokenizer, preprocess=PREPROCESS)
    return model


def test_a_saved_model_comes_back_whole(tmp_path):
    model = save(tmp_path / "export")
    for path in (tmp_path / "export", tmp_path, str(tmp_path)):
        loaded, preprocess, tokenizer = mmtrain.load(path)
        assert loaded.config == CONFIG and preprocess.config == PREPROCESS
        state = model.state_dict()
        assert loaded.state_dict().keys() == state.keys()
        assert all(torch.equal(x, state[name]) for name, x in loaded.state_dict().items())
        assert loaded.logit_scale.item() == 3.25 and not loaded.training
        assert all(p.requires_grad for p in loaded.parameters())
        pixels = preprocess(Image.new("RGB", (50, 20), "red"))
        assert pixels.shape == (3, 32, 32) and pixels.dtype == torch.uint8
        tokens = tokenizer(["a red box", "b"])
        assert tokens.shape == (2, 16)
        torch.testing.assert_close(loaded.encode_text(tokens), model.encode_text(tokens))
        torch.testing.assert_close(
            loaded.encode_image(pixels[None]), model.encode_image(pixels[None])
        )


def test_saving_again_replaces_and_leaves_nothing_partial(tmp_path):
    save(tmp_path, seed=0)
    model = save(tmp_path, seed=1)
    loaded, _, _ = mmtrain.load(tmp_path)
    weight = model.vision.transformer.blocks["0"].attention.q.weight
    assert torch.equal(loaded.vision.transformer.blocks["0"].attention.q.weight, weight)
    assert not list(tmp_path.glob(".*"))


def test_an_export_in_our_form_is_the_same_folder(tmp_path):
    save(tmp_path / "a")
    parts: list[tuple[int, int]] = []
    export_model(
        tmp_path / "a",
        out=tmp_path / "b",
        form="mmtrain",
        progress=lambda done, of: parts.append((done, of)),
    )
    assert parts == [(0, 3), (1, 3), (2, 3), (3, 3)]
    for path in (tmp_path / "a").iterdir():
        assert (tmp_path / "b" / path.name).read_bytes() == path.read_bytes(), path.name
    with pytest.raises(
        UsageError, match='format = "tflite" is unknown; use mmtrain or open-clip or hf'
    ):
        export_model(tmp_path / "a", out=tmp_path / "c", form="tflite")


def test_what_a_form_cannot_say_is_refused_before_anything_is_written(tmp_path):
    save(tmp_path / "a")
    with pytest.raises(UsageError, match="--format open-clip cannot express") as caught:
        export_model(tmp_path / "a", out=tmp_path / "b", form="open_clip")
    assert "\n" not in str(caught.value) and not (tmp_path / "b").exists()


def edit(path: Path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def without_a_tensor(folder: Path) -> None:
    """Another model's weights, with a hash that says they belong here."""
    import hashlib

    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["text.head.projections.weight"] = tensors.pop("text.head.projection.weight")
    save_file(tensors, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    edit(folder / "config.json", lambda c: c["sha256"].update({"model.safetensors": digest}))


DAMAGE = {
    "flipped bit": (lambda f: flip(f / "model.safetensors"), "SHA-256 is not the one"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "model.safetensors is missing"),
    "no json": (lambda f: (f / "config.json").write_text("{"), "config.json cannot be read"),
    "another form": (
        lambda f: edit(f / "config.json", lambda c: c.pop("format")),
        "is not of our form",
    ),
    "newer": (
        lambda f: edit(f / "config.json", lambda c: c.update(format_version=99)),
        "format_version = 99 is unknown",
    ),
    "typo": (
        lambda f: edit(f / "config.json", lambda c: c["model"].update(embed_dimm=1)),
        "unknown key model.embed_dimm; did you mean model.embed_dim",
    ),
    "another shape": (
        lambda f: edit(f / "config.json", lambda c: c["model"].update(embed_dim=17)),
        r"2 of another shape \(vision.head.projection.weight \[16, 32\] should be \[17, 32\]",
    ),
    "another name": (
        without_a_tensor,
        r"1 missing \(text.head.projection.weight\); 1 not the model's",
    ),
    "no tokenizer": (lambda f: (f / "tokenizer_config.json").unlink(), "tokenizer_config.json"),
    "damaged tokenizer": (lambda f: flip(f / "tokenizer.json"), "SHA-256"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_folder_is_refused_in_one_line(tmp_path, kind):
    damage, message = DAMAGE[kind]
    save(tmp_path)
    damage(tmp_path)
    with pytest.raises(UsageError, match=message) as caught:
        mmtrain.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_paths_that_hold_no_model_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"nowhere does not exist"):
        mmtrain.load(tmp_path / "nowhere")
    with pytest.raises(UsageError, match=r"holds neither config\.json nor export/"):
        mmtrain.load(tmp_path)
    (tmp_path / "recipe.toml").touch()
    with pytest.raises(UsageError, match="has no export/ yet; a run writes it when it ends"):
        mmtrain.load(tmp_path)
