"""Hugging Face's configs of GPT-1 and GPT-2 and our config, both ways.

https://github.com/huggingface/transformers: models/openai, gpt2.
"""

from typing import Any, Literal

from mmtrain.interop.foreign_config import ForeignConfig
from mmtrain.models import DecoderConfig
from mmtrain.nn import TransformerConfig
from mmtrain.nn.feed_forward import Activation

GptFamily = Literal["openai-gpt", "gpt2"]

GPT_CLASSES: dict[GptFamily, str] = {
    "openai-gpt": "OpenAIGPTLMHeadModel",
    "gpt2": "GPT2LMHeadModel",
}
"""By the config's model_type."""

GPT_ACTIVATIONS: dict[str, Activation] = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
    "relu": "relu",
}


def gpt_from_hf(fields: ForeignConfig, family: GptFamily) -> DecoderConfig:
    """Our config of a GPT's.

    Raises:
        UsageError: a field that we cannot compute.
        ValueError: a shape that our config refuses.
    """
    tied = fields.only("tie_word_embeddings", True, False)
    return _gpt1(fields, tied) if family == "openai-gpt" else _gpt2(fields, tied)


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


def gpt_to_hf(config: DecoderConfig, family: GptFamily) -> dict[str, Any]:
    """config.json of the model as a GPT."""
    blocks = config.transformer
    data = {
        "model_type": family,
        "architectures": [GPT_CLASSES[family]],
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
