"""open_clip's `model_cfg` and our config, both ways.

https://github.com/mlfoundations/open_clip, src/open_clip/model.py: CLIPVisionCfg and CLIPTextCfg.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from mmtrain.errors import UsageError
from mmtrain.interop.canonical import refuse_losses
from mmtrain.interop.foreign_config import ForeignConfig, refusing
from mmtrain.interop.open_clip_text_trunk import text_trunk_from_cfg, text_trunk_to_cfg
from mmtrain.interop.open_clip_timm import is_timm_tower, vision_from_cfg, vision_to_cfg
from mmtrain.interop.open_clip_trunk import (
    resnet_from_cfg,
    timm_trunk_from_cfg,
    trunk_to_cfg,
)
from mmtrain.interop.timm_names import is_own_timm_tower
from mmtrain.models import ClipConfig, TextConfig, VisionConfig
from mmtrain.nn import TransformerConfig
from mmtrain.nn.feed_forward import Activation

NORM_EPS = 1e-5
"""Of open_clip's layer norms unless norm_kwargs says otherwise."""


def config_from_open_clip(model_cfg: dict[str, Any], *, source: str = "open_clip") -> ClipConfig:
    """Our config of a model_cfg.

    Raises:
        UsageError: a field that is unknown, or that we cannot compute.
    """
    fields = ForeignConfig(model_cfg, source=f"{source}: model_cfg")
    fields.only("custom_text", False, True)
    fields.only("nonscalar_logit_scale", False, True)
    fields.only("output_dict", False, True)
    quick_gelu = fields.only("quick_gelu", False, True)
    embed_dim = fields.take("embed_dim", int)
    scale = fields.take("init_logit_scale", float, ClipConfig.init_logit_scale)
    bias = fields.take("init_logit_bias", float, None)
    if "multimodal_cfg" in model_cfg:
        raise UsageError(f"{fields.source}: multimodal_cfg: a CoCa is not supported")
    for name in ("vision_cfg", "text_cfg"):
        if not fields.holds(name):
            raise UsageError(f"{fields.source}: {name} is missing")
    shared = {"quick_gelu": quick_gelu, "embed_dim": embed_dim}
    vision = _read(fields.section("vision_cfg"), _vision, **shared)
    text = _read(fields.section("text_cfg"), _text, **shared)
    fields.close()
    with refusing(fields.source):
        return ClipConfig(
            vision=vision,
            text=text,
            embed_dim=embed_dim,
            init_logit_scale=scale,
            init_logit_bias=bias,
        )


def _read(section: ForeignConfig, build: Callable[..., Any], **shared: Any) -> Any:
    with refusing(section.source):
        tower = build(section, **shared)
    section.close()
    return tower


def _vision(cfg: ForeignConfig, *, quick_gelu: bool, embed_dim: int) -> VisionConfig:
    if cfg.holds("timm_model_name"):  # its activation is timm's, whatever quick_gelu says
        if is_own_timm_tower(cfg.peek("timm_model_name")):
            return vision_from_cfg(cfg)
        return timm_trunk_from_cfg(cfg, embed_dim=embed_dim)
    if isinstance(cfg.peek("layers"), list):
        return resnet_from_cfg(cfg)
    cfg.only("attentional_pool", False)
    cfg.only("pos_embed_type", "learnable")
    cfg.only("output_tokens", False)
    cfg.ignore("attn_pooler_queries", "attn_pooler_heads")
    width, head_width = cfg.take_size("width", 768), cfg.take_size("head_width", 64)
    pool = cfg.only("pool_type", "tok", "avg")
    norm_after = cfg.only("final_ln_after_pool", False, True)
    return VisionConfig(
        transformer=_blocks(
            cfg,
            dim=width,
            num_heads=width // head_width,
            quick_gelu=quick_gelu,
            mask="full",
            init="torch",
        ),
        image_size=cfg.take_side("image_size", 224),
        patch_size=cfg.take_side("patch_size", 16),
        embed_norm=not cfg.only("no_ln_pre", False, True),
        pool="first" if pool == "tok" else "mean",
        pool_norm="after" if norm_after or pool == "tok" else "before",
        patch_dropout=cfg.take("patch_dropout", float, 0.0),
    )


def _text(cfg: ForeignConfig, *, quick_gelu: bool, embed_dim: int) -> TextConfig:
    if cfg.holds("hf_model_name"):
        return text_trunk_from_cfg(cfg, embed_dim=embed_dim)
    cfg.only("hf_model_name", None)
    cfg.only("embed_cls", False)
    cfg.only("output_tokens", False)
    # pad_id masks only beside embed_cls; final_ln_after_pool is not passed on to text towers.
    cfg.ignore("pad_id", "final_ln_after_pool", "hf_model_pretrained", "hf_proj_type")
    cfg.ignore("hf_pooler_type", "hf_tokenizer_name", "tokenizer_mode", "tokenizer_kwargs")
    causal = not cfg.only("no_causal_mask", False, True)
    pool = cfg.only("pool_type", "argmax", "eos", "last", "first")
    vocab_size, eos_id = cfg.take("vocab_size", int, 49408), cfg.take("eos_id", int, 2)
    # The largest id of CLIP's own vocabulary is its end token. Elsewhere it need not be.
    largest = vocab_size - 1 if vocab_size == TextConfig.vocab_size else None
    projection = cfg.only("proj_type", "linear", "none") == "linear"
    return TextConfig(
        transformer=_blocks(
            cfg,
            dim=cfg.take("width", int, 512),
            num_heads=cfg.take("heads", int, 8),
            quick_gelu=quick_gelu,
            mask="causal" if causal else "full",
            init="scaled",
        ),
        vocab_size=vocab_size,
        context_length=cfg.take("context_length", int, 77),
        end_token_id=eos_id if pool == "eos" else largest,
        pool="end" if pool in ("argmax", "eos") else pool,
        mask_padding=causal,  # it has no effect then; open_clip never masks padding
        projection=projection,
        projection_bias=cfg.only("proj_bias", False, True) and projection,
    )


