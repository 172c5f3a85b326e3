"""The text tower: padding cut exactly, pools, what sees what, tables of weights."""

import pytest
import torch
from torch import Tensor

from mmtrain.models import Clip, ClipConfig, TextConfig, TextTower, VisionConfig
from mmtrain.nn import TransformerConfig

D, E, T, END, VOCAB = 16, 12, 10, 30, 32
LENGTH = torch.tensor([4, 7, 2, 6])


def config(mask: str = "causal", *, core: dict | None = None, **fields) -> TextConfig:
    blocks = TransformerConfig(
        **({"dim": D, "num_layers": 2, "num_heads": 2, "mask": mask} | (core or {}))
    )
    fields = {"vocab_size": VOCAB, "context_length": T, "end_token_id": END} | fields
    return TextConfig(transformer=blocks, **fields)


def build(*args, **kwargs) -> TextTower:
    tower = TextTower(config(*args, **kwargs), embed_dim=E)
    tower.init_weights(torch.Generator().manual_seed(0))
    return tower.double()


def tokens(*, pad: int = 0) -> Tensor:
    """Rows of unequal length, END last, then padding."""
    ids = torch.randint(1, END, (4, T), generator=torch.Generator().manual_seed(1))
    ids[torch.arange(4), LENGTH - 1] = END
    ids[torch.arange(T) >= LENGTH[:, None]] = pad
    return ids


CUT = [
    ("causal", {"pool": "end"}),
    ("causal", {"pool": "mean"}),
    ("full", {"pool": "end"}),
    ("full", {"pool": "mean"}),
    ("full", {"pool": "first"}),
]


@pytest.mark.parametrize("positions", ["learned", "sinusoidal", "rope", "none"])
@pytest.mark.parametrize(("mask", "fields"), CUT)
def test_padding_is_cut_without_a_trace(mask, fields, positions):
    """The whole context, the batch's longest, each text alone, other padding: the same numbers."""
    tower = build(mask, positions=positions, **fields)
    assert tower.config.cuts_padding
    length, longest = LENGTH, int(LENGTH.max())
    whole = tower(tokens(), length_B=length)
    torch.testing.assert_close(tower(tokens()[:, :longest], length_B=length), whole)
    torch.testing.assert_close(tower(tokens(pad=9), length_B=length), whole)
    for row in range(4):
        n = int(length[row])
        alone = tower(tokens()[row : row + 1, :n], length_B=length[row : row + 1])
        torch.testing.assert_close(alone[0], whole[row])


@pytest.mark.parametrize(
    ("mask", "fields"),
    [
        ("full", {"pool": "last", "mask_padding": False}),
        ("full", {"pool": "end", "mask_padding": False}),
        ("causal", {"pool": "last"}),
    ],
)
def test_padding_stays_where_the_checkpoint_attends_to_it(mask, fields):
    tower = build(mask, **fields)
    assert not tower.config.cuts_padding
    first, other = (tower(tokens(pad=pad), length_B=LENGTH) for pad in (0, 9))
    assert not torch.isclose(first, other).all(1).any()


def clip(text: TextConfig) -> Clip:
    vision = VisionConfig(
        transformer=TransformerConfig(dim=D, num_layers=1, num_heads=2), image_size=8, patch_size=4
    )
    return Clip(ClipConfig(vision=vision, text=text, embed_dim=E)).init_weights(0).double()


@pytest.mark.parametrize("num_groups", [2, 3, 9])
@pytest.mark.parametrize(("mask", "fields"), CUT)
def test_groups_of_like_length_change_nothing(mask, fields, num_groups):
    """Embeddings in the batch's order, and every gradient, dropped branches included."""
    tower = build(mask, **fields)
    keep_BL2 = torch.rand(4, 2, 2, generator=torch.Generator().manual_seed(2)).round().double() * 2
    out, gradients = [], []
    for groups in (1, num_groups):
        tower.num_groups = groups
        tower.zero_grad()
        out.append(tower(tokens(), length_B=LENGTH, keep_BL2=keep_BL2))
        (out[-1] * torch.arange(4.0)[:, None]).sum().backward()
        gradients.append([parameter.grad.clone() for parameter in tower.parameters()])
    torch.testing.assert_close(out[1], out[0])
    torch.testing.assert_close(gradients[1], gradients[0])


@pytest.mark.parametrize(("mask", "fields"), CUT)
def test_encode_text_cuts_by_itself(mask, fields, monkeypatch):
    model = clip(config(mask, **fields))
    seen = []
    forward = model.text.embed.forward
    monkeypatch.setattr(
        model.text.embed, "forward", lambda x: (seen.append(x.size(1)), forward(x))[1]
    )
    got = model.encode_text(tokens())
    assert seen == [int(LENGTH.max())]
    torch.testing.assert_close(got.norm(dim=-1), torch.ones(4, dtype=torch.float64))
    torch.testing.assert_close(got, model.encode_text(tokens(), LENGTH))
    assert seen == [7, T], "lengths that are given say that the batch is cut already"


def test_siglip_keeps_its_padding():
    model = clip(config("full", pool="last", mask_padding=False))
    raw = model.text(tokens(), length_B=LENGTH)
    torch.testing.assert_close(model.encode_text(tokens()), raw / raw.norm(dim=-1, keepdim=True))


def test_lengths_are_read_from_the_end_token():
    tower = build()
    ids = torch.tensor([[5, 30, 0, 0], [5, 6, 30, 30], [30, 1, 2, 3], [1, 2, 3, 4]])
    assert tower.text_length(ids).tolist() == [2, 3, 1, 4]
    largest = build(end_token_id=None)
    assert largest.text_length(ids).tolist() == [2, 3, 1, 4]


