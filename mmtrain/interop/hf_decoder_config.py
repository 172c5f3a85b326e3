"""Hugging Face's configs of GPT-1, GPT-2, Llama, Qwen2 and Gemma and our config, both ways.

https://github.com/huggingface/transformers: models/openai, gpt2, llama (SmolLM2 too), qwen2, gemma.
"""

from dataclasses import replace
from typing import Any, Literal

from mmtrain.errors import UsageError
from mmtrain.interop.canonical import canonical_blocks, differences, show
from mmtrain.interop.foreign_config import ForeignConfig
from mmtrain.interop.hf_clip_config import GENERIC
from mmtrain.models import DecoderConfig
from mmtrain.nn import TransformerConfig
from mmtrain.nn.feed_forward import Activation
from mmtrain.nn.rope import RopeScaling

Family = Literal["openai-gpt", "gpt2", "llama", "qwen2", "gemma"]

CLASSES: dict[Family, str] = {
    "openai-gpt": "OpenAIGPTLMHeadModel",
    "gpt2": "GPT2LMHeadModel",
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "gemma": "GemmaForCausalLM",
}
"""By the config's model_type."""

SCALINGS = ("linear", "llama3")
"""How rotary frequencies may be scaled; yarn, dynamic and longrope depend on more than that."""

GPT_ACTIVATIONS: dict[str, Activation] = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
    "relu": "relu",
}
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
    if kind not in CLASSES:
        raise UsageError(
            f"{source}: model_type = {show(kind)} is no decoder that we read; we read "
            f"{', '.join(CLASSES)}"
        )
    return kind


def decoder_config_from_hf(data: dict[str, Any], *, source: str = "config.json") -> DecoderConfig:
    """Our config of a config.json.

    Raises:
        UsageError: a field that is unknown, or that we cannot compute.
    """
    family = decoder_family(data, source=source)
    fields = ForeignConfig(data, source=source)
    tied = fields.only("tie_word_embeddings", family not in ("llama", "qwen2"), True, False)
    fields.ignore(*GENERIC.split(), *NO_EFFECT.split())
    build = {"openai-gpt": _gpt1, "gpt2": _gpt2, "llama": _llama, "qwen2": _qwen2, "gemma": _gemma}
    try:
        config = build[family](fields, tied)
    except UsageError:
        raise
    except ValueError as error:  # a shape that our config refuses
        raise UsageError(f"{source}: {error}") from error
    fields.close()
    return config


def _gpt1(fields: ForeignConfig, tied: bool) -> DecoderConfig:
    # Its "gelu" is the approximation by tanh.
    activation = {"gelu": "gelu_tanh", "relu": "relu"}
    return DecoderConfig(
        transformer=_gpt_blocks(
            fields, activation=activation[fields.only("afn", *activation)], post=True
        ),
        vocab_size=fields.take("vocab_size", int, 40478),
        context_length=fields.take("n_positions", int, 512),
        positions="learned",
        final_norm=False,
        tied_head=tied,
    )


def _gpt2(fields: ForeignConfig, tied: bool) -> DecoderConfig:
    fields.only("scale_attn_weights", True)
    fields.only("scale_attn_by_inverse_layer_idx", False)
    activation = GPT_ACTIVATIONS[fields.only("activation_function", *GPT_ACTIVATIONS)]
    return DecoderConfig(
        transformer=_gpt_blocks(fields, activation=activation, post=False),
        vocab_size=fields.take("vocab_size", int, 50257),
        context_length=fields.take("n_positions", int, 1024),
        positions="learned",
        tied_head=tied,
    )


def _gpt_blocks(fields: ForeignConfig, *, activation: Any, post: bool) -> TransformerConfig:
    return TransformerConfig(
        dim=fields.take("n_embd", int, 768),
        num_layers=fields.take("n_layer", int, 12),
        num_heads=fields.take("n_head", int, 12),
        ff_dim=fields.take("n_inner", int, None),
        activation=activation,
        norm_eps=fields.take("layer_norm_epsilon", float, 1e-5),
        norm_order="post" if post else "pre",
        mask="causal",
    )


