"""open_clip's models: its `model_cfg` and state dict, both ways.

Both layouts of the state dict are read: `CLIP` (the text tower's names at the top) and
`CustomTextCLIP` (under `text.`). https://github.com/mlfoundations/open_clip.
"""

from typing import Any

from mmtrain.interop.open_clip_config import config_from_open_clip, config_to_open_clip
from mmtrain.interop.open_clip_text_trunk import text_trunk_links
from mmtrain.interop.open_clip_timm import tower_links
from mmtrain.interop.open_clip_trunk import trunk_links, with_counters, without_counters
from mmtrain.interop.tensor_links import (
    Link,
    Tensors,
    fused,
    patch_convolution,
    reshaped,
    same,
    same_layer,
    shapes_of,
    tensors_from,
    tensors_to,
    transposed,
)
from mmtrain.models import ClipConfig, VisionConfig
from mmtrain.nn import TransformerConfig

_JIT_CONSTANTS = ("input_resolution", "context_length", "vocab_size")
"""Sizes that OpenAI's files keep among the tensors."""


def from_open_clip(
    model_cfg: dict[str, Any], tensors: Tensors, *, source: str = "open_clip"
) -> tuple[ClipConfig, Tensors]:
    """Our config and tensors.

    Args:
        model_cfg: as in open_clip's model configs and in open_clip_config.json.
        tensors: a state dict of `CLIP` or `CustomTextCLIP`.
        source: names the files in messages.

    Raises:
        UsageError: a field that is unknown or that we cannot compute, or tensors that do not fit.
    """
    config = config_from_open_clip(model_cfg, source=source)
    tensors = {name: x for name, x in tensors.items() if name not in _JIT_CONSTANTS}
    if config.vision.trunk is not None:
        tensors = without_counters(tensors)
    if config.text.trunk is not None:  # what older files hold beside it
        tensors = {name: x for name, x in tensors.items() if not name.endswith(".position_ids")}
    is_timm = model_cfg["vision_cfg"].get("timm_model_name") is not None
    prefix = "text." if any(name.startswith("text.") for name in tensors) else ""
    for name in ("logit_scale", "logit_bias"):  # nonscalar_logit_scale keeps them as [1]
        if name in tensors and tensors[name].numel() == 1:
            tensors[name] = tensors[name].reshape(())
    return config, tensors_from(
        _links(config, prefix, timm=is_timm), shapes_of(config), tensors, source=source
    )


def to_open_clip(
    config: ClipConfig, tensors: Tensors, *, custom_text: bool = False
) -> tuple[dict[str, Any], Tensors]:
    """open_clip's model_cfg and state dict.

    Args:
        config: our model.
        tensors: its state dict.
        custom_text: the `CustomTextCLIP` layout instead of `CLIP`'s.

    Raises:
        UsageError: open_clip has no such model, naming the fields.
    """
    model_cfg = config_to_open_clip(config)
    if custom_text:
        model_cfg["custom_text"] = True
    is_timm = "timm_model_name" in model_cfg["vision_cfg"]
    links = _links(config, "text." if custom_text else "", timm=is_timm)
    theirs = tensors_to(links, tensors)
    return model_cfg, theirs if config.vision.trunk is None else with_counters(theirs)


def _links(config: ClipConfig, prefix: str, *, timm: bool) -> list[Link]:
    """All tensors; `prefix` stands before the text tower's names."""
    text = config.text
    links = [reshaped("logit_scale", "logit_scale", ())]
    if config.init_logit_bias is not None:
        links.append(reshaped("logit_bias", "logit_bias", ()))
    if config.vision.trunk is not None:
        links += trunk_links(config.vision)
    else:
        links += tower_links(config.vision) if timm else _vision_links(config.vision)
    if text.trunk is not None:
        return links + text_trunk_links(text)
    links += [
        same("text.embed.token.weight", f"{prefix}token_embedding.weight"),
        same("text.embed.positional_embedding", f"{prefix}positional_embedding"),
        *same_layer("text.head.norm", f"{prefix}ln_final"),
    ]
    if text.projection_bias:
        links += same_layer("text.head.projection", f"{prefix}text_projection")
    elif text.projection:
        links.append(transposed("text.head.projection.weight", f"{prefix}text_projection"))
    for layer in range(text.transformer.num_layers):
        theirs = f"{prefix}transformer.resblocks.{layer}"
        links += block_links(f"text.transformer.blocks.{layer}", theirs, text.transformer)
    return links


def _vision_links(vision: VisionConfig) -> list[Link]:
    links = [
        patch_convolution("vision.embed.patch.weight", "visual.conv1.weight", vision.patch_size),
        same("vision.embed.class_embedding", "visual.class_embedding"),
        same("vision.embed.positional_embedding", "visual.positional_embedding"),
        transposed("vision.head.projection.weight", "visual.proj"),
        *same_layer("vision.head.norm", "visual.ln_post"),
    ]
    if vision.embed_norm:
        links += same_layer("vision.embed.norm", "visual.ln_pre")
    for layer in range(vision.transformer.num_layers):
        theirs = f"visual.transformer.resblocks.{layer}"
        links += block_links(f"vision.transformer.blocks.{layer}", theirs, vision.transformer)
    return links


def block_links(ours: str, theirs: str, blocks: TransformerConfig) -> list[Link]:
    """The tensors of one residual block."""
    attention = f"{ours}.attention"
    links = [
        fused(
            tuple(f"{attention}.{part}.{leaf}" for part in "qkv"), f"{theirs}.attn.in_proj_{leaf}"
        )
        for leaf in ("weight", "bias")
    ]
    pairs = {
        f"{attention}.o": "attn.out_proj",
        f"{ours}.norm1": "ln_1",
        f"{ours}.norm2": "ln_2",
        f"{ours}.feed_forward.up": "mlp.c_fc",
        f"{ours}.feed_forward.down": "mlp.c_proj",
    }
    if blocks.qk_norm:
        pairs |= {f"{attention}.q_norm": "attn.ln_q", f"{attention}.k_norm": "attn.ln_k"}
    for name, their_name in pairs.items():
        links += same_layer(name, f"{theirs}.{their_name}")
    if blocks.layer_scale is not None:
        links += [same(f"{ours}.scale{n}.scale", f"{theirs}.ls_{n}.gamma") for n in (1, 2)]
    return links
