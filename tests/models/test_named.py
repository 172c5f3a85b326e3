"""Models by name: the parameters and FLOPs that open_clip publishes for the same names."""

import json
from importlib.resources import files

import pytest
import torch

from mmtrain.models import Clip
from mmtrain.models.flops import clip_flops
from mmtrain.models.named import MODEL_NAMES, QUICKGELU, named_model

# open_clip's docs/model_profile.csv: millions of parameters, GFLOPs of the image and text towers.
PROFILE = {
    "ViT-S-32": (63.09, 2.29, 3.37),
    "ViT-M-32": (103.12, 3.99, 5.96),
    "ViT-B-32": (151.28, 8.82, 5.96),
    "ViT-B-16": (149.62, 35.13, 5.96),
    "ViT-L-14": (427.62, 162.03, 13.3),
    "ViT-L-14-336": (427.94, 381.92, 13.3),
    "ViT-H-14": (986.11, 334.59, 47.09),
    "ViT-g-14": (1366.68, 534.06, 47.09),
    "ViT-bigG-14": (2539.57, 967.5, 97.86),
    "ViT-B-16-SigLIP": (203.16, 35.42, 11.02),
    # Its image tower pools with one query, where open_clip computes those of all places.
    "RN50": (102.01, 11.59, 5.96),
}


def num_parameters(name: str) -> int:
    """Counted on the model itself, without memory for it."""
    with torch.device("meta"):
        return sum(p.numel() for p in Clip(named_model(name)).parameters())


@pytest.mark.parametrize("name", PROFILE)
def test_profile(name: str) -> None:
    """Within 1 % of the published figures."""
    flops = clip_flops(named_model(name))
    measured = (num_parameters(name) / 1e6, flops.image / 1e9, flops.text / 1e9)
    assert measured == pytest.approx(PROFILE[name], rel=0.01)


@pytest.mark.parametrize("name", [name for name in MODEL_NAMES if not name.startswith("Modern")])
def test_shapes_are_open_clips(name: str) -> None:
    """Widths, layers, heads, patches and activations of the installed open_clip's own configs."""
    path = files("open_clip") / "model_configs" / f"{name}.json"
    theirs, ours = json.loads(path.read_text()), named_model(name)
    assert ours.embed_dim == theirs["embed_dim"]
    quick = "quick_gelu" if theirs.get("quick_gelu") else "gelu"
    text, vision = theirs["text_cfg"], theirs["vision_cfg"]
    core = ours.text.transformer
    assert (core.dim, core.num_layers, core.num_heads) == (
        text["width"],
        text["layers"],
        text["heads"],
    )
    assert (ours.text.context_length, ours.text.vocab_size) == (
        text["context_length"],
        text["vocab_size"],
    )
    assert core.activation == quick and name.endswith(QUICKGELU) == (quick == "quick_gelu")
    assert ours.vision.image_size == vision.get("image_size", 224)
    if isinstance(vision.get("layers"), list):
        trunk = ours.vision.trunk
        assert trunk is not None
        assert (list(trunk.layers), trunk.width) == (vision["layers"], vision["width"])
    elif "timm_model_name" not in vision:
        core = ours.vision.transformer
        assert (core.dim, core.num_layers) == (vision["width"], vision["layers"])
        assert core.head_size == vision.get("head_width", 64)
        assert core.hidden_dim == int(vision["width"] * vision.get("mlp_ratio", 4.0))
        assert ours.vision.patch_size == vision["patch_size"] and core.activation == quick


def test_unknown_name() -> None:
    """All names are told."""
    with pytest.raises(ValueError, match=r'name = "ViT-B" is unknown; use one of .*ViT-B-32'):
        named_model("ViT-B")


def test_modern_forward() -> None:
    """The modern shape runs: rotary positions, grouped queries, gates and registers together."""
    from dataclasses import replace

    config = named_model("Modern-S-16")
    vision = replace(config.vision, transformer=replace(config.vision.transformer, num_layers=1))
    text = replace(config.text, transformer=replace(config.text.transformer, num_layers=1))
    model = Clip(replace(config, vision=vision, text=text)).init_weights(0).eval()
    images = torch.randint(0, 256, (2, 3, 224, 224), dtype=torch.uint8)
    assert model.encode_image(images).norm(dim=-1).tolist() == pytest.approx([1, 1])
