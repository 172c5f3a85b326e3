"""The decoder: no leak from the future, padding and neighbours change nothing, caches agree."""

from typing import Any

import pytest
import torch
from torch import Tensor

from mmtrain.models import Decoder, DecoderConfig
from mmtrain.nn import Mask, TransformerConfig, attend, attention

B, T, V = 3, 8, 17
SEGMENT = torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2]]).expand(B, -1)
PREFIX = torch.tensor([3, 3, 3])
KINDS = {
    "causal": {},
    "prefix": {"prefix_length_B": PREFIX},
    "block": {"segment_BT": SEGMENT},
    "local": {},
}


def build(kind: str = "causal", **fields) -> Decoder:
    """A tiny decoder; `local` is causal with GPT-3's alternation of layers."""
    local = {"local_window": 3} if kind == "local" else {}
    blocks = TransformerConfig(
        dim=16,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=6,
        norm="rms",
        activation="swiglu",
        mask="causal" if kind == "local" else kind,  # pyright: ignore[reportArgumentType]
        **local,
    )
    config = DecoderConfig(transformer=blocks, vocab_size=V, context_length=32, **fields)
    model = Decoder(config).init_weights(torch.Generator().manual_seed(0)).double()
    with torch.no_grad():  # far from the symmetric start, so that a leak shows
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(
                parameter.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64
            )
    return model


def ids(seed: int = 0, *, batch: int = B, length: int = T) -> Tensor:
    return torch.randint(V, (batch, length), generator=torch.Generator().manual_seed(seed))


def rows(kind: str, stop: int = T) -> dict[str, Tensor]:
    """The keyword arguments of the kind, cut to the first tokens."""
    return {k: v[:, :stop] if k == "segment_BT" else v for k, v in KINDS[kind].items()}


def cached(model: Decoder, tokens: Tensor, kind: str, first: int) -> Tensor:
    """Logits with a cache: the first tokens at once, the rest one by one."""
    cache = model.build_cache(tokens.size(0), T)
    parts = [model(tokens[:, :first], cache=cache, **rows(kind, first))]
    for t in range(first, T):
        now = {"segment_BT": SEGMENT[:, t : t + 1]} if kind == "block" else {}
        parts.append(model(tokens[:, t : t + 1], cache=cache, **now))
    return torch.cat(parts, 1)


@pytest.mark.parametrize("positions", ["rope", "learned"])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_cached_equals_uncached(kind, positions):
    model, tokens = build(kind, positions=positions), ids()
    want = model(tokens, **KINDS[kind])
    torch.testing.assert_close(cached(model, tokens, kind, 3), want)
    last = model(tokens, num_logits=2, **KINDS[kind])
    torch.testing.assert_close(last, want[:, -2:])


