"""Hugging Face's configs of decoders and our config, both ways: GPT-1, GPT-2, Llama and later."""

from dataclasses import replace
from typing import Any

from mmtrain.errors import UsageError
from mmtrain.interop.canonical import canonical_blocks, differences, show
from mmtrain.interop.foreign_config import ForeignConfig, refusing
from mmtrain.interop.hf_clip_config import GENERIC
from mmtrain.interop.hf_gated_config import gated_from_hf, gated_to_hf
from mmtrain.interop.hf_gated_families import GATED, GatedFamily
from mmtrain.interop.hf_gpt_config import GPT_CLASSES, GptFamily, gpt_from_hf, gpt_to_hf
from mmtrain.models import DecoderConfig

Family = GptFamily | GatedFamily

FAMILIES: tuple[Family, ...] = (*GPT_CLASSES, *GATED)
"""By the config's model_type."""

NO_EFFECT = (
    "summary_type summary_use_proj summary_activation summary_proj_to_labels summary_first_dropout "
    "attn_pdrop embd_pdrop resid_pdrop use_cache reorder_and_upcast_attn n_ctx n_special "
    "predict_special_tokens max_window_layers is_llama_config rope_interleaved "
    "transformers.js_config eos_token_id"
)
"""Fields that do not touch what a trained decoder computes."""


def decoder_family(data: Any, *, source: str) -> Family:
    """Which of their models a config.json is of.

    Raises:
        UsageError: none that we read.
    """
    kind = data.get("model_type") if isinstance(data, dict) else None
    if kind not in FAMILIES:
        raise UsageError(
            f"{source}: model_type = {show(kind)} is no decoder that we read; we read "
            f"{', '.join(FAMILIES)}"
        )
    return kind


def decoder_config_from_hf(data: dict[str, Any], *, source: str = "config.json") -> DecoderConfig:
    """Our config of a config.json.

    Raises:
        UsageError: a field that is unknown, or that we cannot compute.
    """
    family = decoder_family(data, source=source)
    fields = ForeignConfig(data, source=source)
    with refusing(source):
        config = (
            gpt_from_hf(fields, family)
            if family == "openai-gpt" or family == "gpt2"
            else gated_from_hf(fields, family)
        )
    fields.ignore(*GENERIC.split(), *NO_EFFECT.split())
    fields.close()
    return config


def decoder_config_to_hf(config: DecoderConfig, *, family: Family | None = None) -> dict[str, Any]:
    """config.json of a decoder.

    Args:
        config: our model.
        family: which of their models; None takes the first that computes the same.

    Raises:
        UsageError: none does, naming the fields that the nearest cannot express.
    """
    lost: dict[str, list[str]] = {}
    for name in FAMILIES if family is None else (family,):
        data = (
            gpt_to_hf(config, name)
            if name == "openai-gpt" or name == "gpt2"
            else gated_to_hf(config, name)
        )
        read = decoder_config_from_hf(data)
        lost[name] = differences(_canonical(config), _canonical(read))
        if not lost[name]:
            return data
    nearest = min(lost, key=lambda name: len(lost[name]))
    raise UsageError(f"Hugging Face's form ({nearest}) cannot express {', '.join(lost[nearest])}")


def _canonical(config: DecoderConfig) -> DecoderConfig:
    """The config without what no forward pass sees, under the one mask that their files mean."""
    ropes = {"rope_theta": 10000.0, "rope_scaling": None, "local_rope_theta": None}
    if config.positions == "rope":
        local, is_plain = config.local_rope_theta, config.rope_scaling is None
        local = None if is_plain and local == config.rope_theta else local
        ropes = {"rope_theta": config.rope_theta, "rope_scaling": config.rope_scaling}
        ropes["local_rope_theta"] = local
    blocks = replace(canonical_blocks(config.transformer), mask="causal")
    return replace(config, transformer=blocks, **ropes)
