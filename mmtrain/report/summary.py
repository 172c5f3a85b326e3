"""What a model is made of: a table of its parts, and a picture of its towers.

Both are read off the model's own modules, built without memory for the weights, so they cannot
tell anything but what would run.
"""

from dataclasses import dataclass, replace

import torch
from torch import nn

from mmtrain.models import Clip, ClipConfig, Decoder, DecoderConfig
from mmtrain.models.flops import clip_flops
from mmtrain.models.vqa import Vqa
from mmtrain.nn import Transformer, TransformerConfig
from mmtrain.settings.counted import counted


@dataclass(frozen=True, kw_only=True)
class Part:
    """One line of the summary."""

    name: str
    """Dotted, as in the state dict; equal blocks stand in one line, `blocks.0..11`."""
    depth: int
    """How far it is indented."""
    detail: str
    """Its kind and shapes."""
    num_parameters: int
    """Of all that the line stands for."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A model in numbers."""

    parts: list[Part]
    """In the order of the forward pass."""
    num_parameters: int
    """All of them."""
    image_flops: int
    """Forward FLOPs of an image."""
    text_flops: int
    """Forward FLOPs of a text at full context."""
    image_tokens: int
    """Tokens of an image, class token and registers included."""
    text_tokens: int
    """Tokens of a text at most."""

    @property
    def training_bytes(self) -> int:
        """fp32 weights, gradients and AdamW's two moments; activations come on top."""
        return 16 * self.num_parameters


def summarize(config: ClipConfig) -> Summary:
    """Build the model on the meta device and count it."""
    with torch.device("meta"):
        model = Clip(config)
    parts: list[Part] = []
    for name, tower in (("vision", model.vision), ("text", model.text)):
        parts += _tower(name, tower.config.transformer, tower)
    scalars = [n for n in ("logit_scale", "logit_bias") if getattr(model, n) is not None]
    parts.append(Part(name=" + ".join(scalars), depth=0, detail="", num_parameters=len(scalars)))
    flops = clip_flops(config)
    return Summary(
        parts=parts,
        num_parameters=sum(p.numel() for p in model.parameters()),
        image_flops=flops.image,
        text_flops=flops.text,
        image_tokens=config.vision.num_tokens,
        text_tokens=config.text.context_length,
    )


def decoder_parts(config: DecoderConfig) -> list[Part]:
    """The lines of a decoder, built on the meta device; the first stands for all of it."""
    with torch.device("meta"):
        return _tower("decoder", config.transformer, Decoder(config))


def vqa_parts(model: Vqa) -> list[Part]:
    """The lines of a model that answers: its towers, then its heads."""
    parts = _tower("vision", model.clip.vision.transformer, model.vision)
    if model.text is not None:
        parts += _tower("text", model.clip.text.transformer, model.text)
    for name in ("classify", "generate"):
        if (head := getattr(model, name)) is not None:
            parts += _head(name, head)
    return parts


def _head(name: str, head: nn.Module) -> list[Part]:
    parts = [_part(name, 0, _detail(head), head)]
    for child, module in head.named_children():
        label = f"{name}.{child}"
        if isinstance(module, Transformer):
            parts += _blocks(label, module.config, module)
        elif (blocks := dict(module.named_children()).get("transformer")) is not None:
            assert isinstance(blocks, Transformer)
            inside = _tower(label, blocks.config, module)
            parts += [replace(part, depth=part.depth + 1) for part in inside]
        elif count(module):
            parts.append(_part(label, 1, _detail(module), module))
            parts += _children(label, 2, module)
    return parts


def _tower(name: str, core: TransformerConfig, tower: nn.Module) -> list[Part]:
    """A tower, its children, and what is in them."""
    parts = [_part(name, 0, _tower_detail(core), tower)]
    for child, module in tower.named_children():
        if child == "transformer":
            parts += _blocks(f"{name}.transformer", core, module)
        else:
            parts.append(_part(f"{name}.{child}", 1, _detail(module), module))
            parts += _children(f"{name}.{child}", 2, module)
    return parts


def _blocks(name: str, core: TransformerConfig, stack: nn.Module) -> list[Part]:
    """All blocks in one line, and the inside of the first."""
    assert isinstance(stack.blocks, nn.ModuleDict)
    if not core.num_layers:
        return []
    first = stack.blocks["0"]
    label = f"{name}.blocks.0..{core.num_layers - 1}" if core.num_layers > 1 else f"{name}.blocks.0"
    parts = [_part(label, 1, f"{core.num_layers} x {_block_detail(core)}", stack)]
    for child, module in first.named_children():
        if count(module):
            parts.append(_part(f"each.{child}", 2, _detail(module), module))
            parts += _children(f"each.{child}", 3, module)
    return parts


def _children(name: str, depth: int, module: nn.Module) -> list[Part]:
    parts: list[Part] = []
    for child, inner in module.named_children():
        if count(inner):
            parts.append(_part(f"{name}.{child}", depth, _detail(inner), inner))
    for child, parameter in module.named_parameters(recurse=False):
        shape = " x ".join(str(size) for size in parameter.shape)
        parts.append(
            Part(
                name=f"{name}.{child}",
                depth=depth,
                detail=f"[{shape}]",
                num_parameters=parameter.numel(),
            )
        )
    return parts


def count(module: nn.Module) -> int:
    """Parameters of a module."""
    return sum(p.numel() for p in module.parameters())


def _part(name: str, depth: int, detail: str, module: nn.Module) -> Part:
    return Part(name=name, depth=depth, detail=detail, num_parameters=count(module))


def _detail(module: nn.Module) -> str:
    kind = type(module).__name__
    if isinstance(module, nn.Linear):
        bias = "" if module.bias is not None else ", no bias"
        return f"Linear {module.in_features} -> {module.out_features}{bias}"
    if isinstance(module, nn.Embedding):
        return f"Embedding {module.num_embeddings} x {module.embedding_dim}"
    return kind


def _tower_detail(core: TransformerConfig) -> str:
    if not core.num_layers:
        return f"a trunk, width {core.dim}"
    layers = counted(core.num_layers, "layer")
    return f"{layers}, width {core.dim}, {counted(core.num_heads, 'head')}, {core.mask} mask"


def _block_detail(core: TransformerConfig) -> str:
    groups = "" if core.kv_heads == core.num_heads else f" ({core.kv_heads} kv)"
    heads = f"{core.num_heads}{groups} heads of {core.head_size}"
    return f"{core.norm_order}-{core.norm}, {heads}, {core.activation} {core.hidden_dim}"


def format_count(value: float) -> str:
    """5.9 M, 14.8 G: three digits and a unit."""
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.3g} {unit}"
    return f"{value:.0f}"