@pytest.mark.parametrize("with_cache", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_no_logit_depends_on_a_later_token(kind, with_cache):
    """All tokens behind the prefix or the context are changed one by one."""
    model, tokens = build(kind), ids()
    first = 3 if kind in ("prefix", "block") else 1

    def logits(x: Tensor) -> Tensor:
        return cached(model, x, kind, first) if with_cache else model(x, **KINDS[kind])

    base = logits(tokens)
    for t in range(first, T):
        changed = tokens.clone()
        changed[:, t] = (changed[:, t] + 1) % V
        got = logits(changed)
        assert torch.equal(got[:, :t], base[:, :t]), f"token {t} leaks"
        assert not torch.allclose(got[:, t], base[:, t]), "its own logits must change"


@pytest.mark.parametrize("positions", ["rope", "learned"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_padding_and_neighbours_change_no_logit(kind, side, positions):
    """Texts of 8, 6 and 4 tokens in one batch, against each alone."""
    model, tokens, lengths = build(kind, positions=positions), ids(), (8, 6, 4)
    padded, real = torch.zeros_like(tokens), torch.zeros(B, T, dtype=torch.bool)
    segment = torch.full((B, T), -1)
    places = [slice(T - n, T) if side == "left" else slice(0, n) for n in lengths]
    for b, place in enumerate(places):
        n = lengths[b]
        padded[b, place], real[b, place], segment[b, place] = tokens[b, :n], True, SEGMENT[b, :n]
    fields = {"segment_BT": segment} if kind == "block" else {"real_BT": real, **KINDS[kind]}
    got = model(padded, **fields)
    other = model(torch.where(real, padded, (padded + 5) % V), **fields)
    assert got.isfinite().all()
    for b, place in enumerate(places):
        alone = model(tokens[b : b + 1, : lengths[b]], **row_alone(kind, lengths[b]))
        torch.testing.assert_close(got[b, place], alone[0])
        assert torch.equal(got[b, place], other[b, place]), "padding ids are seen"


def row_alone(kind: str, length: int) -> dict[str, Tensor]:
    return {k: v[:1] for k, v in rows(kind, length).items()}


@pytest.mark.parametrize("kind", ["causal", "local"])
@torch.no_grad()
def test_left_padded_prompts_decode_as_each_alone(kind):
    """Prefill of prompts of different lengths, then three tokens each, in one cache."""
    model, tokens, lengths = build(kind), ids(), (5, 2, 1)
    prompt, real = torch.zeros(B, 5, dtype=torch.int64), torch.zeros(B, 5, dtype=torch.bool)
    for b, n in enumerate(lengths):
        prompt[b, 5 - n :], real[b, 5 - n :] = tokens[b, :n], True
    cache = model.build_cache(B, 8)
    parts = [model(prompt, real_BT=real, cache=cache, num_logits=1)]
    for step in range(3):
        following = torch.stack([tokens[b, n + step] for b, n in enumerate(lengths)])[:, None]
        parts.append(model(following, cache=cache))
    got = torch.cat(parts, 1)
    assert cache.length_B.tolist() == [8, 5, 4]
    for b, n in enumerate(lengths):
        want = model(tokens[b : b + 1, : n + 3], num_logits=4)
        torch.testing.assert_close(got[b], want[0])


@torch.no_grad()
def test_one_images_cache_serves_each_of_its_questions():
    """Mask kind block: the packed row, and one row per question over a copied context."""
    model, tokens = build("block"), ids(batch=1)
    packed = model(tokens, segment_BT=SEGMENT[:1])
    cache = model.build_cache(1, T)
    model(tokens[:, :3], segment_BT=SEGMENT[:1, :3], cache=cache)
    cache.select(torch.tensor([0, 0]))
    questions = torch.tensor([[0, *tokens[0, 3:5]], [*tokens[0, 5:]]])
    real = torch.tensor([[False, True, True], [True, True, True]])
    got = model(questions, real_BT=real, cache=cache)
    torch.testing.assert_close(got[0, 1:], packed[0, 3:5])
    torch.testing.assert_close(got[1], packed[0, 5:])
    cache.rewind(3)
    again = model(questions[1:].expand(2, -1), cache=cache)
    torch.testing.assert_close(again[0], packed[0, 5:])


@torch.no_grad()
def test_vectors_stand_for_tokens():
    """Vectors from embed.token give the logits of their ids; the scale is rounded to the dtype."""
    model = build(positions="learned", embed_scale=True, tied_head=True)
    vectors = model.embed.token(ids())
    torch.testing.assert_close(vectors, model.embed.token.weight[ids()] * 4.0)
    assert torch.equal(model(vectors), model(ids()))
    wide = DecoderConfig(
        transformer=TransformerConfig(dim=3072, num_layers=1, num_heads=1, mask="causal"),
        vocab_size=2,
        context_length=1,
        embed_scale=True,
    )
    token = Decoder(wide).embed.token.bfloat16()
    torch.nn.init.ones_(token.weight)
    assert token(torch.tensor([[0]]))[0, 0, 0].item() == 55.5, "sqrt(3072) = 55.43 in bf16"


def test_a_tied_head_has_one_matrix_and_one_gradient():
    model = build(tied_head=True)
    assert "head.projection.weight" not in model.state_dict()
    model(ids()).logsumexp(-1).sum().backward()
    unseen = torch.tensor([v for v in range(V) if v not in ids().unique()])
    assert model.embed.token.weight.grad[unseen].abs().min() > 0, "the head's share"


@torch.no_grad()
def test_two_stages_give_the_whole():
    """Cut as a pipeline cuts: later blocks alone, the tied matrix handed on."""
    whole, first, last = (build(tied_head=True) for _ in range(3))
    del first.transformer.blocks["1"], last.transformer.blocks["0"]
    first.head = last.embed = None
    x = first(ids())
    with pytest.raises(ValueError, match="tied to an embedding that another stage holds"):
        last(x)
    tied_VD = first.matrix_to_hand_on(ids())
    torch.testing.assert_close(last(x, tied_VD=tied_VD), whole(ids()))
    assert last.matrix_to_hand_on(x) is None and whole.matrix_to_hand_on(ids()) is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"vocab_size": 0}, "vocab_size = 0 must be at least 1"),
        ({"transformer": {"mask": "full"}}, "lets a decoder see what it must predict"),
        ({"transformer": {"context_dim": 16}}, "a decoder has nothing to look at"),
        ({"transformer": {"head_dim": 5}}, "head_dim = 5 must be even for rotary"),
    ],
)
def test_configs_that_cannot_be_are_refused(fields, message):
    blocks = {"dim": 16, "num_layers": 1, "num_heads": 2, "mask": "causal"}
    blocks |= fields.pop("transformer", {})
    config = {"vocab_size": 5, "context_length": 4} | fields
    with pytest.raises(ValueError, match=message):
        DecoderConfig(transformer=TransformerConfig(**blocks), **config)


