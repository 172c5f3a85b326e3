"""open_clip's models through our core: the same features, the same tensors back, errors by name."""

import copy
import dataclasses
import json
from typing import Any

import pytest
import torch

from mmtrain.data.images.transforms import PreprocessConfig, eval_transform
from mmtrain.data.text.tokenizer import TokenizerConfig, build_tokenizer
from mmtrain.errors import UsageError
from mmtrain.interop.canonical import canonical
from mmtrain.interop.open_clip import from_open_clip, to_open_clip
from mmtrain.interop.open_clip_config import (
    config_from_open_clip,
    config_to_open_clip,
    mlp_ratio,
)
from mmtrain.models import Clip
from mmtrain.models.named import MODEL_NAMES, named_model
from tests.interop.every_open_clip import shallow_timm
from tests.interop.peers import (
    CAPTIONS,
    assert_same_features,
    assert_same_tensors,
    images,
    randomise,
    tiny_open_clip,
    unit,
)

# Named for what each exercises; every one is compared feature by feature and round-tripped.
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "quick_gelu": {"quick_gelu": True},
    "siglip loss": {"init_logit_bias": -10, "init_logit_scale": 2.302585092994046},
    "one-number logits": {"nonscalar_logit_scale": True, "init_logit_bias": -10},
    "bidirectional": {"text_cfg": {"no_causal_mask": True}},
    "clipa": {
        "vision_cfg": {"no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True},
        "text_cfg": {"no_causal_mask": True, "pool_type": "last"},
    },
    "mean, norm before": {"vision_cfg": {"pool_type": "avg"}},
    "siglip text": {
        "custom_text": True,
        "text_cfg": {
            "no_causal_mask": True,
            "pool_type": "last",
            "proj_bias": True,
            "norm_kwargs": {"eps": 1e-6},
            "act_kwargs": {"approximate": "tanh"},
        },
    },
    "custom text": {"custom_text": True},
    "first token": {
        "custom_text": True,
        "text_cfg": {"no_causal_mask": True, "pool_type": "first"},
    },
    "eos": {
        "custom_text": True,
        "text_cfg": {"pool_type": "eos", "eos_id": 49407, "vocab_size": 49410},
    },
    "no projection": {"custom_text": True, "text_cfg": {"proj_type": "none"}},
    "layer scale": {
        "vision_cfg": {"ls_init_value": 0.1},
        "text_cfg": {"ls_init_value": 0.2},
    },
    "qk norm": {"vision_cfg": {"qk_norm": True}, "text_cfg": {"qk_norm": True}},
    "odd widths": {
        "vision_cfg": {"mlp_ratio": 3.73, "width": 80, "head_width": 40},
        "text_cfg": {"mlp_ratio": 2.5, "vocab_size": 50000},
    },
}


def build_theirs(model_cfg: dict[str, Any], *, seed: int = 0) -> torch.nn.Module:
    from open_clip.model import CLIP, CustomTextCLIP

    fields = copy.deepcopy(model_cfg)
    torch.manual_seed(seed)
    kind = CustomTextCLIP if fields.pop("custom_text", False) else CLIP
    return randomise(kind(**fields), seed)


def build_ours(config, tensors) -> Clip:
    with torch.device("meta"):
        model = Clip(config)
    model.load_state_dict(tensors, assign=True)
    return model.eval()


