"""Texts and images to features: in whatever order they were read, from fused towers."""

import pytest
import torch

from mmtrain.eval.encode import encode_image_batch, encode_texts
from mmtrain.models import Clip, ClipConfig
from mmtrain.models.text import TextConfig
from mmtrain.models.vision import VisionConfig
from mmtrain.nn import TransformerConfig
from mmtrain.nn.fused import FusedTransformer
from tests.eval.tiny import SIDE, LinearTowers, make_encoder

BLOCKS = {"dim": 16, "num_layers": 1, "num_heads": 2}
TEXTS = ["a", "a photo of a very large red car in the rain", "two dogs", "an apple, cut", "é" * 9]


def small_clip() -> Clip:
    """A CLIP that takes what the tiny encoder gives."""
    config = ClipConfig(
        vision=VisionConfig(
            transformer=TransformerConfig(**BLOCKS), image_size=SIDE, patch_size=SIDE // 2
        ),
        text=TextConfig(transformer=TransformerConfig(**BLOCKS, mask="causal")),
        embed_dim=8,
    )
    return Clip(config).init_weights(0).eval()


class Lengths(LinearTowers):
    """Remembers what the longest text of each batch has of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.longest: list[int] = []

    def encode_text(self, tokens_BT):
        self.longest.append(int((tokens_BT > 0).sum(1).max()))
        return super().encode_text(tokens_BT)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_texts_come_back_in_their_order_and_go_in_by_length(size):
    towers = Lengths()
    encoder = make_encoder(towers, batch_size=size)
    want = torch.cat([encode_texts(encoder, [text]) for text in TEXTS])
    towers.longest.clear()
    torch.testing.assert_close(encode_texts(encoder, TEXTS), want)
    assert towers.longest == sorted(towers.longest)
    assert len(towers.longest) == -(-len(TEXTS) // size)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_whole_clip_encodes_from_fused_towers(precision):
    clip = small_clip()
    encoder = make_encoder(clip, precision=precision)
    assert isinstance(encoder.towers.vision.transformer, FusedTransformer)
    assert encoder.model is clip and encoder.towers is encoder.towers
    images = torch.randint(0, 256, (3, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        want = clip.encode_image(images.byte())
        texts = clip.encode_text(encoder.tokenizer(TEXTS))
    close = {"rtol": 0, "atol": 1e-5 if precision == "fp32" else 3e-2}
    torch.testing.assert_close(encode_image_batch(encoder, images.byte()), want, **close)
    torch.testing.assert_close(encode_texts(encoder, TEXTS), texts, **close)