def test_what_does_not_fit_is_refused():
    model = build()
    with pytest.raises(ValueError, match="33 tokens exceeds context_length = 32"):
        model(ids(length=33))
    cache = model.build_cache(B, 4)
    with pytest.raises(ValueError, match="max_length = 4 cannot hold 5 tokens"):
        model(ids(length=5), cache=cache)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("positions", ["rope", "learned"])
def test_padding_behind_causal_texts_needs_no_mask(
    window: int | None, positions: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In training, layers that see all before them get the flag and no mask of every row; what real
    tokens get, and all gradients, are those of the mask, to the last bit."""
    core = TransformerConfig(
        dim=16, num_layers=2, num_heads=4, num_kv_heads=2, mask="causal", local_window=window
    )
    config = DecoderConfig(
        transformer=core,
        vocab_size=40,
        context_length=12,
        positions=positions,  # pyright: ignore[reportArgumentType]
    )
    model = Decoder(config).init_weights(torch.Generator().manual_seed(0)).double()
    tokens_BT = torch.randint(0, 40, (3, 12), generator=torch.Generator().manual_seed(1))
    length_B = torch.tensor([12, 7, 1])
    real_BT = torch.arange(12) < length_B[:, None]
    seen: list[Mask] = []

    def attended(q: Tensor, k: Tensor, v: Tensor, mask: Mask, **how: Any) -> Tensor:
        seen.append(mask)
        return attend(q, k, v, mask)

    monkeypatch.setattr(attention, "attend", attended)
    stage = model.stage()
    stage.set_criterion(lambda outputs, rows: outputs["written"].flatten(1))
    results = {}
    for way in ("mask", "flag"):
        if way == "mask":
            out_BTV = model(tokens_BT, real_BT=real_BT)
        else:
            seen.clear()
            out_BTV = stage(tokens_BT, length_B=length_B).unflatten(1, (12, -1))
        (out_BTV * real_BT[..., None]).square().sum().backward()
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        results[way] = [out_BTV[real_BT], *gradients]
        model.zero_grad()
    assert [mask.causal for mask in seen] == [True, window is None]
    assert all(mask.allowed is None or mask.allowed.size(0) == 1 for mask in seen)
    for got, want in zip(results["flag"], results["mask"], strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-14)
    assert torch.equal(results["flag"][0], results["mask"][0])