def inputs(size: int, context_length: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """uint8 images for us, normalised ones for them, ids for both."""
    from torchvision.transforms.functional import normalize

    from mmtrain.models.vision_config import CLIP_MEAN, CLIP_STD

    transform = eval_transform(PreprocessConfig(image_size=size))
    pixels = torch.stack([transform(image) for image in images()])
    normalised = normalize(pixels.float() / 255, CLIP_MEAN, CLIP_STD)
    tokens = build_tokenizer(TokenizerConfig(context_length=context_length))(CAPTIONS)
    return pixels, normalised, tokens


@torch.no_grad()
def assert_parity(model_cfg: dict[str, Any]) -> None:
    theirs = build_theirs(model_cfg)
    config, tensors = from_open_clip(model_cfg, theirs.state_dict())
    ours = build_ours(config, tensors)
    pixels, normalised, tokens = inputs(config.vision.image_size, config.text.context_length)
    assert_same_features(ours.encode_image(pixels), unit(theirs.encode_image(normalised)))
    assert_same_features(ours.encode_text(tokens), unit(theirs.encode_text(tokens)))
    assert ours.logit_scale.item() == theirs.logit_scale.item()
    if theirs.logit_bias is not None:
        assert ours.logit_bias is not None
        assert ours.logit_bias.item() == theirs.logit_bias.item()


@pytest.mark.parametrize("variant", VARIANTS)
def test_features_are_open_clips(variant):
    assert_parity(tiny_open_clip(**VARIANTS[variant]))


@pytest.mark.parametrize("variant", VARIANTS)
def test_tensors_come_back_bit_for_bit_and_the_config_equal(variant):
    model_cfg = tiny_open_clip(**VARIANTS[variant])
    theirs = build_theirs(model_cfg).state_dict()
    config, tensors = from_open_clip(model_cfg, theirs)
    custom_text = model_cfg.get("custom_text", False)
    back_cfg, back = to_open_clip(config, tensors, custom_text=custom_text)
    if model_cfg.pop("nonscalar_logit_scale", False):
        theirs |= {name: theirs[name].reshape(()) for name in ("logit_scale", "logit_bias")}
    assert_same_tensors(back, theirs)
    assert complete(back_cfg) == complete(model_cfg)
    again, ours = from_open_clip(back_cfg, back)
    assert again == config
    assert_same_tensors(ours, tensors)
    json.dumps(back_cfg)


def complete(model_cfg: dict[str, Any]) -> dict[str, Any]:
    """A model_cfg with open_clip's own defaults filled in."""
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg

    sections = {
        "vision_cfg": dataclasses.asdict(CLIPVisionCfg(**model_cfg["vision_cfg"])),
        "text_cfg": dataclasses.asdict(CLIPTextCfg(**model_cfg["text_cfg"])),
    }
    for name in ("hf_tokenizer_name", "tokenizer_kwargs"):
        sections["text_cfg"].pop(name)
    return {"custom_text": False} | model_cfg | sections


def test_features_of_a_whole_vit_b_32():
    """Full size, from open_clip's own config by name."""
    import open_clip

    assert_parity(open_clip.get_model_config("ViT-B-32"))


def published() -> dict[str, dict[str, Any]]:
    import open_clip

    return {name: open_clip.get_model_config(name) for name in open_clip.list_models()}


@pytest.mark.slow
def test_every_published_config_is_read_or_refused_in_one_line():
    with shallow_timm():
        _read_or_refuse()


def _read_or_refuse():
    """All but five come back as they were; every other is refused by the field that says why."""
    read = 0
    for name, model_cfg in published().items():
        try:
            config = config_from_open_clip(model_cfg)
        except UsageError as error:
            fields = ("multimodal_cfg", "image_size = 256, but vitamin_xlarge_384")
            assert any(field in str(error) for field in fields), (name, str(error))
            assert "\n" not in str(error)
            continue
        read += 1
        back = config_to_open_clip(config)
        assert canonical(config_from_open_clip(back)) == canonical(config)
        # 4.3637 and 4.364 give the same width; a pool and a dropout that timm has anyway.
        model_cfg.pop("custom_text", None)  # a layout
        trunk = config.vision.trunk
        if config.text.trunk is not None or (trunk is not None and trunk.kind == "timm"):
            continue  # what drops in training is left out
        if name not in ("ViT-g-14", "vit_medium_patch16_gap_256", "MobileCLIP2-L-14"):
            assert complete(back) == complete(model_cfg), name
    assert read == 139


def test_our_names_are_the_shapes_they_are_named_for():
    configs = published()
    known = [name for name in MODEL_NAMES if name in configs and "SigLIP" not in name]
    assert len(known) >= 15
    for name in known:
        theirs = config_from_open_clip(configs[name])
        assert canonical(theirs) == canonical(named_model(name)), name


def test_the_shortest_ratio_gives_the_same_width():
    for dim, hidden in ((1152, 4304), (1664, 8192), (1408, 6144), (384, 1024), (7, 22)):
        assert int(dim * mlp_ratio(dim, hidden)) == hidden
    assert (mlp_ratio(1152, 4304), mlp_ratio(1664, 8192)) == (3.7362, 4.9231)


def test_sizes_among_openais_tensors_are_left_out():
    model_cfg = tiny_open_clip(quick_gelu=True)
    state = build_theirs(model_cfg).state_dict()
    sizes = {name: torch.tensor(7) for name in ("input_resolution", "context_length", "vocab_size")}
    _, tensors = from_open_clip(model_cfg, state | sizes)
    _, want = from_open_clip(model_cfg, state)
    assert_same_tensors(tensors, want)


BAD_CONFIGS = [
    ({"vision_cfg": {"widht": 48}}, r"vision_cfg: widht = 48 is unknown; did you mean width\?"),
    ({"embedd": 3}, r"model_cfg: embedd = 3 is unknown; did you mean embed_dim\?"),
    ({"vision_cfg": {"layers": [3, 4, 6]}}, r"layers = \[3, 4, 6\] must be four counts"),
    ({"vision_cfg": {"attentional_pool": True}}, "attentional_pool = true is not supported"),
    ({"vision_cfg": {"pos_embed_type": "sin_cos_2d"}}, 'pos_embed_type = "sin_cos_2d"'),
    ({"vision_cfg": {"image_size": [32, 64]}}, r"image_size = \[32, 64\] must be square"),
    ({"vision_cfg": {"scale_fc": True}}, "scale_fc = true is not supported; we read false"),
    ({"vision_cfg": {"patch_size": 7}}, "vision_cfg: patch_size = 7 must divide image_size"),
    (
        {"text_cfg": {"hf_model_name": "nobody/knows"}},
        "hf_model_name = nobody/knows is none of those",
    ),
    ({"text_cfg": {"embed_cls": True}}, "embed_cls = true is not supported"),
    ({"text_cfg": {"pool_type": "none"}}, 'pool_type = "none" .* we read "argmax" or "eos"'),
    ({"text_cfg": {"norm_kwargs": {"bias": False}}}, "norm_kwargs: bias = false is unknown"),
    ({"text_cfg": {"act_kwargs": {"approximate": "tanh"}}, "quick_gelu": True}, "quick_gelu"),
    ({"multimodal_cfg": {}}, "a CoCa is not supported"),
]


@pytest.mark.parametrize(("changes", "message"), BAD_CONFIGS)
def test_what_we_cannot_compute_is_refused_by_its_field(changes, message):
    with pytest.raises(UsageError, match=message) as caught:
        config_from_open_clip(tiny_open_clip(**changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("custom_text", [False, True])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda s, p: s.pop(f"{p}ln_final.bias"), r"1 missing \(%sln_final.bias\)"),
        (lambda s, p: s.update({f"{p}extra": torch.ones(1)}), r"1 not the model's \(%sextra\)"),
        (
            lambda s, p: s.update({f"{p}text_projection": torch.ones(32, 31)}),
            r"%stext_projection \[32, 31\] should be \[32, 32\]",
        ),
        (
            lambda s, _: s.update({"visual.conv1.weight": torch.ones(48, 3, 4, 4)}),
            r"visual.conv1.weight \[48, 3, 4, 4\] should be \[48, 3, 8, 8\]",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(damage, message, custom_text):
    model_cfg = tiny_open_clip(custom_text=custom_text)
    state, prefix = dict(build_theirs(model_cfg).state_dict()), "text." if custom_text else ""
    damage(state, prefix)
    with pytest.raises(UsageError, match=message.replace("%s", prefix)):
        from_open_clip(model_cfg, state, source="some.safetensors")


@pytest.mark.parametrize(
    ("tower", "changes", "message"),
    [
        ("blocks", {"norm": "rms"}, 'model.vision.transformer.norm = "rms"'),
        ("blocks", {"num_kv_heads": 1}, "model.vision.transformer.num_kv_heads = 1"),
        ("blocks", {"activation": "swiglu"}, 'model.vision.transformer.activation = "swiglu"'),
        ("vision", {"num_registers": 2}, "model.vision.num_registers = 2"),
        ("vision", {"positions": "rope_2d"}, 'model.vision.positions = "rope_2d"'),
        ("text", {"pool": "mean"}, 'model.text.pool = "mean"'),
    ],
)
def test_what_open_clip_cannot_say_is_refused_by_its_field(tower, changes, message):
    config = config_from_open_clip(tiny_open_clip())
    if tower == "blocks":
        blocks = dataclasses.replace(config.vision.transformer, **changes)
        tower, changes = "vision", {"transformer": blocks}
    config = dataclasses.replace(
        config, **{tower: dataclasses.replace(getattr(config, tower), **changes)}
    )
    with pytest.raises(UsageError, match=f"--format open-clip cannot express {message}"):
        config_to_open_clip(config)


def test_padding_that_is_masked_is_refused_where_open_clip_sees_it():
    config = config_from_open_clip(tiny_open_clip(text_cfg={"no_causal_mask": True}))
    text = dataclasses.replace(config.text, mask_padding=True)
    with pytest.raises(UsageError, match=r"model\.text\.mask_padding = true"):
        config_to_open_clip(dataclasses.replace(config, text=text))


def test_knobs_of_training_do_not_stand_in_the_way():
    config = config_from_open_clip(tiny_open_clip())
    blocks = dataclasses.replace(config.vision.transformer, stochastic_depth=0.1, init="scaled")
    vision = dataclasses.replace(config.vision, transformer=blocks, patch_dropout=0.25)
    model_cfg = config_to_open_clip(dataclasses.replace(config, vision=vision))
    assert model_cfg["vision_cfg"]["patch_dropout"] == 0.25
