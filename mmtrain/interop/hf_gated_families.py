"""The decoders since Llama, an entry each: what a family's config leaves open, what it fixes.

https://github.com/huggingface/transformers: models/llama (SmolLM2 too), qwen2 (Qwen2.5 too), qwen3,
gemma, gemma2, gemma3, olmo2.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

GatedFamily = Literal["llama", "qwen2", "qwen3", "olmo2", "gemma", "gemma2", "gemma3_text"]


@dataclass(frozen=True, kw_only=True)
class Gated:
    """A family: RMSNorm, rotary positions, grouped queries, a gated feed-forward."""

    architecture: str
    """The class of the whole model."""
    sizes: Mapping[str, int | float]
    """What their config has for a field of `SIZES` that a file leaves out."""
    tied: bool
    """Whether the head is tied where a file does not say."""
    blocks: Mapping[str, Any]
    """Fields of our `TransformerConfig` that are always so."""
    decoder: Mapping[str, Any] = field(default_factory=dict)
    """Fields of our `DecoderConfig` that are always so."""
    only: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Their fields with the values that we compute; the first is that of a file without it."""
    switches: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Their switches, and the fields of our blocks that they are."""
    numbers: Mapping[str, tuple[str, float | None]] = field(default_factory=dict)
    """Their numbers that may be null: ours, and what a file without it means."""
    query_scalar: float | None = None
    """What `query_pre_attn_scalar`, one over the scores' squared scale, is without it. None: the
    family has no such field."""
    windows: Literal["switch", "pattern"] | None = None
    """How a file without `layer_types` says which layers see a window: all behind
    `max_window_layers` with `use_sliding_window`, or all but every n-th. None: none does."""
    pattern: int = 1
    """That n."""
    local_rope: bool = False
    """Local layers have rotary frequencies of their own."""
    norms: Mapping[str, str] = field(default_factory=lambda: _PRE)
    """The norms of a layer, ours and theirs."""


SIZES = {
    "vocab_size": ("vocab_size", int),
    "max_position_embeddings": ("context_length", int),
    "hidden_size": ("dim", int),
    "intermediate_size": ("ff_dim", int),
    "num_hidden_layers": ("num_layers", int),
    "num_attention_heads": ("num_heads", int),
    "num_key_value_heads": ("num_kv_heads", int),
    "head_dim": ("head_dim", int),
    "rms_norm_eps": ("norm_eps", float),
}
"""Their fields of all families: ours, and the type."""

_PRE = {"norm1": "input_layernorm", "norm2": "post_attention_layernorm"}
_BRANCH = {"norm1": "post_attention_layernorm", "norm2": "post_feedforward_layernorm"}
_SANDWICH = {
    "norm1": "input_layernorm",
    "norm1_behind": "post_attention_layernorm",
    "norm2": "pre_feedforward_layernorm",
    "norm2_behind": "post_feedforward_layernorm",
}
_SWIGLU = {"activation": "swiglu", "norm": "rms", "qkv_bias": False, "out_bias": False}
_SWIGLU |= {"ff_bias": False}
_GEGLU = _SWIGLU | {"activation": "geglu_tanh", "norm": "gemma_rms"}
_ATTENTION_BIAS = {"attention_bias": ("qkv_bias", "out_bias")}
# Older files say "gelu" and mean the approximation by tanh.
_GELU_TANH = {
    "hidden_activation": ("gelu_pytorch_tanh",),
    "hidden_act": ("gelu_pytorch_tanh", "gelu"),
    "use_bidirectional_attention": (False,),
}
_LLAMA_7B = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
    "vocab_size": 32000,
    "rms_norm_eps": 1e-6,
}
_QWEN = _LLAMA_7B | {
    "intermediate_size": 22016,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "vocab_size": 151936,
}
_GEMMA = _LLAMA_7B | {
    "hidden_size": 3072,
    "intermediate_size": 24576,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "head_dim": 256,
    "max_position_embeddings": 8192,
    "vocab_size": 256000,
}
_GEMMA_2 = _GEMMA | {
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
}

GATED: dict[GatedFamily, Gated] = {
    "llama": Gated(
        architecture="LlamaForCausalLM",
        sizes=_LLAMA_7B,
        tied=False,
        blocks=_SWIGLU,
        # pretraining_tp is a way to sum, not another sum.
        only={"hidden_act": ("silu",), "pretraining_tp": (1, *range(2, 65))},
        switches=_ATTENTION_BIAS | {"mlp_bias": ("ff_bias",)},
    ),
    "qwen2": Gated(
        architecture="Qwen2ForCausalLM",
        sizes=_QWEN,
        tied=False,
        blocks=_SWIGLU | {"qkv_bias": True},
        only={"hidden_act": ("silu",)},
        windows="switch",
    ),
    "qwen3": Gated(
        architecture="Qwen3ForCausalLM",
        sizes=_QWEN | {"head_dim": 128},
        tied=False,
        blocks=_SWIGLU | {"qk_norm": "rms"},
        only={"hidden_act": ("silu",)},
        switches=_ATTENTION_BIAS,
        windows="switch",
    ),
    "olmo2": Gated(
        architecture="Olmo2ForCausalLM",
        sizes=_LLAMA_7B | {"vocab_size": 50304, "rms_norm_eps": 1e-5},
        tied=False,
        blocks=_SWIGLU | {"norm_order": "branch", "qk_norm": "rms", "qk_norm_over": "heads"},
        only={"hidden_act": ("silu",)},
        switches=_ATTENTION_BIAS,
        norms=_BRANCH,
    ),
    "gemma": Gated(
        architecture="GemmaForCausalLM",
        sizes=_GEMMA,
        tied=True,
        blocks=_GEGLU,
        decoder={"embed_scale": True},
        only=_GELU_TANH,
        switches=_ATTENTION_BIAS,
    ),
    "gemma2": Gated(
        architecture="Gemma2ForCausalLM",
        sizes=_GEMMA_2,
        tied=True,
        blocks=_GEGLU | {"norm_order": "sandwich"},
        decoder={"embed_scale": True},
        only=_GELU_TANH,
        switches=_ATTENTION_BIAS,
        numbers={
            "attn_logit_softcapping": ("attention_cap", 50.0),
            "final_logit_softcapping": ("logit_cap", 30.0),
        },
        query_scalar=256,
        windows="pattern",
        pattern=2,
        norms=_SANDWICH,
    ),
    "gemma3_text": Gated(
        architecture="Gemma3ForCausalLM",
        sizes=_GEMMA_2 | {"vocab_size": 262208, "max_position_embeddings": 131072},
        tied=True,
        blocks=_GEGLU | {"norm_order": "sandwich", "qk_norm": "gemma_rms"},
        decoder={"embed_scale": True},
        # Theirs does not read the scores' cap.
        only=_GELU_TANH | {"attn_logit_softcapping": (None,)},
        switches=_ATTENTION_BIAS,
        numbers={"final_logit_softcapping": ("logit_cap", None)},
        query_scalar=256,
        windows="pattern",
        pattern=6,
        local_rope=True,
        norms=_SANDWICH,
    ),
}
"""By the config's model_type."""
