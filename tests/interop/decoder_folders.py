"""Tiny decoders of random weights as transformers writes them, one of each family and feature."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers

ROPE = {"rope_type": "default", "rope_theta": 5000.0}
GATED = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LINEAR = {"rope_type": "linear", "rope_theta": 5000.0, "factor": 2.5}
WINDOWS = {"sliding_window": 5, "num_hidden_layers": 4}
BY_LAYER = ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]
GEMMA2 = GATED | WINDOWS | {"num_key_value_heads": 2, "head_dim": 8}
GPT: dict[str, Any] = {
    "vocab_size": 50,
    "n_positions": 64,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 4,
    "bos_token_id": 48,
    "eos_token_id": 49,
}
# Name -> their config's class, its fields.
DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt1": ("OpenAIGPTConfig", GPT),
    "gpt2": ("GPT2Config", GPT | {"n_inner": 40}),
    "gpt2 untied, exact gelu": (
        "GPT2Config",
        GPT | {"tie_word_embeddings": False, "activation_function": "gelu"},
    ),
    "llama multi-head": ("LlamaConfig", GATED),
    "llama grouped, wide heads": (
        "LlamaConfig",
        GATED | {"num_key_value_heads": 2, "head_dim": 6, "rope_parameters": ROPE},
    ),
    "llama biases": (
        "LlamaConfig",
        GATED | {"num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True},
    ),
    "smollm2": (
        "LlamaConfig",
        GATED | {"num_key_value_heads": 2, "tie_word_embeddings": True, "rms_norm_eps": 1e-5},
    ),
    "llama 3": ("LlamaConfig", GATED | {"head_dim": 16, "rope_parameters": LLAMA3}),
    "llama linear": ("LlamaConfig", GATED | {"rope_parameters": LINEAR}),
    "qwen2 linear": ("Qwen2Config", GATED | {"num_key_value_heads": 2, "rope_parameters": LINEAR}),
    "gemma llama3": (
        "GemmaConfig",
        GATED | {"num_key_value_heads": 1, "head_dim": 8, "rope_parameters": LLAMA3},
    ),
    "qwen2": ("Qwen2Config", GATED | {"num_key_value_heads": 2, "tie_word_embeddings": True}),
    "qwen2 untied": ("Qwen2Config", GATED | {"num_key_value_heads": 2, "rope_parameters": ROPE}),
    "qwen2 windows behind": (
        "Qwen2Config",
        GATED
        | WINDOWS
        | {"use_sliding_window": True, "max_window_layers": 2, "num_key_value_heads": 2},
    ),
    "qwen3": ("Qwen3Config", GATED | {"num_key_value_heads": 2, "head_dim": 8}),
    "qwen3 biases, windows by layer": (
        "Qwen3Config",
        GATED
        | WINDOWS
        | {"num_key_value_heads": 4, "head_dim": 4, "attention_bias": True}
        | {"use_sliding_window": True, "tie_word_embeddings": True, "layer_types": BY_LAYER},
    ),
    "olmo2": ("Olmo2Config", GATED | {"rope_parameters": ROPE}),
    "olmo2 grouped": ("Olmo2Config", GATED | {"num_key_value_heads": 2, "attention_bias": True}),
    "gemma2": ("Gemma2Config", GEMMA2 | {"query_pre_attn_scalar": 24}),
    "gemma2 small caps": (
        "Gemma2Config",
        GEMMA2 | {"attn_logit_softcapping": 0.7, "final_logit_softcapping": 1.5},
    ),
    "gemma2 no caps, windows by layer": (
        "Gemma2Config",
        GEMMA2
        | {"attn_logit_softcapping": None, "final_logit_softcapping": None}
        | {"layer_types": BY_LAYER, "query_pre_attn_scalar": 8},
    ),
    "gemma3": ("Gemma3TextConfig", GEMMA2 | {"query_pre_attn_scalar": 24, "num_hidden_layers": 7}),
    "gemma3 linear, capped": (
        "Gemma3TextConfig",
        GEMMA2
        | {"layer_types": BY_LAYER, "final_logit_softcapping": 2.0}
        | {"rope_parameters": {"full_attention": LINEAR, "sliding_attention": ROPE}},
    ),
    "gemma multi-query": ("GemmaConfig", GATED | {"num_key_value_heads": 1, "head_dim": 8}),
    "gemma": ("GemmaConfig", GATED | {"num_key_value_heads": 4, "head_dim": 4}),
}


def build_peer(name: str, *, seed: int = 0, **changes: Any) -> Any:
    """Their model in eval mode, every tensor random; `changes` of its config's fields."""
    import transformers

    kind, fields = DECODERS[name]
    config = getattr(transformers, kind)(**fields | changes)
    model = transformers.AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def write_peer(name: str, folder: Path, **options: Any) -> Any:
    """Their model, saved by them."""
    model = build_peer(name)
    model.save_pretrained(folder, **options)
    return model


def edit_config(folder: Path, **changes: Any) -> None:
    """Lay fields over a folder's config.json; None removes one."""
    path = folder / "config.json"
    data = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in data.items() if v is not None}))


def write_worded(folder: Path) -> None:
    """A decoder of 50 ids with a tokenizer of whole words, some of them real, and a chat's form."""
    write_peer("smollm2", folder)
    real = ["<s>", "</s>", "a", "red", "circle", "blue", "square", "two"]
    words = [*real, *(f"w{i}" for i in range(50 - len(real)))]
    rust = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<s>"))
    rust.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    rust.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}<s> {{ m.content }} </s>{% endfor %}"
    )
