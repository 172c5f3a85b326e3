"""Rotary frequencies in Hugging Face's configs of decoders, both ways."""

from typing import Any

from mmtrain.interop.foreign_config import ForeignConfig
from mmtrain.models import DecoderConfig
from mmtrain.nn.rope import RopeScaling

SCALINGS = ("linear", "llama3")
"""How rotary frequencies may be scaled; yarn, dynamic and longrope depend on more than that."""

_SCALING = ("rope_type", "type", "factor", "low_freq_factor", "high_freq_factor")
_SCALING += ("original_max_position_embeddings", "partial_rotary_factor")


def rope_from_hf(fields: ForeignConfig) -> dict[str, Any]:
    """Base and scaling of the frequencies, from `rope_parameters` or the forms of older files.

    Where both forms are there the older counts, as in transformers.
    """
    flat = fields.take("rope_theta", float, 10000.0)
    is_old = fields.holds("rope_scaling")
    old, new = fields.section("rope_scaling"), fields.section("rope_parameters")
    section, other = (old, new) if is_old else (new, old)
    other.ignore(*_SCALING)
    theta = other.take("rope_theta", float, flat)
    other.close()
    return _rope(section, theta)


def layered_rope_from_hf(fields: ForeignConfig) -> dict[str, Any]:
    """The same where local layers have a base of their own (Gemma 3): by layer's kind in
    `rope_parameters`, or the forms of older files."""
    flat = fields.take("rope_theta", float, 1e6)
    local = fields.take("rope_local_base_freq", float, 1e4)
    is_old = fields.holds("rope_scaling")
    old, new = fields.section("rope_scaling"), fields.section("rope_parameters")
    full, sliding = new.section("full_attention"), new.section("sliding_attention")
    new.close()
    theta = full.take("rope_theta", float, flat)
    if is_old:  # laid over the newer form
        full.ignore(*_SCALING)
    rope = _rope(old if is_old else full, theta)
    full.close()
    sliding.only("rope_type", "default")
    local = sliding.take("rope_theta", float, local)
    sliding.close()
    same = local == rope["rope_theta"] and "rope_scaling" not in rope
    return rope | {"local_rope_theta": None if same else local}


def _rope(section: ForeignConfig, theta: float) -> dict[str, Any]:
    """Of one section; `theta` where it has none."""
    theta = section.take("rope_theta", float, theta)
    kind = section.only("rope_type", None, "default", *SCALINGS)
    kind = section.only("type", *((kind,) if kind else ("default", *SCALINGS)))
    section.only("partial_rotary_factor", 1.0)
    if kind == "default":
        section.close()
        return {"rope_theta": theta}
    scaling: dict[str, Any] = {"kind": kind, "factor": section.take("factor", float)}
    if kind == "llama3":
        for name in ("low_freq_factor", "high_freq_factor"):
            scaling[name] = section.take(name, float)
        scaling["original_context"] = section.take("original_max_position_embeddings", int)
    else:
        section.ignore("original_max_position_embeddings")
    section.close()
    return {"rope_theta": theta, "rope_scaling": RopeScaling(**scaling)}


def rope_to_hf(config: DecoderConfig) -> dict[str, Any]:
    """Their fields in both forms, for old and new readers."""
    section = _section(config)
    data = {"rope_theta": config.rope_theta, "rope_parameters": section}
    return data if config.rope_scaling is None else data | {"rope_scaling": section}


def layered_rope_to_hf(config: DecoderConfig) -> dict[str, Any]:
    """The same where local layers have a base of their own."""
    data = rope_to_hf(config)
    local = config.rope_theta if config.local_rope_theta is None else config.local_rope_theta
    sliding = {"rope_type": "default", "rope_theta": local}
    by_layer = {"full_attention": data["rope_parameters"], "sliding_attention": sliding}
    return data | {"rope_local_base_freq": local, "rope_parameters": by_layer}


def _section(config: DecoderConfig) -> dict[str, Any]:
    scaling = config.rope_scaling
    if scaling is None:
        return {"rope_type": "default", "rope_theta": config.rope_theta}
    fields = {"rope_type": scaling.kind, "rope_theta": config.rope_theta, "factor": scaling.factor}
    if scaling.kind == "llama3":
        fields |= {
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_context,
        }
    return fields
