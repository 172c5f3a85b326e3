"""The decoders since Llama, an entry each: what a family's config leaves open, what it fixes.

https://github.com/huggingface/transformers: models/llama (SmolLM2 too), qwen2, gemma.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

GatedFamily = Literal["llama", "qwen2", "gemma"]


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
    windows: bool = False
    """Layers may see a window, which we do not compute."""


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

_SWIGLU = {"activation": "swiglu", "norm": "rms", "qkv_bias": False, "out_bias": False}
_SWIGLU |= {"ff_bias": False}
_GEMMA = _SWIGLU | {"activation": "geglu_tanh", "norm": "gemma_rms"}
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

GATED: dict[GatedFamily, Gated] = {
    "llama": Gated(
        architecture="LlamaForCausalLM",
        sizes=_LLAMA_7B,
        tied=False,
        blocks=_SWIGLU,
        # pretraining_tp is a way to sum, not another sum.
        only={"hidden_act": ("silu",), "pretraining_tp": (1, *range(2, 65))},
        switches={"attention_bias": ("qkv_bias", "out_bias"), "mlp_bias": ("ff_bias",)},
    ),
    "qwen2": Gated(
        architecture="Qwen2ForCausalLM",
        sizes=_QWEN,
        tied=False,
        blocks=_SWIGLU | {"qkv_bias": True},
        only={"hidden_act": ("silu",)},
        windows=True,
    ),
    "gemma": Gated(
        architecture="GemmaForCausalLM",
        sizes=_LLAMA_7B
        | {
            "hidden_size": 3072,
            "intermediate_size": 24576,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "head_dim": 256,
            "max_position_embeddings": 8192,
            "vocab_size": 256000,
        },
        tied=True,
        blocks=_GEMMA,
        decoder={"embed_scale": True},
        # Older files say "gelu" and mean the approximation by tanh.
        only={
            "hidden_activation": ("gelu_pytorch_tanh",),
            "hidden_act": ("gelu_pytorch_tanh", "gelu"),
            "use_bidirectional_attention": (False,),
        },
        switches={"attention_bias": ("qkv_bias", "out_bias")},
    ),
}
"""By the config's model_type."""