def _llama(fields: ForeignConfig, tied: bool) -> DecoderConfig:
    fields.only("pretraining_tp", 1, *range(2, 65))  # a way to sum, not another sum
    bias = fields.only("attention_bias", False, True)
    return _gated(
        fields,
        tied,
        sizes={"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008},
        num_layers=32,
        num_heads=32,
        context=2048,
        activation=_hidden_act(fields, "silu", "swiglu"),
        qkv_bias=bias,
        out_bias=bias,
        ff_bias=fields.only("mlp_bias", False, True),
    )


def _qwen2(fields: ForeignConfig, tied: bool) -> DecoderConfig:
    fields.only("use_sliding_window", False)
    fields.ignore("sliding_window")  # nothing without the switch
    layers = fields.take("layer_types", list, [])
    if set(layers) - {"full_attention"}:
        raise UsageError(
            f"{fields.source}: layer_types = {layers} is not supported; we read full_attention"
        )
    return _gated(
        fields,
        tied,
        sizes={"vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 22016},
        num_layers=32,
        num_heads=32,
        kv_heads=32,
        context=32768,
        activation=_hidden_act(fields, "silu", "swiglu"),
        qkv_bias=True,
        out_bias=False,
        ff_bias=False,
    )


def _gemma(fields: ForeignConfig, tied: bool) -> DecoderConfig:
    fields.only("use_bidirectional_attention", False)
    bias = fields.only("attention_bias", False, True)
    # Older files say "gelu" and mean the approximation by tanh.
    fields.only("hidden_activation", "gelu_pytorch_tanh")
    fields.only("hidden_act", "gelu_pytorch_tanh", "gelu")
    return _gated(
        fields,
        tied,
        sizes={"vocab_size": 256000, "hidden_size": 3072, "intermediate_size": 24576},
        num_layers=28,
        num_heads=16,
        kv_heads=16,
        head_dim=256,
        context=8192,
        activation="geglu_tanh",
        qkv_bias=bias,
        out_bias=bias,
        ff_bias=False,
        gemma=True,
    )


def _hidden_act(fields: ForeignConfig, theirs: str, ours: Activation) -> Activation:
    fields.only("hidden_act", theirs)
    return ours


def _gated(
    fields: ForeignConfig,
    tied: bool,
    *,
    sizes: dict[str, int],
    num_layers: int,
    num_heads: int,
    context: int,
    activation: Activation,
    qkv_bias: bool,
    out_bias: bool,
    ff_bias: bool,
    kv_heads: int | None = None,
    head_dim: int | None = None,
    gemma: bool = False,
) -> DecoderConfig:
    """The common shape of Llama and what came after it."""
    taken = {name: fields.take(name, int, default) for name, default in sizes.items()}
    heads = fields.take("num_attention_heads", int, num_heads)
    head_dim = fields.take("head_dim", int, head_dim)
    if head_dim is not None and head_dim * heads == taken["hidden_size"]:
        head_dim = None  # the usual size, said or not
    return DecoderConfig(
        transformer=TransformerConfig(
            dim=taken["hidden_size"],
            num_layers=fields.take("num_hidden_layers", int, num_layers),
            num_heads=heads,
            num_kv_heads=fields.take("num_key_value_heads", int, kv_heads),
            head_dim=head_dim,
            ff_dim=taken["intermediate_size"],
            activation=activation,
            norm="gemma_rms" if gemma else "rms",
            norm_eps=fields.take("rms_norm_eps", float, 1e-6),
            qkv_bias=qkv_bias,
            out_bias=out_bias,
            ff_bias=ff_bias,
            mask="causal",
        ),
        vocab_size=taken["vocab_size"],
        context_length=fields.take("max_position_embeddings", int, context),
        **_rope(fields),
        embed_scale=gemma,
        tied_head=tied,
    )


def _rope(fields: ForeignConfig) -> dict[str, Any]:
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


def decoder_config_to_hf(config: DecoderConfig, *, family: Family | None = None) -> dict[str, Any]:
    """config.json of a decoder.

    Args:
        config: our model.
        family: which of their models; None takes the first that computes the same.

    Raises:
        UsageError: none does, naming the fields that the nearest cannot express.
    """
    lost: dict[str, list[str]] = {}
    for name in CLASSES if family is None else (family,):
        data = _gpt_fields(config, name) if "gpt" in name else _gated_fields(config, name)
        read = decoder_config_from_hf(data)
        lost[name] = differences(_canonical(config), _canonical(read))
        if not lost[name]:
            return data
    nearest = min(lost, key=lambda name: len(lost[name]))
    raise UsageError(f"Hugging Face's form ({nearest}) cannot express {', '.join(lost[nearest])}")


def _canonical(config: DecoderConfig) -> DecoderConfig:
    """The config without what no forward pass sees, under the one mask that their files mean."""
    return replace(
        config,
        transformer=replace(canonical_blocks(config.transformer), mask="causal"),
        rope_theta=config.rope_theta if config.positions == "rope" else 10000.0,
        rope_scaling=config.rope_scaling if config.positions == "rope" else None,
    )


def _gpt_fields(config: DecoderConfig, family: Family) -> dict[str, Any]:
    blocks = config.transformer
    data = {
        "model_type": family,
        "architectures": [CLASSES[family]],
        "vocab_size": config.vocab_size,
        "n_positions": config.context_length,
        "n_embd": blocks.dim,
        "n_layer": blocks.num_layers,
        "n_head": blocks.num_heads,
        "layer_norm_epsilon": blocks.norm_eps,
        "tie_word_embeddings": config.tied_head,
    }
    if family == "openai-gpt":
        return data | {"afn": "relu" if blocks.activation == "relu" else "gelu"}
    names = {ours: theirs for theirs, ours in reversed(GPT_ACTIVATIONS.items())}
    return data | {
        "n_inner": None if blocks.hidden_dim == 4 * blocks.dim else blocks.hidden_dim,
        "activation_function": names.get(blocks.activation, "gelu_new"),
    }


def _gated_fields(config: DecoderConfig, family: Family) -> dict[str, Any]:
    blocks = config.transformer
    data = {
        "model_type": family,
        "architectures": [CLASSES[family]],
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.context_length,
        "hidden_size": blocks.dim,
        "intermediate_size": blocks.hidden_dim,
        "num_hidden_layers": blocks.num_layers,
        "num_attention_heads": blocks.num_heads,
        "num_key_value_heads": blocks.kv_heads,
        "head_dim": blocks.head_size,
        "hidden_act": "gelu_pytorch_tanh" if family == "gemma" else "silu",
        "rms_norm_eps": blocks.norm_eps,
        # Both forms, for old and new readers.
        "rope_theta": config.rope_theta,
        "rope_parameters": _rope_to(config),
        "tie_word_embeddings": config.tied_head,
    }
    if config.rope_scaling is not None:
        data["rope_scaling"] = _rope_to(config)
    if family != "qwen2":
        data |= {"attention_bias": blocks.out_bias}
    if family == "llama":
        data |= {"mlp_bias": blocks.ff_bias}
    return data


def _rope_to(config: DecoderConfig) -> dict[str, Any]:
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
