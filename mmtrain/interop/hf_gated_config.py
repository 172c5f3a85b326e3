"""Hugging Face's configs of Llama and what came after it and our config, both ways.

What differs between families is in their table, interop/hf_gated_families.py.
"""

from dataclasses import fields as dataclass_fields
from typing import Any

from mmtrain.errors import UsageError
from mmtrain.interop.foreign_config import ForeignConfig
from mmtrain.interop.hf_decoder_rope import rope_from_hf, rope_to_hf
from mmtrain.interop.hf_gated_families import GATED, SIZES, GatedFamily
from mmtrain.models import DecoderConfig
from mmtrain.nn import TransformerConfig

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
    if family.windows:
        _refuse_windows(fields)
    blocks = {our: ours.pop(our) for our in list(ours) if our in _BLOCKS}
    return DecoderConfig(
        transformer=TransformerConfig(**blocks, mask="causal"),
        **ours,
        **rope_from_hf(fields),
        tied_head=tied,
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
    # Both forms, for old and new readers.
    data |= {"rope_theta": config.rope_theta, "rope_parameters": rope_to_hf(config)}
    if config.rope_scaling is not None:
        data["rope_scaling"] = rope_to_hf(config)
    return data | {"tie_word_embeddings": config.tied_head}


def _refuse_windows(fields: ForeignConfig) -> None:
    fields.only("use_sliding_window", False)
    fields.ignore("sliding_window")  # nothing without the switch
    layers = fields.take("layer_types", list, [])
    if set(layers) - {"full_attention"}:
        raise UsageError(
            f"{fields.source}: layer_types = {layers} is not supported; we read full_attention"
        )
