"""Dialogues: each is read as it would be alone, whatever stands beside it in its row."""

import dataclasses
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from mmtrain.data.images.tiles import TilesConfig
from mmtrain.models import Clip
from mmtrain.models.dialogues import DialogueGenerator, Told, side_by_side
from mmtrain.models.generate_answers import GenerateConfig
from mmtrain.models.vqa import Vqa, VqaConfig
from mmtrain.nn import Mask, TransformerConfig, attend, attention, varlen
from mmtrain.nn.masks import causal_allowed, window_allowed
from mmtrain.nn.rope import RopeScaling
from mmtrain.peft.prompts import PromptConfig
from tests.parallel.tiny_dialogues import make_dialogues, reading

CORE = TransformerConfig(dim=16, num_layers=1, num_heads=2, mask="causal")
PIECE = 4


def build(**blocks: Any) -> Vqa:
    config = reading(**blocks)
    model = Vqa(*config).init_weights(0)
    state = Clip(config[0]).init_weights(0).vision.state_dict()
    model.vision.load_state_dict({n: v for n, v in state.items() if not n.startswith("head.")})
    return model.double().eval()


def generator_of(model: Vqa) -> DialogueGenerator:
    assert isinstance(model.generate, DialogueGenerator)
    return model.generate


@torch.no_grad()
def alone(model: Vqa, row: int) -> Tensor:
    """The logits of one dialogue, put together by hand: token by token, piece by piece."""
    batch, generate = make_dialogues(), generator_of(model)
    assert generate.decoder.embed is not None and generate.connector is not None
    assert generate.places is not None and generate.front_door is not None
    at, vectors = sum(batch.num_pieces[:row]) * PIECE, []
    for place in range(int(batch.length_B[row])):
        if batch.image_BT[row, place]:
            piece, token = divmod(at, PIECE)
            image = model.vision(batch.images_BCHW[piece : piece + 1])
            x = generate.front_door(generate.connector(image), Mask())[0, token]
            r, c = (batch.place_N2[piece] + 1).tolist()
            vectors.append(x + generate.places.rows[r] + generate.places.columns[c])
            at += 1
        else:
            vectors.append(generate.decoder.embed.token(batch.tokens_BT[row, place]))
    return generate.decoder(torch.stack(vectors)[None])[0]


def logits_of(model: Vqa, images: Tensor, told: Told) -> Tensor:
    return generator_of(model)(model.vision(images), make_dialogues().place_N2, told)


