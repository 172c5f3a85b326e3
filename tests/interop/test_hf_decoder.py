"""Decoders of transformers: the same logits, every tensor back, and one line where we cannot."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmtrain.errors import UsageError
from mmtrain.interop.canonical import canonical_blocks
from mmtrain.interop.hf_decoder_config import FAMILIES, decoder_config_from_hf
from mmtrain.interop.hf_decoder_files import read_hf_decoder, write_hf_decoder
from mmtrain.models import Decoder, DecoderConfig
from mmtrain.models.fused import fused_decoder
from mmtrain.nn import TransformerConfig
from tests.interop.decoder_folders import DECODERS, GATED, build_peer, edit_config, write_peer

TOKENS = torch.randint(50, (3, 20), generator=torch.Generator().manual_seed(1))


def load(folder: Path) -> Decoder:
    package = read_hf_decoder(folder)
    decoder = Decoder(package.config)
    decoder.load_state_dict(package.tensors)
    return decoder.eval()


@torch.no_grad()
@pytest.mark.parametrize("name", DECODERS)
def test_logits_and_tensors_are_theirs_both_ways(name, tmp_path):
    import transformers

    peer = write_peer(name, tmp_path / "theirs")
    want = peer(TOKENS).logits
    ours = load(tmp_path / "theirs")
    # The contract is 1e-4; on a processor with AMX single logits of Gemma 3 were 1.4e-5 apart.
    torch.testing.assert_close(ours(TOKENS), want, rtol=0, atol=3e-5)
    for model in (ours, fused_decoder(ours)):
        cache = model.build_cache(3, 20)
        parts = [model(TOKENS[:, :11], cache=cache)]
        parts += [model(TOKENS[:, [place]], cache=cache) for place in range(11, 20)]
        torch.testing.assert_close(torch.cat(parts, 1), want, rtol=0, atol=3e-5)
    assert want.std() > 0.3, "logits that say something"

    write_hf_decoder(read_hf_decoder(tmp_path / "theirs"), tmp_path / "ours")
    before, after = (load_file(tmp_path / f / "model.safetensors") for f in ("theirs", "ours"))
    assert before.keys() == after.keys()
    assert all(torch.equal(x, after[key]) for key, x in before.items())
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours").eval()
    assert torch.equal(again(TOKENS).logits, want)
    assert read_hf_decoder(tmp_path / "ours").config == read_hf_decoder(tmp_path / "theirs").config


@torch.no_grad()
def test_a_sharded_folder_is_one_model(tmp_path):
    name = "llama grouped, wide heads"
    peer = write_peer(name, tmp_path, max_shard_size="8KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    torch.testing.assert_close(load(tmp_path)(TOKENS), peer(TOKENS).logits, rtol=0, atol=1e-5)
    next(tmp_path.glob("*-00001-*.safetensors")).unlink()
    with pytest.raises(UsageError, match=r"model-00001-of-.* is missing"):
        read_hf_decoder(tmp_path)


@torch.no_grad()
@pytest.mark.parametrize("theta", [10000.0, 5000.0])
def test_the_flat_rope_form_of_older_files(theta, tmp_path):
    peer = write_peer("llama grouped, wide heads" if theta == 5000.0 else "qwen2", tmp_path)
    edit_config(tmp_path, rope_parameters=None, rope_theta=theta)
    torch.testing.assert_close(load(tmp_path)(TOKENS), peer(TOKENS).logits, rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama 3", "llama linear", "qwen2 linear"])
@pytest.mark.parametrize("key", ["type", "rope_type"])
def test_the_scaled_rope_of_older_files(name, key, tmp_path):
    """rope_scaling and a flat rope_theta give the logits of rope_parameters, and not others'."""
    peer = write_peer(name, tmp_path)
    want = peer(TOKENS).logits
    scaling = dict(DECODERS[name][1]["rope_parameters"])
    kind, theta = scaling.pop("rope_type"), scaling.pop("rope_theta")
    old = {"rope_theta": theta, "rope_scaling": scaling | {key: kind}, "rope_parameters": None}
    edit_config(tmp_path, **old)
    torch.testing.assert_close(load(tmp_path)(TOKENS), want, rtol=0, atol=1e-5)
    edit_config(tmp_path, rope_scaling=None)
    assert (load(tmp_path)(TOKENS) - want).abs().max() > 1e-3


