"""peft's folders: it reads ours, we read its, five kinds, equal logits on the same weights."""

import copy
import json
import os
import pickle
from pathlib import Path

import pytest
import torch

from mmtrain.errors import UsageError
from mmtrain.interop.hf_decoder import decoder_from_hf, decoder_links
from mmtrain.interop.hf_peft import Adapter, read_adapter, write_adapter
from mmtrain.models import Decoder
from mmtrain.peft import add_terms, fill_prefix
from tests.interop.decoder_folders import build_peer

TOKENS = torch.randint(50, (2, 9), generator=torch.Generator().manual_seed(1))
PEERS = ["gpt2", "smollm2"]
LORA = ["lora", "rslora", "dora", "patterns"]
KINDS = [*LORA, "prompt", "p_tuning mlp", "p_tuning lstm", "prefix", "prefix mlp"]


def pair(name: str):
    peer = build_peer(name)
    config, tensors = decoder_from_hf(peer.config.to_dict(), peer.state_dict())
    ours = Decoder(config)
    ours.load_state_dict(tensors)
    return peer, ours.eval(), decoder_links(config, peer.config.model_type)


def read(folder, model: Decoder, links) -> Adapter:
    return read_adapter(folder, model=model, links=links, blocks=model.config.transformer)


def their_config(kind: str, peer):
    import peft

    task, name = {"task_type": "CAUSAL_LM"}, kind.partition(" ")[2]
    if kind in LORA:
        gpt = peer.config.model_type == "gpt2"
        if kind == "patterns":
            # Ends of names and expressions; peft writes them by letter, and the first that fits
            # counts. "norm" is the end of three modules' names.
            first = "attn.c_attn" if gpt else r"layers.\d.self_attn.q_proj"
            other, whole = ("c_fc", ["ln_f", "h.1.ln_2"]) if gpt else ("v_proj", ["norm"])
            task |= {
                "rank_pattern": {first: 2, rf"(h|layers)\.1\..*{other}": 5, "z|mlp.*": 7},
                "alpha_pattern": {other: 4.5, "z|q_proj|mlp.c_fc": 3},
                "modules_to_save": whole,
            }
        return peft.LoraConfig(
            r=3,
            lora_alpha=5,
            use_rslora=kind == "rslora",
            use_dora=kind == "dora",
            target_modules=["c_attn", "c_fc"] if gpt else ["q_proj", "v_proj", "down_proj"],
            fan_in_fan_out=gpt,
            **task,
        )
    if kind == "prompt":
        return peft.PromptTuningConfig(num_virtual_tokens=4, **task)
    if kind.startswith("p_tuning"):
        return peft.PromptEncoderConfig(
            num_virtual_tokens=4,
            encoder_hidden_size=8,
            encoder_reparameterization_type=name.upper(),
            **task,
        )
    return peft.PrefixTuningConfig(
        num_virtual_tokens=4, prefix_projection=name == "mlp", encoder_hidden_size=8, **task
    )


@torch.no_grad()
def logits(decoder: Decoder, adapter: Adapter) -> torch.Tensor:
    """Of the text, as generation computes them."""
    cache = decoder.build_cache(2, 16)
    if adapter.kind == "lora":
        weights = {"scale": adapter.scale, "scales": adapter.scales}
        add_terms(decoder, adapter.terms, **weights, lengths=adapter.lengths)
        assert not decoder.load_state_dict(adapter.whole, strict=False).unexpected_keys
    elif adapter.kind == "prefix":
        fill_prefix(cache, adapter.rows, decoder.config.transformer)
    else:
        decoder(adapter.rows.expand(2, -1, -1), cache=cache)
    return decoder(TOKENS, cache=cache)


def close(got: torch.Tensor, want: torch.Tensor) -> None:
    """Equal to 1e-6 of the largest logit."""
    torch.testing.assert_close(got, want, rtol=0, atol=1e-6 * want.abs().max().item())