@pytest.mark.parametrize("packs", [False, True])
@torch.no_grad()
def test_a_dialogue_is_read_as_alone(packs: bool) -> None:
    model, batch = build(), make_dialogues()
    told = Told(tokens_BT=batch.tokens_BT, image_BT=batch.image_BT)
    lengths = batch.length_B.tolist()
    if packs:
        told = side_by_side(told, lengths)
        assert told.tokens_BT.shape == (1, sum(lengths)), "no padding"
    logits = logits_of(model, batch.images_BCHW, told)
    rows = (
        logits[0].split(lengths) if packs else [x[:n] for x, n in zip(logits, lengths, strict=True)]
    )
    for row in (0, 1, 2, 3):
        torch.testing.assert_close(rows[row], alone(model, row), rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_nothing_leaks_between_dialogues_in_a_row() -> None:
    """Another's words, or another's image, change no bit of one's logits; its own do."""
    model, batch = build().float(), make_dialogues()
    lengths = batch.length_B.tolist()

    def logits(tokens_BT: Tensor, images: Tensor) -> list[Tensor]:
        told = side_by_side(Told(tokens_BT=tokens_BT, image_BT=batch.image_BT), lengths)
        return list(logits_of(model, images, told)[0].split(lengths))

    before = logits(batch.tokens_BT, batch.images_BCHW)
    for row in range(4):
        tokens, images = batch.tokens_BT.clone(), batch.images_BCHW.clone()
        if batch.num_pieces[row]:
            images[sum(batch.num_pieces[:row])] ^= 255
        else:
            tokens[row, 0] = (tokens[row, 0] + 7) % 50
        after = logits(tokens, images)
        changed = [not was.equal(now) for was, now in zip(before, after, strict=True)]
        assert changed == [other == row for other in range(len(lengths))]


@pytest.mark.parametrize("cap", [None, 2.0])
@pytest.mark.parametrize("window", [None, 1, 3])
def test_texts_side_by_side_attend_as_a_mask_says(window: int | None, cap: float | None) -> None:
    """Values and gradients of one dense mask over the row; grouped heads."""
    lengths = (5, 1, 2, 7)
    total = sum(lengths)
    x = [torch.randn(1, total, heads, 8, dtype=torch.float64) for heads in (4, 2, 2)]
    of = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    allowed = (of[:, None] == of)[None] & causal_allowed(total, total, device=of.device)
    if window is not None:
        place = torch.arange(total)[None]
        allowed = allowed & window_allowed(place, place, window)
    found = []
    for mask in (Mask(allowed=allowed), Mask(causal=True, lengths=lengths, window=window)):
        q, k, v = (part.clone().requires_grad_() for part in x)
        out = attend(q, k, v, mask, cap=cap)
        out.square().sum().backward()
        found.append([out, q.grad, k.grad, v.grad])
    for want, got in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("window", [None, 2])
def test_the_kernel_of_a_gpu_is_called_as_it_is_documented(
    window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By one that does what torch's documentation says, text by text."""

    def documented(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        start_q: Tensor,
        start_k: Tensor,
        *rest: Any,
        **options: Any,
    ) -> Tensor:
        assert start_q.dtype == torch.int32 and rest == (7, 7) and options["enable_gqa"]
        left, right = options["window_size"]
        out = []
        for first, stop in itertools.pairwise(start_k.tolist()):
            place = torch.arange(stop - first)
            away = place[:, None] - place
            near = (away >= -right) & ((away <= left) if left >= 0 else True)
            text = (x[None, first:stop] for x in (q, k, v))
            out.append(attend(*text, Mask(allowed=near[None]), scale=options["scale"])[0])
        return torch.cat(out)

    x = [torch.randn(1, 15, heads, 8) for heads in (4, 2, 2)]
    mask = Mask(causal=True, lengths=(5, 1, 2, 7), window=window)
    want = attend(*x, mask, scale=0.3)
    monkeypatch.setattr(varlen, "_kernel", lambda: documented)
    monkeypatch.setattr(attention, "takes_varlen", lambda q: True)
    torch.testing.assert_close(attend(*x, mask, scale=0.3), want)


def test_without_tiles_a_model_has_no_places() -> None:
    with_tiles, without = (set(Vqa(*reading(tiles=tiles)).state_dict()) for tiles in (True, False))
    assert with_tiles - without == {"generate.places.rows", "generate.places.columns"}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"transformer": dataclasses.replace(CORE, mask="prefix")}, "transformer.mask"),
        ({"transformer": dataclasses.replace(CORE, mask="block")}, "transformer.mask"),
        ({"prompt": PromptConfig()}, "prompt"),
    ],
)
def test_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        GenerateConfig(**{"transformer": CORE, "reads": "dialogues"} | changes)


def test_a_context_holds_a_dialogue_and_no_more() -> None:
    config = GenerateConfig(
        transformer=CORE,
        vocab_size=9,
        text_length=20,
        context_length=19,
        reads="dialogues",
        rope_scaling=RopeScaling(kind="linear", factor=2),
    )
    with pytest.raises(ValueError, match=r"holds no dialogue of 20 tokens.*max_length"):
        config.decoder(4)
    assert dataclasses.replace(config, context_length=None).decoder(4).context_length == 20


def test_tiles_are_of_dialogues() -> None:
    with pytest.raises(ValueError, match="tiles"):
        VqaConfig(tiles=TilesConfig(), generate=GenerateConfig(transformer=CORE))