@torch.no_grad()
def test_gpt2s_first_files(tmp_path):
    """No `transformer.` before the names, the causal mask and the tied head among the tensors."""
    peer = write_peer("gpt2", tmp_path)
    path = tmp_path / "model.safetensors"
    old = {k.removeprefix("transformer."): x for k, x in load_file(path).items()}
    for layer in range(2):
        old[f"h.{layer}.attn.bias"] = torch.ones(1, 1, 64, 64).tril()
        old[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    save_file(old | {"lm_head.weight": old["wte.weight"].clone()}, path)
    torch.testing.assert_close(load(tmp_path)(TOKENS), peer(TOKENS).logits, rtol=0, atol=1e-5)
    save_file(old | {"lm_head.weight": old["wte.weight"] + 1}, path)
    with pytest.raises(UsageError, match="tie_word_embeddings = true, but lm_head"):
        read_hf_decoder(tmp_path)


@torch.no_grad()
def test_gpt3s_alternating_layers_are_gpt_neos():
    """Dense and local layers in turn; GPT-Neo does not divide its scores by sqrt(head size)."""
    import transformers

    config = transformers.GPTNeoConfig(
        vocab_size=50,
        max_position_embeddings=64,
        hidden_size=16,
        num_layers=4,
        num_heads=4,
        attention_types=[[["global", "local"], 2]],
        window_size=5,
    )
    torch.manual_seed(0)
    peer = transformers.GPTNeoForCausalLM(config).eval()
    for parameter in peer.parameters():
        parameter += 0.2 * torch.randn_like(parameter)
    blocks = TransformerConfig(
        dim=16,
        num_layers=4,
        num_heads=4,
        activation="gelu_tanh",
        qkv_bias=False,
        mask="causal",
        local_window=5,
    )
    ours = Decoder(
        DecoderConfig(
            transformer=blocks,
            vocab_size=50,
            context_length=64,
            positions="learned",
            tied_head=True,
        )
    )
    body = peer.transformer
    ours.embed.token.weight.copy_(body.wte.weight)
    ours.embed.positional_embedding.copy_(body.wpe.weight)
    ours.head.norm.load_state_dict(body.ln_f.state_dict())
    for block, theirs in zip(ours.transformer.blocks.values(), body.h, strict=True):
        block.norm1.load_state_dict(theirs.ln_1.state_dict())
        block.norm2.load_state_dict(theirs.ln_2.state_dict())
        for part in "qkv":
            weight = getattr(theirs.attn.attention, f"{part}_proj").weight
            getattr(block.attention, part).weight.copy_(weight * (2 if part == "q" else 1))
        block.attention.o.load_state_dict(theirs.attn.attention.out_proj.state_dict())
        block.feed_forward.up.load_state_dict(theirs.mlp.c_fc.state_dict())
        block.feed_forward.down.load_state_dict(theirs.mlp.c_proj.state_dict())
    torch.testing.assert_close(ours(TOKENS), peer(TOKENS).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model_type": "mamba"},
            'model_type = "mamba" is no decoder that we read; we read openai-gpt, gpt2, llama, ',
        ),
        ({"hidden_sizes": 16}, "hidden_sizes = 16 is unknown; did you mean hidden_size"),
        ({"hidden_act": "gelu"}, 'hidden_act = "gelu" is not supported; we read "silu"'),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, 'rope_type = "yarn" is not'),
        *(
            ({"rope_scaling": {key: kind, "factor": 2.0}}, f'{key} = "{kind}" is not supported')
            for key in ("type", "rope_type")
            for kind in ("yarn", "dynamic", "longrope", "su", "mrope")
        ),
        ({"rope_scaling": {"type": "yarn"}}, 'we read "default" or "linear" or "llama3"$'),
        (
            {"rope_scaling": {"rope_type": "linear", "type": "llama3", "factor": 2.0}},
            'type = "llama3" is not supported; we read "linear"$',
        ),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling: factor is missing"),
        ({"rope_scaling": {"type": "llama3", "factor": 8.0}}, "low_freq_factor is missing"),
        ({"rope_scaling": {"type": "linear", "factor": 0.5}}, "factor = 0.5 must be 1 or more"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0, "by": 1}}, "by = 1 is unknown"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor = 0.5 is not"),
        ({"quantization_config": {"quant_method": "awq"}}, r"quantised weights \(awq\) are not"),
        ({"hidden_size": "16"}, 'hidden_size = "16" must be int'),
        ({"num_attention_heads": 3}, "num_heads = 3 must divide dim = 16, or set head_dim"),
        ({"intermediate_size": 32}, r"6 of another shape \(model.layers.0.mlp.gate_proj.weight"),
        ({"num_hidden_layers": 1}, r"9 not the model's \(model.layers.1.input_layernorm.weight"),
        ({"num_hidden_layers": 3}, r"9 missing \(model.layers.2.input_layernorm.weight"),
    ],
)
def test_what_we_cannot_compute_is_one_line(changes, message, tmp_path):
    write_peer("smollm2", tmp_path)
    edit_config(tmp_path, head_dim=None)
    edit_config(tmp_path, **changes)
    with pytest.raises(UsageError, match=message) as caught:
        read_hf_decoder(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("gemma3", {"attn_logit_softcapping": 30.0}, "attn_logit_softcapping = 30.0 is not supp"),
        ("gemma3", {"use_bidirectional_attention": True}, "use_bidirectional_attention = true is"),
        ("gemma3", {"layer_types": ["full_attention"]}, "we read 7 times full_attention or sli"),
        ("gemma2", {"layer_types": ["chunked_attention"] * 4}, "layer_types = .'chunked_attentio"),
        ("gemma2", {"hidden_activation": "silu"}, 'hidden_activation = "silu" is not supported'),
        ("gemma2", {"attn_logit_softcapping": -1.0}, "attention_cap = -1.0 must be above 0"),
        ("gemma2", {"query_pre_attn_scalar": "x"}, 'query_pre_attn_scalar = "x" must be float'),
        ("olmo2", {"hidden_act": "gelu"}, 'hidden_act = "gelu" is not supported'),
        ("olmo2", {"sliding_window": 4}, "sliding_window = 4 is unknown"),
        ("qwen3", {"rope_scaling": {"type": "yarn", "factor": 2.0}}, 'type = "yarn" is not supp'),
        ("qwen3", {"use_qk_norm": False}, "use_qk_norm = false is unknown"),
    ],
)
def test_what_a_family_computes_otherwise_is_one_line(name, changes, message, tmp_path):
    write_peer(name, tmp_path)
    edit_config(tmp_path, **changes)
    with pytest.raises(UsageError, match=message) as caught:
        read_hf_decoder(tmp_path)
    assert "\n" not in str(caught.value)


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "older"),
    [
        ("gemma2", {"layer_types": None}),
        ("gemma3", {"layer_types": None, "sliding_window_pattern": 6}),
        ("gemma3 linear, capped", {"rope_parameters": None, "rope_theta": 5000.0}
         | {"rope_local_base_freq": 5000.0, "rope_scaling": {"type": "linear", "factor": 2.5}}),
        ("qwen2 windows behind", {"layer_types": None}),
        ("olmo2", {"rope_parameters": None, "rope_theta": 5000.0}),
    ],
)  # fmt: skip
def test_older_files_of_a_family(name, older, tmp_path):
    peer = write_peer(name, tmp_path)
    edit_config(tmp_path, **older)
    torch.testing.assert_close(load(tmp_path)(TOKENS), peer(TOKENS).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_file_leaves_out_is_what_transformers_takes(family):
    import transformers

    theirs = transformers.AutoConfig.for_model(family).to_dict()
    ours, whole = (decoder_config_from_hf(data) for data in ({"model_type": family}, theirs))
    blocks = [canonical_blocks(config.transformer) for config in (ours, whole)]
    assert blocks[0] == blocks[1]
    assert replace(ours, transformer=whole.transformer) == whole


def test_what_they_cannot_express_is_refused():
    from mmtrain.interop.hf_decoder import decoder_to_hf

    blocks = TransformerConfig(
        dim=16, num_layers=2, num_heads=4, mask="causal", norm="rms", local_window=4
    )
    config = DecoderConfig(transformer=blocks, vocab_size=5, context_length=8)
    with pytest.raises(UsageError, match=r"cannot express .*transformer.local_window = 4"):
        decoder_to_hf(config, Decoder(config).state_dict(), family="llama")


def test_a_peer_is_not_the_zero_model():
    """The parity above compares models whose every part counts."""
    peer = build_peer("smollm2")
    assert all(p.std() > 0.05 for p in peer.parameters() if p.numel() > 1)
    assert GATED["vocab_size"] == peer.config.vocab_size
