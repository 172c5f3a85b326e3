"""transformers' decoders, GPT-1, GPT-2, Llama and later: config.json and state dict, both ways."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mmtrain.errors import UsageError
from mmtrain.interop.hf_decoder_config import (
    Family,
    decoder_config_from_hf,
    decoder_config_to_hf,
    decoder_family,
)
from mmtrain.interop.hf_gated_families import GATED
from mmtrain.interop.tensor_links import (
    Link,
    Tensors,
    fused,
    same,
    same_layer,
    tensors_from,
    tensors_to,
    transposed,
)
from mmtrain.models import Decoder, DecoderConfig
from mmtrain.nn import TransformerConfig

# Masks and frequencies that older files carry; they follow from the config.
DERIVED = re.compile(r".*(\.attn\.(bias|masked_bias)|\.rotary_emb\.inv_freq|position_ids)")
HEAD = "lm_head.weight"


def decoder_from_hf(
    data: dict[str, Any], tensors: Tensors, *, source: str = "config.json"
) -> tuple[DecoderConfig, Tensors]:
    """Our config and tensors.

    Args:
        data: config.json.
        tensors: the model's state dict; GPT's may lack the `transformer.` before every name.
        source: names the files in messages.

    Raises:
        UsageError: a field that is unknown or that we cannot compute, or tensors that do not fit.
    """
    config, family = (
        decoder_config_from_hf(data, source=source),
        decoder_family(data, source=source),
    )
    tensors = {name: x for name, x in tensors.items() if not DERIVED.fullmatch(name)}
    body = "transformer." if "gpt" in family else "model."
    if not any(name.startswith(body) for name in tensors):
        tensors = {name if name == HEAD else body + name: x for name, x in tensors.items()}
    if config.tied_head and HEAD in tensors:
        _check_tied(tensors, _embedding_name(family), source)
        del tensors[HEAD]
    with torch.device("meta"):
        shapes = Decoder(config).state_dict()
    return config, tensors_from(decoder_links(config, family), shapes, tensors, source=source)


def decoder_to_hf(
    config: DecoderConfig, tensors: Tensors, *, family: Family | None = None
) -> tuple[dict[str, Any], Tensors]:
    """config.json and the state dict of their model.

    Args:
        config: our model.
        tensors: its state dict.
        family: which of their models; None takes the first that computes the same.

    Raises:
        UsageError: it computes something that none of theirs does, naming the fields.
    """
    data = decoder_config_to_hf(config, family=family)
    return data, tensors_to(decoder_links(config, data["model_type"]), tensors)


def _check_tied(tensors: Tensors, embedding: str, source: str) -> None:
    if embedding in tensors and not torch.equal(tensors[HEAD], tensors[embedding]):
        raise UsageError(
            f"{source}: tie_word_embeddings = true, but {HEAD} is not {embedding}; set it to false"
        )


def _embedding_name(family: Family) -> str:
    return {
        "openai-gpt": "transformer.tokens_embed.weight",
        "gpt2": "transformer.wte.weight",
    }.get(family, "model.embed_tokens.weight")


def decoder_links(config: DecoderConfig, family: Family) -> list[Link]:
    """What ties every tensor of ours to one of theirs."""
    links = [same("embed.token.weight", _embedding_name(family))]
    if not config.tied_head:
        links.append(same("head.projection.weight", HEAD))
    if family == "openai-gpt":
        links.append(same("embed.positional_embedding", "transformer.positions_embed.weight"))
    elif family == "gpt2":
        links.append(same("embed.positional_embedding", "transformer.wpe.weight"))
        links += same_layer("head.norm", "transformer.ln_f")
    else:
        links.append(same("head.norm.weight", "model.norm.weight"))
    for layer in range(config.transformer.num_layers):
        ours = f"transformer.blocks.{layer}"
        if family == "openai-gpt" or family == "gpt2":
            links += _gpt_block_links(ours, f"transformer.h.{layer}")
        else:
            norms = GATED[family].norms
            links += _gated_block_links(ours, f"model.layers.{layer}", config.transformer, norms)
    return links


def _gpt_block_links(ours: str, theirs: str) -> list[Link]:
    """Their matrices are [in, out], q, k and v side by side in one."""
    attention = f"{ours}.attention"
    links = [
        _fused_transposed(
            tuple(f"{attention}.{part}.weight" for part in "qkv"), f"{theirs}.attn.c_attn.weight"
        ),
        fused(tuple(f"{attention}.{part}.bias" for part in "qkv"), f"{theirs}.attn.c_attn.bias"),
    ]
    for name, their_name in (
        ("attention.o", "attn.c_proj"),
        ("feed_forward.up", "mlp.c_fc"),
        ("feed_forward.down", "mlp.c_proj"),
    ):
        links.append(transposed(f"{ours}.{name}.weight", f"{theirs}.{their_name}.weight"))
        links.append(same(f"{ours}.{name}.bias", f"{theirs}.{their_name}.bias"))
    return [
        *links,
        *same_layer(f"{ours}.norm1", f"{theirs}.ln_1"),
        *same_layer(f"{ours}.norm2", f"{theirs}.ln_2"),
    ]


def _fused_transposed(ours: tuple[str, ...], theirs: str) -> Link:
    def to_ours(x: Tensor) -> tuple[Tensor, ...]:
        return x.T.chunk(len(ours))

    def to_theirs(*parts: Tensor) -> tuple[Tensor]:
        return (torch.cat(parts).T,)

    return Link(ours=ours, theirs=(theirs,), to_ours=to_ours, to_theirs=to_theirs)


def _gated_block_links(
    ours: str, theirs: str, blocks: TransformerConfig, norms: Mapping[str, str]
) -> list[Link]:
    links = [same(f"{ours}.{o}.weight", f"{theirs}.{t}.weight") for o, t in norms.items()]
    if blocks.qk_norm is not None:
        for part in "qk":
            norm = f"{part}_norm.weight"
            links.append(same(f"{ours}.attention.{norm}", f"{theirs}.self_attn.{norm}"))
    for part in "qkv":
        name = f"{theirs}.self_attn.{part}_proj"
        links += same_layer(f"{ours}.attention.{part}", name, bias=blocks.qkv_bias)
    links += same_layer(f"{ours}.attention.o", f"{theirs}.self_attn.o_proj", bias=blocks.out_bias)
    for part in ("gate", "up", "down"):
        name = f"{theirs}.mlp.{part}_proj"
        links += same_layer(f"{ours}.feed_forward.{part}", name, bias=blocks.ff_bias)
    return links
