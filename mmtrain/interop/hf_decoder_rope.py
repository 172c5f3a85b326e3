"""Rotary frequencies in Hugging Face's configs of decoders, both ways."""

from typing import Any

from mmtrain.interop.foreign_config import ForeignConfig
from mmtrain.models import DecoderConfig
from mmtrain.nn.rope import RopeScaling

SCALINGS = ("linear", "llama3")
"""How rotary frequencies may be scaled; yarn, dynamic and longrope depend on more than that."""


def rope_from_hf(fields: ForeignConfig) -> dict[str, Any]:
    """Base and scaling of the frequencies, from `rope_parameters` or the forms of older files.

    Where both forms are there the older counts, as in transformers.
    """
    flat = fields.take("rope_theta", float, 10000.0)
    is_old = fields.holds("rope_scaling")
    old, new = fields.section("rope_scaling"), fields.section("rope_parameters")
    section, other = (old, new) if is_old else (new, old)
    other.ignore("rope_type", "type", "factor", "low_freq_factor", "high_freq_factor")
    other.ignore("original_max_position_embeddings", "partial_rotary_factor")
    theta = other.take("rope_theta", float, flat)
    other.close()
    theta = section.take("rope_theta", float, theta)
    kind = section.only("rope_type", None, "default", *SCALINGS)
    kind = section.only("type", kind or "default", "default", *SCALINGS)
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
    """The section `rope_parameters`."""
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
