"""Fused models say what the plain ones say, in fewer products."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mmtrain.models import Clip, ClipConfig, Decoder
from mmtrain.models.decoder_config import DecoderConfig
from mmtrain.models.fused import fused_clip, fused_decoder
from mmtrain.models.generate import generate
from mmtrain.models.prefill import left_pad, prefill
from mmtrain.models.sampling import GenerationConfig
from mmtrain.models.text import TextConfig
from mmtrain.models.vision import VisionConfig
from mmtrain.nn import TransformerConfig
from mmtrain.nn.fused import FusedTransformer, fuse
from mmtrain.nn.seams import wrap_forward
from mmtrain.peft.lora import LoraConfig, apply_lora, merge_lora

PLAIN = TransformerConfig(dim=48, num_layers=3, num_heads=4, mask="causal")
LLAMA = replace(PLAIN, num_kv_heads=2, head_dim=16, activation="swiglu", norm="rms", qkv_bias=False)
SHAPES = {
    "gpt2": (PLAIN, "learned"),
    "llama": (LLAMA, "rope"),
    "gemma": (replace(LLAMA, num_kv_heads=1, activation="geglu_tanh", norm="gemma_rms"), "rope"),
    "queries normalised": (replace(LLAMA, qk_norm="rms"), "rope"),
    "scaled branches": (replace(PLAIN, layer_scale=0.3, activation="quick_gelu"), "rope"),
    "norms behind": (replace(PLAIN, norm_order="post", activation="gelu_tanh"), "learned"),
    "norms of branches": (
        replace(LLAMA, norm_order="branch", qk_norm="rms", qk_norm_over="heads"),
        "rope",
    ),
    "norms on both sides, capped": (
        replace(LLAMA, norm_order="sandwich", attention_cap=2.0, attention_scale=0.5),
        "rope",
    ),
    "windows": (replace(PLAIN, local_window=3, ff_bias=False), "rope"),
}
PROMPTS = [[3, 8, 1, 20, 33, 4], [7, 7], [12, 40, 2]]


def build(name: str, *, tied: bool = True) -> Decoder:
    """A decoder of that shape whose likeliest tokens are the likeliest by far."""
    blocks, positions = SHAPES[name]
    config = DecoderConfig(
        transformer=blocks, vocab_size=61, context_length=40, positions=positions, tied_head=tied
    )
    decoder = Decoder(config).init_weights(torch.Generator().manual_seed(3))
    with torch.no_grad():
        for weight in decoder.parameters():
            weight += 0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(4))
    return decoder.eval()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", SHAPES)
def test_logits_and_texts_are_the_plain_decoders(name, tied):
    plain = build(name, tied=tied)
    fused = fused_decoder(plain)
    assert isinstance(fused.transformer, FusedTransformer)
    tokens, real = left_pad(PROMPTS)
    with torch.no_grad():
        want = plain(tokens, real_BT=real)[real]
    torch.testing.assert_close(fused(tokens, real_BT=real)[real], want, rtol=1e-4, atol=1e-4)
    for beams in (1, 3):
        config = GenerationConfig(max_new_tokens=20, end_ids=(5,), num_beams=beams)
        rows = [
            generate(model, prefill(model, tokens, real_BT=real, max_new_tokens=20), config)
            for model in (plain, fused)
        ]
        assert rows[0] == rows[1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_another_format_is_that_of_products_and_cache(dtype):
    plain = build("llama").double() if dtype == torch.float64 else build("llama")
    fused = fused_decoder(plain, dtype=dtype)
    tokens, _ = left_pad([PROMPTS[0]])
    start = prefill(fused, tokens, max_new_tokens=2)
    want = prefill(plain, tokens, max_new_tokens=2).logits_BV
    assert start.cache.layers[0].k_BKSH.dtype == dtype
    close = {"rtol": 0.1, "atol": 0.5} if dtype == torch.bfloat16 else {"rtol": 1e-12, "atol": 1e-9}
    torch.testing.assert_close(start.logits_BV.to(want.dtype), want, **close)


class Counted(TorchDispatchMode):
    """Operations by name."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("rows", [1, 3])
def test_a_step_has_four_products_a_block_and_makes_no_table(rows):
    fused = fused_decoder(build("llama"))
    cache = prefill(fused, torch.tensor([PROMPTS[0]] * rows), max_new_tokens=4).cache
    with Counted() as counted, torch.no_grad():
        fused(torch.full((rows, 1), 7), cache=cache)
    products = ("_linear_pointwise", "mm", "addmm", "linear")
    assert sum(counted.names[name] for name in products) == 4 * 3 + 1
    assert not {"cos", "sin", "tril"} & set(counted.names)


def test_given_up_blocks_are_not_held_twice():
    plain = build("llama")
    want = plain(torch.tensor([PROMPTS[0]]))
    fused = fused_decoder(plain, keep=False)
    assert len(plain.transformer.blocks) == 0
    torch.testing.assert_close(fused(torch.tensor([PROMPTS[0]])), want, rtol=1e-4, atol=1e-4)