def _blocks(
    cfg: ForeignConfig, *, dim: int, num_heads: int, quick_gelu: bool, **fields: Any
) -> TransformerConfig:
    for name in ("scaled_cosine_attn", "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc"):
        cfg.only(name, False)
    cfg.only("block_type", None, "default", "custom")
    qk_norm = cfg.only("qk_norm", False, True)
    norm, act = cfg.section("norm_kwargs"), cfg.section("act_kwargs")
    eps = norm.take("eps", float, NORM_EPS)
    tanh = act.only("approximate", "none", "tanh") == "tanh"
    norm.close()
    act.close()
    if quick_gelu and tanh:
        raise UsageError(
            f'{act.source}: approximate = "tanh" and quick_gelu = true exclude another'
        )
    hidden = int(dim * cfg.take("mlp_ratio", float, 4.0))
    activation: Activation = "quick_gelu" if quick_gelu else "gelu_tanh" if tanh else "gelu"
    return TransformerConfig(
        dim=dim,
        num_layers=cfg.take("layers", int, 12),
        num_heads=num_heads,
        ff_dim=None if hidden == 4 * dim else hidden,
        activation=activation,
        norm_eps=eps,
        qk_norm="layer" if qk_norm else None,
        layer_scale=cfg.take("ls_init_value", float, None),
        **fields,
    )


def config_to_open_clip(config: ClipConfig) -> dict[str, Any]:
    """The model_cfg of our config.

    Raises:
        UsageError: open_clip has no such model, naming the fields.
    """
    vision, text = config.vision, config.text
    model_cfg: dict[str, Any] = {"embed_dim": config.embed_dim}
    if config.init_logit_scale != ClipConfig.init_logit_scale:
        model_cfg["init_logit_scale"] = config.init_logit_scale
    if config.init_logit_bias is not None:
        model_cfg["init_logit_bias"] = config.init_logit_bias
    blocks = (vision if text.trunk is not None else text).transformer
    if blocks.activation == "quick_gelu":
        model_cfg["quick_gelu"] = True
    timm = vision_to_cfg(vision) if is_timm_tower(vision) else None
    model_cfg["vision_cfg"] = _vision_to(vision) if timm is None else timm
    model_cfg["text_cfg"] = _text_to(text)
    refuse_losses(config, _with_pixels_of(config, model_cfg), form="open_clip")
    return model_cfg


def _vision_to(vision: VisionConfig) -> dict[str, Any]:
    if vision.trunk is not None:
        return trunk_to_cfg(vision)
    cfg: dict[str, Any] = {
        "image_size": vision.image_size,
        "patch_size": vision.patch_size,
        "width": vision.transformer.dim,
        "head_width": vision.transformer.head_size,
        **_blocks_to(vision.transformer),
    }
    if vision.patch_dropout:
        cfg["patch_dropout"] = vision.patch_dropout
    if not vision.embed_norm:
        cfg["no_ln_pre"] = True
    if vision.pool == "mean":
        cfg["pool_type"] = "avg"
        if vision.pool_norm == "after":
            cfg["final_ln_after_pool"] = True
    return cfg


def _with_pixels_of(config: ClipConfig, model_cfg: dict[str, Any]) -> ClipConfig:
    """What the model_cfg is read as; mean and std travel with the preprocess."""
    read = config_from_open_clip(model_cfg)
    return replace(
        read, vision=replace(read.vision, mean=config.vision.mean, std=config.vision.std)
    )


def _text_to(text: TextConfig) -> dict[str, Any]:
    if text.trunk is not None:
        return text_trunk_to_cfg(text, text.trunk)
    cfg: dict[str, Any] = {
        "context_length": text.context_length,
        "vocab_size": text.vocab_size,
        "width": text.transformer.dim,
        "heads": text.transformer.num_heads,
        **_blocks_to(text.transformer),
    }
    if text.transformer.mask == "full":
        cfg["no_causal_mask"] = True
    if text.pool in ("last", "first"):
        cfg["pool_type"] = text.pool
    elif text.end_token_id not in (None, text.vocab_size - 1):
        cfg |= {"pool_type": "eos", "eos_id": text.end_token_id}
    if not text.projection:
        cfg["proj_type"] = "none"
    if text.projection_bias:
        cfg["proj_bias"] = True
    return cfg


def _blocks_to(blocks: TransformerConfig) -> dict[str, Any]:
    cfg: dict[str, Any] = {"layers": blocks.num_layers}
    if blocks.hidden_dim != 4 * blocks.dim:
        cfg["mlp_ratio"] = mlp_ratio(blocks.dim, blocks.hidden_dim)
    if blocks.norm_eps != NORM_EPS:
        cfg["norm_kwargs"] = {"eps": blocks.norm_eps}
    if blocks.activation == "gelu_tanh":
        cfg["act_kwargs"] = {"approximate": "tanh"}
    if blocks.layer_scale is not None:
        cfg["ls_init_value"] = blocks.layer_scale
    if blocks.qk_norm == "layer":
        cfg["qk_norm"] = True
    return cfg


def mlp_ratio(dim: int, ff_dim: int) -> float:
    """The shortest decimal r with int(dim * r) = ff_dim, as published configs have it (3.7362)."""
    for digits in range(1, 17):
        ratio = round(ff_dim / dim + 0.5 * 10**-digits, digits)
        if int(dim * ratio) == ff_dim:
            return ratio
    raise AssertionError(f"no ratio for {ff_dim} / {dim}")
