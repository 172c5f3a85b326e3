"""timm's vision transformers as image towers: arguments and state dict, both ways.

Class token, mean and attention pooling (MAP), register tokens, qk-norm, layer scale.
https://github.com/huggingface/pytorch-image-models, timm/models/vision_transformer.py.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from mmtrain.errors import UsageError
from mmtrain.interop.canonical import canonical_vision, differences
from mmtrain.interop.foreign_config import ForeignConfig, read_json, refusing
from mmtrain.interop.package import float_tensors, read_tensors
from mmtrain.interop.tensor_links import (
    Link,
    Tensors,
    batched,
    fused,
    patch_convolution,
    reshaped,
    same,
    same_layer,
    tensors_from,
    tensors_to,
)
from mmtrain.interop.timm_names import timm_args
from mmtrain.models import VisionConfig, VisionTower
from mmtrain.nn import TransformerConfig
from mmtrain.nn.feed_forward import Activation

ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
}
POOLS: dict[str, Literal["first", "mean", "attention"]] = {
    "token": "first",
    "avg": "mean",
    "map": "attention",
}
NORM_EPS = 1e-6
"""Of timm's layer norms unless norm_layer says otherwise."""
_NO_DROP = ("drop_rate", "pos_drop_rate", "proj_drop_rate", "attn_drop_rate")


def vision_from_timm(
    args: dict[str, Any], tensors: Tensors, *, source: str = "timm"
) -> tuple[VisionConfig, Tensors]:
    """A tower without a projection, and its tensors; a classifier among theirs is left out.

    Args:
        args: of timm's VisionTransformer, as `timm_args` gives them for a name.
        tensors: its state dict.
        source: names the file in messages.

    Raises:
        UsageError: an argument that we cannot compute, or tensors that do not fit.
    """
    config = vision_config_from_timm(args, source=source)
    tensors = {name: x for name, x in tensors.items() if not name.startswith("head.")}
    links = timm_links(config, ours="", theirs="")
    with torch.device("meta"):
        wanted = VisionTower(config, embed_dim=config.transformer.dim).state_dict()
    return config, tensors_from(links, wanted, tensors, source=source)


def read_timm_tower(folder: Path) -> tuple[VisionConfig, Tensors]:
    """The tower of a folder that timm wrote: config.json and model.safetensors.

    Raises:
        UsageError: a file is missing or damaged, or the tower is none that we can compute.
    """
    source = str(folder / "config.json")
    fields = ForeignConfig(read_json(folder / "config.json"), source=source)
    name = fields.take("architecture", str)
    args = timm_args(name, source=source) | fields.take("model_args", dict, {})
    pool = fields.take("global_pool", str, None)
    if pool is not None:
        args |= {"global_pool": pool}
    pixels = fields.section("pretrained_cfg")
    size = pixels.take("input_size", list, [3, args["img_size"], args["img_size"]])
    if len(size) != 3 or type(size[-1]) is not int:
        raise UsageError(f"{source}: pretrained_cfg: input_size = {size} must be 3, height, width")
    args["img_size"] = size[-1]
    config, tensors = vision_from_timm(
        args, read_tensors(folder / "model.safetensors"), source=source
    )
    mean, std = (pixels.take_numbers(name, getattr(config, name)) for name in ("mean", "std"))
    with refusing(f"{source}: pretrained_cfg"):
        return replace(config, mean=mean, std=std), float_tensors(tensors)


def read_timm_interpolation(folder: Path) -> Literal["bicubic", "bilinear"]:
    """The filter that the images of a folder's tower were resized with; ours where it is another
    one.

    Raises:
        UsageError: as `read_timm_tower`.
    """
    source = str(folder / "config.json")
    fields = ForeignConfig(read_json(folder / "config.json"), source=source)
    name = fields.section("pretrained_cfg").take("interpolation", str, "bicubic")
    return "bilinear" if name == "bilinear" else "bicubic"