def test_an_adapter_is_fused_once_it_is_merged():
    plain = build("llama")
    apply_lora(plain, LoraConfig(rank=2, targets=("*.attention.*", "*.up")))
    with torch.no_grad():
        for name, weight in plain.named_parameters():
            if name.endswith("lora_b"):
                weight.normal_(generator=torch.Generator().manual_seed(1))
    tokens = torch.tensor([PROMPTS[0]])
    want = plain(tokens)
    assert fused_decoder(plain) is plain, "its terms would be left out"
    with pytest.raises(ValueError, match="cannot be fused"):
        fuse(plain.transformer)
    merge_lora(plain)
    fused = fused_decoder(plain)
    assert isinstance(fused.transformer, FusedTransformer)
    torch.testing.assert_close(fused(tokens), want, rtol=1e-3, atol=1e-3)


def test_what_is_wrapped_or_hooked_stays_as_it_is():
    wrapped, hooked = build("gpt2"), build("gpt2")
    wrap_forward(wrapped.transformer.blocks["1"], "compile", lambda forward: forward)
    hooked.transformer.blocks["0"].register_forward_hook(lambda *_: None)
    assert fused_decoder(wrapped) is wrapped
    assert fused_decoder(hooked) is hooked
    fused = fused_decoder(build("gpt2"))
    assert fused_decoder(fused) is fused


def test_what_only_training_has_is_refused():
    fused = fused_decoder(build("gpt2"))
    with pytest.raises(ValueError, match="only infer"):
        fused(torch.tensor([PROMPTS[0]]), keep_BL2=torch.ones(1, 3, 2))


TOWERS = {
    "openai": {},
    "siglip": {
        "vision": {"pool": "attention", "class_token": False, "patch_bias": True},
        "text": {"pool": "last", "end_token_id": None, "projection_bias": True},
        "text_mask": "full",
    },
    "modern": {
        "vision": {"positions": "rope_2d", "num_registers": 2, "embed_norm": False},
        "text": {"positions": "rope", "pool": "mean", "mask_padding": True},
        "text_mask": "full",
        "blocks": {"activation": "swiglu", "norm": "rms", "qk_norm": "rms", "layer_scale": 0.1},
    },
}


def build_clip(name: str) -> Clip:
    """A small CLIP of that kind."""
    fields = TOWERS[name]
    shape = {"dim": 32, "num_layers": 2, "num_heads": 4, **fields.get("blocks", {})}
    vision = VisionConfig(
        transformer=TransformerConfig(**shape),
        image_size=32,
        patch_size=8,
        **fields.get("vision", {}),
    )
    text = TextConfig(
        transformer=TransformerConfig(**shape, mask=fields.get("text_mask", "causal")),
        vocab_size=60,
        context_length=12,
        **{"end_token_id": 59, **fields.get("text", {})},
    )
    clip = Clip(ClipConfig(vision=vision, text=text, embed_dim=24)).init_weights(5)
    with torch.no_grad():
        for weight in clip.parameters():
            weight += 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(6))
    return clip.eval()


@pytest.mark.parametrize("name", TOWERS)
def test_features_are_the_plain_clips(name):
    clip = build_clip(name)
    fused = fused_clip(clip)
    assert isinstance(fused.vision.transformer, FusedTransformer)
    generator = torch.Generator().manual_seed(7)
    images = torch.randint(0, 256, (3, 3, 32, 32), generator=generator).byte()
    tokens = torch.randint(1, 59, (4, 12), generator=generator)
    for row, length in enumerate((3, 12, 7, 5)):
        tokens[row, length - 1] = 59
        tokens[row, length:] = 0
    with torch.no_grad():
        pairs = [
            (fused.encode_image(images), clip.encode_image(images)),
            (fused.encode_text(tokens), clip.encode_text(tokens)),
        ]
    for ours, want in pairs:
        torch.testing.assert_close(ours, want, rtol=0, atol=2e-6)
    assert clip.vision.embed is not fused.vision.embed and len(clip.vision.transformer.blocks) == 2


def test_a_format_of_products_is_as_near_as_autocast_is():
    clip = build_clip("openai")
    images = torch.randint(0, 256, (4, 3, 32, 32)).byte()
    with torch.no_grad():
        want = clip.encode_image(images)
        fused = fused_clip(clip, dtype=torch.bfloat16).encode_image(images)
        with torch.autocast("cpu", torch.bfloat16):
            cast = clip.encode_image(images)
    assert fused.dtype == torch.float32
    assert (fused - want).abs().max() < 2 * (cast - want).abs().max() + 1e-3


def test_a_fused_tower_drops_no_patches():
    clip = build_clip("openai")
    fused = fused_clip(clip)
    assert fused_clip(fused) is fused
    with pytest.raises(ValueError, match="kept_BP"):
        fused.vision(torch.zeros(1, 3, 32, 32).byte(), kept_BP=torch.zeros(1, 2, dtype=torch.long))