def shaken(model, seed: int):
    """Every adapter's parameter random: a fresh LoRA is zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", PEERS)
def test_we_read_what_peft_writes_and_peft_reads_it_back(name, kind, tmp_path):
    import peft

    peer, ours, links = pair(name)
    plain = peer(TOKENS).logits
    base = copy.deepcopy(peer)
    wrapped = shaken(peft.get_peft_model(peer, their_config(kind, peer)), 2).eval()
    wrapped.save_pretrained(tmp_path / "theirs")
    want = wrapped(TOKENS).logits[:, -TOKENS.size(1) :]
    assert (want - plain).abs().max() > 0.05, "an adapter that does something"
    adapter = read(tmp_path / "theirs", ours, links)
    if kind == "patterns":
        ranks = {a.size(0) for a, _ in adapter.terms.values()}
        assert ranks == ({2, 5, 7} if name == "gpt2" else {2, 3, 5, 7}) and adapter.scales
        assert len(adapter.whole) == (4 if name == "gpt2" else 5)
    close(logits(ours, adapter), want)

    blocks = ours.config.transformer
    write_adapter(tmp_path / "ours", adapter, links=links, blocks=blocks)
    again = peft.PeftModel.from_pretrained(base, str(tmp_path / "ours")).eval()
    got = again(TOKENS).logits[:, -TOKENS.size(1) :]
    close(got, want)


@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
def test_terms_of_three_projections_are_one_of_gpt2s_fused_layer(tmp_path):
    """Each with an A of its own, and one projection without a term."""
    import peft

    peer, ours, links = pair("gpt2")
    fresh = copy.deepcopy(ours)
    generator = torch.Generator().manual_seed(0)

    def term(rank: int) -> tuple[torch.Tensor, torch.Tensor]:
        return (
            torch.randn(rank, 16, generator=generator),
            torch.randn(16, rank, generator=generator),
        )

    block = "transformer.blocks.0.attention"
    terms = {f"{block}.q": term(2), f"{block}.v": term(2), f"{block}.o": term(2)}
    scales = {f"{block}.v": 0.5, f"{block}.o": 0.7}
    adapter = Adapter(kind="lora", terms=terms, scale=0.3, scales=scales)
    write_adapter(tmp_path, adapter, links=links, blocks=None)
    theirs = peft.PeftModel.from_pretrained(peer, str(tmp_path)).eval()
    want = theirs(TOKENS).logits
    again = read(tmp_path, ours, links)
    close(logits(ours, adapter), want)
    close(logits(fresh, again), want)


@pytest.mark.parametrize("name", ["", "gone"])
def test_a_folder_without_an_adapter_is_told_with_what_to_name(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        read_adapter(tmp_path / name, model=torch.nn.Linear(1, 1), links=[], blocks=None)
    assert str(caught.value) == (
        f"{tmp_path / name / 'adapter_config.json'} is missing; name the adapter/ of a run that "
        "trained one, or a folder that peft wrote"
    )


@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
def test_an_old_pickle_is_read_and_a_folder_of_folders_is_told(tmp_path):
    """peft's own choice: the pickle alone where nothing else is there. No code of it runs."""
    import peft

    peer, ours, links = pair("smollm2")
    wrapped = shaken(peft.get_peft_model(peer, their_config("lora", peer)), 2).eval()
    want = wrapped(TOKENS).logits
    wrapped.save_pretrained(tmp_path / "both", safe_serialization=False)
    assert (tmp_path / "both/adapter_model.bin").is_file()
    fresh = copy.deepcopy(ours)
    close(logits(ours, read(tmp_path / "both", ours, links)), want)
    wrapped.save_pretrained(tmp_path / "both")
    (tmp_path / "both/adapter_model.bin").write_bytes(pickle.dumps(os.system))
    close(logits(fresh, read(tmp_path / "both", fresh, links)), want)
    (tmp_path / "both/adapter_model.safetensors").unlink()
    with pytest.raises(UsageError, match=r"adapter_model\.bin") as caught:
        read(tmp_path / "both", ours, links)
    assert "\n" not in str(caught.value)
    (tmp_path / "both/adapter_model.bin").unlink()
    with pytest.raises(UsageError, match=r"adapter_model\.safetensors is missing"):
        read(tmp_path / "both", ours, links)
    with pytest.raises(UsageError, match=f"is missing; .* name {tmp_path / 'both'}"):
        read(tmp_path, ours, links)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "whole", "tying"),
    [
        ("smollm2", "embed_tokens", False),
        ("smollm2", "embed_tokens", True),
        ("smollm2", "lm_head", False),
        ("gpt2", "wte", False),
    ],
)
def test_one_matrix_for_two_is_not_trained_as_two(name, whole, tying, tmp_path):
    """peft trains a copy of a tied model's embedding, or head; what is the model's own is read."""
    import peft

    peer, ours, links = pair(name)
    assert ours.config.tied_head
    config = peft.LoraConfig(
        target_modules=["c_attn" if name == "gpt2" else "q_proj"],
        fan_in_fan_out=name == "gpt2",
        modules_to_save=[whole],
        ensure_weight_tying=tying,
    )
    wrapped = peft.get_peft_model(peer, config)
    wrapped.save_pretrained(tmp_path / "same")
    shaken(wrapped, 2).save_pretrained(tmp_path / "other")
    with pytest.raises(UsageError, match=rf"a .*{whole}.* of its own, .*one matrix") as caught:
        read(tmp_path / "other", ours, links)
    assert "\n" not in str(caught.value)
    if whole != "lm_head" and not tying:
        assert [*read(tmp_path / "same", ours, links).whole] == ["embed.token.weight"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["lora", "prompt", "prefix"])