def test_a_text_without_tokens_poisons_nothing():
    """Its own embedding is arbitrary but finite, and so is every gradient."""
    for mask, fields in CUT:
        tower = build(mask, **fields)
        length = torch.tensor([4, 0, 2, 6])
        out = tower(tokens(), length_B=length)
        out.sum().backward()
        assert out.isfinite().all()
        gradients = [p.grad for p in tower.parameters() if p.grad is not None]
        assert all(gradient.isfinite().all() for gradient in gradients)
        want = tower(tokens(), length_B=LENGTH)
        torch.testing.assert_close(out[[0, 2, 3]], want[[0, 2, 3]])


def test_the_head_is_norm_pool_projection():
    for pool in ("end", "first", "last", "mean"):
        mask = "full" if pool == "first" else "causal"
        head = build(mask, pool=pool, projection_bias=True).head
        with torch.no_grad():
            head.norm.weight.uniform_(0.5, 2)
            head.projection.bias.uniform_(-1, 1)
        x = torch.randn(4, T, D, dtype=torch.float64)
        y = head.norm(x)
        rows = torch.arange(4)
        pooled = {
            "end": y[rows, LENGTH - 1],
            "first": y[:, 0],
            "last": y[:, -1],
            "mean": torch.stack(
                [y[b, :n].mean(0) for b, n in enumerate(LENGTH)]
                if pool == "mean"
                else [y[b, 0] for b in rows]
            ),
        }[pool]
        torch.testing.assert_close(head(x, LENGTH), head.projection(pooled))


def test_texts_beyond_the_context_are_refused():
    with pytest.raises(ValueError, match="texts of 11 tokens exceed context_length = 10"):
        build()(torch.zeros(1, 11, dtype=torch.long), length_B=torch.tensor([11]))


def test_texts_are_not_cut_where_padding_counts():
    """Silently another function, if it were allowed: `last` would pick a token of the batch."""
    tower = build("full", pool="last", mask_padding=False)
    with pytest.raises(ValueError, match="9 tokens must be padded to context_length = 10"):
        tower(tokens()[:, :9], length_B=LENGTH)


def test_weights_are_drawn_by_the_table():
    tower = TextTower(
        config(
            core={"dim": 64, "init": "scaled"},
            vocab_size=300,
            context_length=100,
            projection_bias=True,
        ),
        embed_dim=100,
    )
    for parameter in tower.parameters():
        parameter.data.fill_(7.0)
    tower.init_weights(torch.Generator().manual_seed(0))
    named = dict(tower.named_parameters())
    for name, std in (
        ("embed.token.weight", 0.02),
        ("embed.positional_embedding", 0.01),
        ("head.projection.weight", 64**-0.5),
    ):
        assert named[name].std().item() == pytest.approx(std, rel=0.03), name
    assert (named["head.projection.bias"] == 0).all()
    assert (named["head.norm.weight"] == 1).all() and (named["head.norm.bias"] == 0).all()
    assert not any((p == 7).any() for p in named.values())


def test_the_tables_spread_is_open_clips():
    """Tensor by tensor, against a fresh text tower of open_clip's."""
    from open_clip.transformer import TextTransformer

    torch.manual_seed(0)
    theirs = TextTransformer(100, 300, 64, 2, 4, output_dim=100)
    tower = TextTower(
        config(
            core={"dim": 64, "num_layers": 4, "init": "scaled"}, vocab_size=300, context_length=100
        ),
        embed_dim=100,
    )
    tower.init_weights(torch.Generator().manual_seed(0))
    block, other = tower.transformer.blocks["1"], theirs.transformer.resblocks[1]
    pairs = [
        (tower.embed.token.weight, theirs.token_embedding.weight),
        (tower.embed.positional_embedding, theirs.positional_embedding),
        (tower.head.projection.weight, theirs.text_projection),
        (block.attention.q.weight, other.attn.in_proj_weight),
        (block.attention.o.weight, other.attn.out_proj.weight),
        (block.feed_forward.up.weight, other.mlp.c_fc.weight),
        (block.feed_forward.up.bias, other.mlp.c_fc.bias),
        (block.feed_forward.down.weight, other.mlp.c_proj.weight),
    ]
    for number, (got, want) in enumerate(pairs):
        assert got.std().item() == pytest.approx(want.std().item(), rel=0.12), number
    for got, want in (
        (block.attention.q.bias, other.attn.in_proj_bias),
        (block.attention.o.bias, other.attn.out_proj.bias),
    ):
        assert (got == 0).all() and (want == 0).all()


@pytest.mark.parametrize(
    ("build_config", "message"),
    [
        (lambda: config("prefix"), 'transformer.mask = "prefix" is not for this tower'),
        (lambda: config("causal", pool="first"), "sees only itself under a causal mask"),
        (lambda: config(vocab_size=0), "vocab_size = 0 must be at least 1"),
        (lambda: config(projection=False, projection_bias=True), "needs projection = true"),
        (lambda: config(positions="rope", core={"head_dim": 5}), "must be a multiple of 2"),
    ],
)
def test_towers_that_cannot_be_are_refused(build_config, message):
    with pytest.raises(ValueError, match=message):
        build_config()


def test_no_projection_leaves_the_width():
    assert TextTower(config(projection=False), embed_dim=D)(tokens(), length_B=LENGTH).shape[1] == D