def vision_to_timm(config: VisionConfig, tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    """Arguments of timm's VisionTransformer and its state dict, without a classifier.

    Args:
        config: of a tower without a projection.
        tensors: its state dict.

    Raises:
        UsageError: timm has no such tower, naming the fields.
    """
    args = vision_config_to_timm(config)
    return args, tensors_to(timm_links(config, ours="", theirs=""), tensors)


def vision_config_from_timm(args: dict[str, Any], *, source: str = "timm") -> VisionConfig:
    """Our config of timm's arguments.

    Raises:
        UsageError: an argument that is unknown, or that we cannot compute.
    """
    fields = ForeignConfig(args, source=source)
    for name in ("scale_attn_norm", "scale_mlp_norm", "pool_include_prefix"):
        fields.only(name, False)
    for name in _NO_DROP:
        fields.only(name, 0.0)
    fields.only("pos_embed", "learn")
    fields.only("final_norm", True)
    fields.only("in_chans", 3)
    fields.ignore("num_classes", "dynamic_img_size", "weight_init", "fix_init")
    pool = fields.only("global_pool", *POOLS)
    norm_after = fields.only("fc_norm", pool == "avg", pool != "avg")
    if norm_after and pool == "token":
        raise UsageError(f'{source}: fc_norm = true with global_pool = "token" is not supported')
    pre_norm = fields.only("pre_norm", False, True)
    no_embed_class = fields.only("no_embed_class", False, True)
    image_size, patch_size = fields.take_size("img_size", 224), fields.take_size("patch_size", 16)
    with refusing(source):
        config = VisionConfig(
            transformer=_blocks(fields),
            image_size=image_size,
            patch_size=patch_size,
            drop_edge=bool(image_size % patch_size),
            patch_bias=not pre_norm,
            class_token=fields.only("class_token", True, False),
            num_registers=fields.take("reg_tokens", int, 0),
            prefix_positions="none" if no_embed_class else "all",
            embed_norm=pre_norm,
            pool=POOLS[pool],
            pool_norm="after" if norm_after or pool == "token" else "before",
            projection=False,
            patch_dropout=fields.take("patch_drop_rate", float, 0.0),
        )
    fields.close()
    return config


def _blocks(fields: ForeignConfig) -> TransformerConfig:
    dim = fields.take("embed_dim", int, 768)
    hidden = int(dim * fields.take("mlp_ratio", float, 4.0))
    has_bias = fields.only("proj_bias", True, False)
    return TransformerConfig(
        dim=dim,
        num_layers=fields.take("depth", int, 12),
        num_heads=fields.take("num_heads", int, 12),
        ff_dim=None if hidden == 4 * dim else hidden,
        activation=ACTIVATIONS[fields.only("act_layer", *ACTIVATIONS)],
        norm_eps=fields.take("norm_eps", float, NORM_EPS),
        qkv_bias=fields.only("qkv_bias", True, False),
        out_bias=has_bias,
        ff_bias=has_bias,
        qk_norm="layer" if fields.only("qk_norm", False, True) else None,
        layer_scale=fields.take("init_values", float, None),
        stochastic_depth=fields.take("drop_path_rate", float, 0.0),
    )


def vision_config_to_timm(config: VisionConfig) -> dict[str, Any]:
    """timm's arguments of a tower without a projection.

    Raises:
        UsageError: timm has no such tower, naming the fields.
    """
    blocks = config.transformer
    names = {value: name for name, value in POOLS.items()}
    args: dict[str, Any] = {
        "img_size": config.image_size,
        "patch_size": config.patch_size,
        "embed_dim": blocks.dim,
        "depth": blocks.num_layers,
        "num_heads": blocks.num_heads,
        # Exact: timm computes int(dim * ratio).
        "mlp_ratio": (blocks.hidden_dim + 0.5) / blocks.dim,
        "act_layer": blocks.activation,
        "norm_eps": blocks.norm_eps,
        "qkv_bias": blocks.qkv_bias,
        "proj_bias": blocks.out_bias,
        "qk_norm": blocks.qk_norm == "layer",
        "init_values": blocks.layer_scale,
        "class_token": config.class_token,
        "reg_tokens": config.num_registers,
        "no_embed_class": config.num_positioned_prefix == 0,
        "pre_norm": config.embed_norm,
        "global_pool": names[config.pool],
        "fc_norm": config.pool != "first" and config.pool_norm == "after",
    }
    if blocks.activation not in ACTIVATIONS:
        raise UsageError(f'a timm folder cannot express activation = "{blocks.activation}"')
    read = vision_config_from_timm(args)
    lost = differences(
        canonical_vision(config), canonical_vision(read, pixels_of=config), path="model.vision"
    )
    if lost:
        raise UsageError(f"a timm folder cannot express {', '.join(lost)}; use ours")
    return args


def timm_links(config: VisionConfig, *, ours: str, theirs: str) -> list[Link]:
    """All tensors of a tower but its projection; `ours` and `theirs` stand before the names."""
    patch = f"{theirs}patch_embed.proj"
    final = "fc_norm" if config.pool != "first" and config.pool_norm == "after" else "norm"
    links = [
        patch_convolution(f"{ours}embed.patch.weight", f"{patch}.weight", config.patch_size),
        batched(f"{ours}embed.positional_embedding", f"{theirs}pos_embed"),
        *same_layer(f"{ours}head.norm", f"{theirs}{final}"),
    ]
    if config.patch_bias:
        links.append(same(f"{ours}embed.patch.bias", f"{patch}.bias"))
    if config.class_token:
        cls = reshaped(f"{ours}embed.class_embedding", f"{theirs}cls_token", (1, 1, -1))
        links.append(cls)
    if config.num_registers:
        links.append(batched(f"{ours}embed.registers", f"{theirs}reg_token"))
    if config.embed_norm:
        links += same_layer(f"{ours}embed.norm", f"{theirs}norm_pre")
    if config.pool == "attention":
        links += _pool_links(f"{ours}head.pool", f"{theirs}attn_pool")
    for layer in range(config.transformer.num_layers):
        block = f"{ours}transformer.blocks.{layer}"
        links += _block_links(block, f"{theirs}blocks.{layer}", config.transformer)
    return links


def _pool_links(ours: str, theirs: str) -> list[Link]:
    leaves = ("weight", "bias")
    return [
        reshaped(f"{ours}.query", f"{theirs}.latent", (1, 1, -1)),
        *same_layer(f"{ours}.q", f"{theirs}.q"),
        *(
            fused((f"{ours}.k.{leaf}", f"{ours}.v.{leaf}"), f"{theirs}.kv.{leaf}")
            for leaf in leaves
        ),
        *same_layer(f"{ours}.o", f"{theirs}.proj"),
        *same_layer(f"{ours}.norm", f"{theirs}.norm"),
        *same_layer(f"{ours}.feed_forward.up", f"{theirs}.mlp.fc1"),
        *same_layer(f"{ours}.feed_forward.down", f"{theirs}.mlp.fc2"),
    ]


def _block_links(ours: str, theirs: str, blocks: TransformerConfig) -> list[Link]:
    attention, ff = f"{ours}.attention", f"{ours}.feed_forward"
    links = [
        fused(tuple(f"{attention}.{part}.{leaf}" for part in "qkv"), f"{theirs}.attn.qkv.{leaf}")
        for leaf in (("weight", "bias") if blocks.qkv_bias else ("weight",))
    ]
    links += same_layer(f"{attention}.o", f"{theirs}.attn.proj", bias=blocks.out_bias)
    links += same_layer(f"{ff}.up", f"{theirs}.mlp.fc1", bias=blocks.ff_bias)
    links += same_layer(f"{ff}.down", f"{theirs}.mlp.fc2", bias=blocks.ff_bias)
    for number in (1, 2):
        links += same_layer(f"{ours}.norm{number}", f"{theirs}.norm{number}")
        if blocks.layer_scale is not None:
            links.append(same(f"{ours}.scale{number}.scale", f"{theirs}.ls{number}.gamma"))
    if blocks.qk_norm:
        links += same_layer(f"{attention}.q_norm", f"{theirs}.attn.q_norm")
        links += same_layer(f"{attention}.k_norm", f"{theirs}.attn.k_norm")
    return links