def test_an_adapter_of_another_model_is_one_line(kind, tmp_path, monkeypatch):
    import peft

    peer, _, _ = pair("smollm2")
    peft.get_peft_model(peer, their_config(kind, peer)).save_pretrained(tmp_path)
    _, other, links = pair("gemma" if kind == "prefix" else "gpt2")
    if kind == "prompt":
        _, other, links = pair("qwen2")
        path = tmp_path / "adapter_config.json"
        data = json.loads(path.read_text()) | {"num_virtual_tokens": 5}
        path.write_text(json.dumps(data))
    with pytest.raises(UsageError, match="the adapter is of another model") as caught:
        read(tmp_path, other, links)
    assert "\n" not in str(caught.value)
    path = tmp_path / "adapter_config.json"
    if kind == "lora":
        _, same, links = pair("smollm2")
        data = json.loads(path.read_text())
        for changed, told in (
            ({"rank_pattern": {"q_proj": 2}}, "q_proj does not fit"),
            ({"rank_pattern": {"q_proj": "2"}}, "'q_proj' = '2' gives no rank"),
            ({"alpha_pattern": {"(": 2}}, "'\\(' is no pattern"),
            ({"alpha_pattern": {"q_proj": -1}}, "'q_proj' = -1 gives no alpha"),
            ({"lora_alpha": 0}, "'lora_alpha' = 0.0 gives no alpha"),
            ({"r": 0}, "'r' = 0 gives no rank"),
            ({"modules_to_save": ["lm_head", "norm"]}, "norm.*weight does not fit"),
        ):
            path.write_text(json.dumps(data | changed))
            with pytest.raises(UsageError, match=told):
                read(tmp_path, same, links)
        # Expressions that Python's own matching would try for years.
        monkeypatch.setattr("mmtrain.interop.peft_patterns._SECONDS", 0.5)
        for endless in (r"(\w+|\.)+!", r"(.*)*(.*)*(.*)*!", "(" * 5000 + ")" * 5000):
            path.write_text(json.dumps(data | {"alpha_pattern": {"v_proj": 3, endless: 2}}))
            with pytest.raises(UsageError, match=r"took more than 0.5 s|is no pattern"):
                read(tmp_path, same, links)
    path.write_text(json.dumps({"peft_type": "IA3"}))
    with pytest.raises(UsageError, match='peft_type = "IA3" is not supported; we read "LORA"'):
        read(tmp_path, other, links)


@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
def test_a_clips_towers_too(tmp_path):
    """LoRA in both towers: theirs read here, ours read there."""
    import peft
    import transformers

    from mmtrain.interop.hf_clip import clip_links, from_hf
    from mmtrain.models import Clip

    small = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    small |= {"num_attention_heads": 2, "projection_dim": 8}
    theirs = transformers.CLIPModel(
        transformers.CLIPConfig(
            vision_config=small | {"image_size": 16, "patch_size": 8},
            text_config=small
            | {"vocab_size": 50, "max_position_embeddings": 9, "eos_token_id": 49},
            projection_dim=8,
        )
    ).eval()
    base = copy.deepcopy(theirs)
    config, tensors = from_hf(theirs.config.to_dict(), theirs.state_dict())
    lora = peft.LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj", "fc1", "out_proj"])
    wrapped = shaken(peft.get_peft_model(theirs, lora), 3).eval()
    wrapped.save_pretrained(tmp_path / "theirs")
    tokens = torch.cat([TOKENS[:, :8] % 49, torch.full((2, 1), 49)], dim=1)
    want = wrapped.get_base_model().get_text_features(tokens)
    want = want if isinstance(want, torch.Tensor) else want.pooler_output
    want = torch.nn.functional.normalize(want, dim=-1)
    ours = Clip(config)
    ours.load_state_dict(tensors)
    plain = ours.eval().encode_text(tokens)
    links = clip_links(config)
    blocks = config.text.transformer
    adapter = read_adapter(tmp_path / "theirs", model=ours, links=links, blocks=blocks)
    assert len(adapter.terms) == 12
    add_terms(ours, adapter.terms, scale=adapter.scale)
    got = ours.encode_text(tokens)
    assert (got - plain).abs().max() > 0.01
    close(got, want)
    write_adapter(tmp_path / "ours", adapter, links=links, blocks=None, task=None)
    again = peft.PeftModel.from_pretrained(base, str(tmp_path / "ours")).eval()
    features = again.get_base_model().get_text_features(tokens)
    features = features if isinstance(features, torch.Tensor) else features.pooler_output
    close(torch.nn.functional.normalize(features, dim=-1), want)
