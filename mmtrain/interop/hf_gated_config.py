"""Hugging Face's configs of Llama and what came after it and our config, both ways.

What differs between families is in their table, interop/hf_gated_families.py.
"""

from dataclasses import fields as dataclass_fields
from typing import Any

from mmtrain.errors import UsageError
from mmtrain.interop.foreign_config import ForeignConfig
from mmtrain.interop.hf_decoder_rope import (
    layered_rope_from_hf,
    layered_rope_to_hf,
    rope_from_hf,
    rope_to_hf,
)
from mmtrain.interop.hf_gated_families import GATED, SIZES, Gated, GatedFamily
from mmtrain.models import DecoderConfig
from mmtrain.nn import TransformerConfig

_FULL, _LOCAL = "full_attention", "sliding_attention"
_BLOCKS = {field.name for field in dataclass_fields(TransformerConfig)}


def gated_from_hf(fields: ForeignConfig, name: GatedFamily) -> DecoderConfig:
    """Our config of such a decoder's.

    Raises:
        UsageError: a field that we cannot compute.
        ValueError: a shape that our config refuses.
    """
    family = GATED[name]
    tied = fields.only("tie_word_embeddings", family.tied, not family.tied)
    for theirs, allowed in family.only.items():
        fields.only(theirs, *allowed)
    ours = dict(family.blocks) | dict(family.decoder)
    for theirs, switched in family.switches.items():
        ours |= dict.fromkeys(switched, fields.only(theirs, False, True))
    for theirs, (our, kind) in SIZES.items():
        ours[our] = fields.take(theirs, kind, family.sizes.get(theirs))
    if ours["head_dim"] is not None and ours["head_dim"] * ours["num_heads"] == ours["dim"]:
        ours["head_dim"] = None  # the usual size, said or not
    head_size = ours["head_dim"] or ours["dim"] // ours["num_heads"]
    for theirs, (our, without) in family.numbers.items():
        ours[our] = fields.take_even_null(theirs, float, without)
    if family.query_scalar is not None:
        scalar = fields.take("query_pre_attn_scalar", float, family.query_scalar)
        ours["attention_scale"] = None if scalar == head_size else scalar**-0.5
    if family.windows is not None:
        ours |= _windows_from_hf(fields, family, ours["num_layers"])
    ours |= layered_rope_from_hf(fields) if family.local_rope else rope_from_hf(fields)
    if ours.get("local_window") is None:
        ours.pop("local_rope_theta", None)  # of no layer
    blocks = {our: ours.pop(our) for our in list(ours) if our in _BLOCKS}
    return DecoderConfig(
        transformer=TransformerConfig(**blocks, mask="causal"), **ours, tied_head=tied
    )


def gated_to_hf(config: DecoderConfig, name: GatedFamily) -> dict[str, Any]:
    """config.json of the model as one of the family; what the family lacks is left out."""
    family, blocks = GATED[name], config.transformer
    values = {field: getattr(blocks, field) for field in _BLOCKS}
    values |= {"num_kv_heads": blocks.kv_heads, "head_dim": blocks.head_size}
    values |= {"ff_dim": blocks.hidden_dim}
    values |= {"vocab_size": config.vocab_size, "context_length": config.context_length}
    data: dict[str, Any] = {"model_type": name, "architectures": [family.architecture]}
    data |= {theirs: values[ours] for theirs, (ours, _) in SIZES.items()}
    data |= {theirs: allowed[0] for theirs, allowed in family.only.items()}
    data |= {theirs: values[ours[-1]] for theirs, ours in family.switches.items()}
    values |= {"logit_cap": config.logit_cap}
    data |= {theirs: values[ours] for theirs, (ours, _) in family.numbers.items()}
    if family.query_scalar is not None:
        scale = blocks.attention_scale
        data["query_pre_attn_scalar"] = blocks.head_size if scale is None else round(scale**-2)
    if family.windows is not None:
        data |= _windows_to_hf(blocks, family)
    data |= layered_rope_to_hf(config) if family.local_rope else rope_to_hf(config)
    return data | {"tie_word_embeddings": config.tied_head}


def _windows_from_hf(fields: ForeignConfig, family: Gated, num_layers: int) -> dict[str, Any]:
    """Which layers see how much."""
    window = fields.take_even_null("sliding_window", int, 4096)
    if family.windows == "switch":
        first = fields.take("max_window_layers", int, 28)
        window = window if fields.only("use_sliding_window", False, True) else None
        is_local = [layer >= first and window is not None for layer in range(num_layers)]
    else:
        every = fields.take("sliding_window_pattern", int, family.pattern)
        every = fields.take("_sliding_window_pattern", int, every)
        is_local = [(layer + 1) % every != 0 for layer in range(num_layers)]
    types = fields.take("layer_types", list, None)
    if types is not None:
        if len(types) != num_layers or set(types) - {_FULL, _LOCAL}:
            raise UsageError(
                f"{fields.source}: layer_types = {types} is not supported; we read {num_layers} "
                f"times {_FULL} or {_LOCAL}"
            )
        is_local = [kind == _LOCAL for kind in types]
    if not any(is_local):
        return {"local_window": None}
    if window is None:
        raise UsageError(f"{fields.source}: layers are {_LOCAL}, but sliding_window says no window")
    layers = tuple(layer for layer in range(num_layers) if is_local[layer])
    return {"local_window": window, "local_layers": layers}


def _windows_to_hf(blocks: TransformerConfig, family: Gated) -> dict[str, Any]:
    local = [blocks.is_local(layer) for layer in range(blocks.num_layers)]
    data: dict[str, Any] = {"layer_types": [_LOCAL if one else _FULL for one in local]}
    if family.windows == "switch":
        data |= {"use_sliding_window": any(local), "sliding_window": blocks.local_window}
        data["max_window_layers"] = local.index(True) if any(local) else blocks.num_layers
    elif blocks.local_window is not None:
        data["sliding_window"] = blocks.local_window
    return data
