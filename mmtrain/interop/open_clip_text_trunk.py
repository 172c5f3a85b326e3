"""open_clip's text towers that are transformers': the `hf_*` fields of text_cfg and the tensors."""

import json
from typing import Any

import torch

from mmtrain.errors import UsageError
from mmtrain.interop.foreign_config import ForeignConfig
from mmtrain.interop.tensor_links import Link, same
from mmtrain.models import TextConfig, TextTower
from mmtrain.models.text import TRUNK_TEXT
from mmtrain.models.trunks.config import TransformersTrunk, no_blocks

_ROBERTA = {"max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
_LARGE = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
}
_MT5 = {"vocab_size": 250112, "tie_word_embeddings": False, "d_kv": 64}
_NLLB = {
    "vocab_size": 256206,
    "d_model": 1024,
    "encoder_attention_heads": 16,
    "decoder_attention_heads": 16,
    "max_position_embeddings": 1024,
    "scale_embedding": True,
}
ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "roberta-base": ("roberta", _ROBERTA | {"vocab_size": 50265}),
    "xlm-roberta-base": ("xlm-roberta", _ROBERTA | {"vocab_size": 250002}),
    "xlm-roberta-large": ("xlm-roberta", _ROBERTA | _LARGE | {"vocab_size": 250002}),
    "google/mt5-base": (
        "mt5",
        _MT5 | {"d_model": 768, "d_ff": 2048, "num_layers": 12, "num_heads": 12},
    ),
    "google/mt5-xl": (
        "mt5",
        _MT5 | {"d_model": 2048, "d_ff": 5120, "num_layers": 24, "num_heads": 32},
    ),
    "facebook/nllb-200-distilled-600M": (
        "m2m_100",
        _NLLB | {"encoder_layers": 12, "encoder_ffn_dim": 4096},
    ),
    "facebook/nllb-200-distilled-1.3B": (
        "m2m_100",
        _NLLB | {"encoder_layers": 24, "encoder_ffn_dim": 8192},
    ),
}
"""The type and the settings of the encoders that open_clip's configs name: its folders do not hold
them, and nothing is fetched."""
POOLS = {"mean_pooler": "mean", "cls_pooler": "first", "cls_last_hidden_state_pooler": "first"}


def text_trunk_from_cfg(cfg: ForeignConfig, *, embed_dim: int) -> TextConfig:
    """The tower of a text_cfg with an hf_model_name; open_clip ignores its own shapes then.

    Raises:
        UsageError: an encoder that is not known, or a field that we cannot compute.
        ValueError: transformers is not here.
    """
    cfg.ignore("hf_model_pretrained", "hf_tokenizer_name", "tokenizer_mode", "tokenizer_kwargs")
    cfg.ignore("width", "heads", "layers", "vocab_size", "proj_type", "pool_type", "proj_bias")
    cfg.only("output_tokens", False)
    name = cfg.take("hf_model_name", str)
    if name not in ENCODERS:
        raise UsageError(
            f"{cfg.source}: hf_model_name = {name} is none of those that are known "
            f"here: {', '.join(ENCODERS)}"
        )
    model_type, settings = ENCODERS[name]
    # BERT's kin map their first token once more where it is pooled, which is not read.
    allowed = ["mean_pooler", "cls_last_hidden_state_pooler"]
    allowed += ["cls_pooler"] if model_type in ("mt5", "m2m_100") else []
    head = cfg.only("hf_proj_type", "mlp", "linear")
    width = settings.get("d_model") or settings.get("hidden_size", 768)
    return TextConfig(
        trunk=TransformersTrunk(
            name=name,
            model_type=model_type,
            settings=json.dumps(settings),
            pool=POOLS[cfg.only("hf_pooler_type", *allowed)],  # pyright: ignore[reportArgumentType]
            head=head,
        ),
        transformer=no_blocks(width if head == "linear" else embed_dim),
        vocab_size=settings["vocab_size"],
        context_length=cfg.take("context_length", int, 77),
        end_token_id=None,
        projection=head == "linear",
        **TRUNK_TEXT,  # pyright: ignore[reportArgumentType]
    )


def text_trunk_to_cfg(text: TextConfig, trunk: TransformersTrunk) -> dict[str, Any]:
    """The text_cfg of a tower with a trunk."""
    is_first = trunk.pool == "first"
    pools = {True: "cls_last_hidden_state_pooler", False: "mean_pooler"}
    return {
        "context_length": text.context_length,
        "hf_model_name": trunk.name,
        "hf_model_pretrained": False,
        "hf_pooler_type": pools[is_first],
        "hf_proj_type": trunk.head,
    }


def text_trunk_links(text: TextConfig) -> list[Link]:
    """All tensors of such a tower."""
    with torch.device("meta"):
        names = TextTower(text, embed_dim=text.transformer.dim).state_dict()
    trunk = "embed.trunk."
    links = [
        same(f"text.{name}", f"text.{name.removeprefix(trunk)}")
        for name in names
        if name.startswith(trunk)
    ]
    if text.projection:
        links.append(same("text.head.projection.weight", "text.proj.weight"))
    return links
