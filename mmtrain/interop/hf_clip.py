"""transformers' CLIPModel, SiglipModel and Siglip2Model: config.json and state dict, both ways."""

from typing import Any

from mmtrain.errors import UsageError
from mmtrain.interop.hf_clip_config import Kind, config_from_hf, config_to_hf, model_kind
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
)
from mmtrain.models import ClipConfig


def from_hf(
    data: dict[str, Any], tensors: Tensors, *, source: str = "config.json"
) -> tuple[ClipConfig, Tensors]:
    """Our config and tensors.

    Args:
        data: config.json.
        tensors: the model's state dict.
        source: names the files in messages.

    Raises:
        UsageError: a field that is unknown or that we cannot compute, or tensors that do not fit.
    """
    config = config_from_hf(data, source=source)
    # Older files carry the running numbers of positions.
    tensors = {name: x for name, x in tensors.items() if not name.endswith(".position_ids")}
    links = _links(config, model_kind(data, source=source))
    return config, tensors_from(links, shapes_of(config), tensors, source=source)


def to_hf(
    config: ClipConfig, tensors: Tensors, *, kind: Kind | None = None
) -> tuple[dict[str, Any], Tensors]:
    """config.json and the state dict of their model.

    Args:
        config: our model.
        tensors: its state dict.
        kind: which of their models; None takes the one that computes the same, CLIP or SigLIP.

    Raises:
        UsageError: it computes something else, naming the fields.
    """
    data = config_to_hf(config, kind=kind)
    return data, tensors_to(_links(config, data["model_type"]), tensors)


def clip_links(config: ClipConfig) -> list[Link]:
    """What ties every tensor of ours to one of theirs; nothing where none of theirs is the same."""
    try:
        kind = config_to_hf(config)["model_type"]
    except UsageError:
        return []
    return _links(config, kind)


def _links(config: ClipConfig, kind: Kind) -> list[Link]:
    vision, text = "vision_model", "text_model"
    links = [
        same("vision.embed.positional_embedding", f"{vision}.embeddings.position_embedding.weight"),
        *same_layer("vision.head.norm", f"{vision}.post_layernorm"),
        same("text.embed.token.weight", f"{text}.embeddings.token_embedding.weight"),
        same("text.embed.positional_embedding", f"{text}.embeddings.position_embedding.weight"),
        *same_layer("text.head.norm", f"{text}.final_layer_norm"),
        *(_clip_links() if kind == "clip" else _siglip_links()),
    ]
    patch, theirs = "vision.embed.patch", f"{vision}.embeddings.patch_embedding"
    if kind == "siglip2":  # a linear map of patches, its columns in our order
        links.append(same(f"{patch}.weight", f"{theirs}.weight"))
    else:
        size = config.vision.patch_size
        links.append(patch_convolution(f"{patch}.weight", f"{theirs}.weight", size))
    if config.vision.patch_bias:
        links.append(same(f"{patch}.bias", f"{theirs}.bias"))
    for ours, tower in (("vision", config.vision), ("text", config.text)):
        for layer in range(tower.transformer.num_layers):
            block = f"{ours}.transformer.blocks.{layer}"
            links += _block_links(block, f"{ours}_model.encoder.layers.{layer}")
    return links


def _clip_links() -> list[Link]:
    return [
        reshaped("logit_scale", "logit_scale", ()),
        same("vision.embed.class_embedding", "vision_model.embeddings.class_embedding"),
        *same_layer("vision.embed.norm", "vision_model.pre_layrnorm"),  # their spelling
        same("vision.head.projection.weight", "visual_projection.weight"),
        same("text.head.projection.weight", "text_projection.weight"),
    ]


def _siglip_links() -> list[Link]:
    ours, theirs = "vision.head.pool", "vision_model.head"
    return [
        reshaped("logit_scale", "logit_scale", (1,)),
        reshaped("logit_bias", "logit_bias", (1,)),
        *same_layer("text.head.projection", "text_model.head"),
        reshaped(f"{ours}.query", f"{theirs}.probe", (1, 1, -1)),
        *(
            fused(
                tuple(f"{ours}.{part}.{leaf}" for part in "qkv"),
                f"{theirs}.attention.in_proj_{leaf}",
            )
            for leaf in ("weight", "bias")
        ),
        *same_layer(f"{ours}.o", f"{theirs}.attention.out_proj"),
        *same_layer(f"{ours}.norm", f"{theirs}.layernorm"),
        *same_layer(f"{ours}.feed_forward.up", f"{theirs}.mlp.fc1"),
        *same_layer(f"{ours}.feed_forward.down", f"{theirs}.mlp.fc2"),
    ]


def _block_links(ours: str, theirs: str) -> list[Link]:
    pairs = {f"attention.{part}": f"self_attn.{part}_proj" for part in "qkv"} | {
        "attention.o": "self_attn.out_proj",
        "norm1": "layer_norm1",
        "norm2": "layer_norm2",
        "feed_forward.up": "mlp.fc1",
        "feed_forward.down": "mlp.fc2",
    }
    return [
        link
        for name, their_name in pairs.items()
        for link in same_layer(f"{ours}.{name}", f"{theirs}.{their_name}")
    ]
