"""Towers small enough to check by hand, and shards of real small pictures for them."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmtrain.data.images.transforms import PreprocessConfig, eval_transform
from mmtrain.data.sources.open import open_source
from mmtrain.data.text.tokenizer import TokenizerConfig, build_tokenizer
from mmtrain.eval import Encoder
from mmtrain.eval.samples import decode_sample
from tests.data.shard_files import encoded, picture, write_shard

SIDE = 16
WIDTH = 12
TOKENIZER = build_tokenizer(TokenizerConfig())


class LinearTowers:
    """Random linear maps of the pixels and of the tokens; remembers its batch sizes."""

    def __init__(self, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.pixels_DE = torch.randn(3 * SIDE * SIDE, WIDTH, generator=generator)
        self.tokens_VE = torch.randn(49408, WIDTH, generator=generator)
        self.batch_sizes: list[int] = []

    def encode_image(self, images_BCHW: Tensor) -> Tensor:
        """Not of unit norm: a model need not normalise."""
        assert images_BCHW.dtype == torch.uint8
        self.batch_sizes.append(len(images_BCHW))
        return (images_BCHW.flatten(1).float() / 255 - 0.5) @ self.pixels_DE

    def encode_text(self, tokens_BT: Tensor) -> Tensor:
        """Depends on the order of the tokens, not on padding."""
        place_T1 = torch.arange(1, tokens_BT.size(1) + 1)[:, None]
        weight_BT1 = (tokens_BT > 0)[:, :, None] / place_T1
        return (self.tokens_VE[tokens_BT] * weight_BT1).sum(1)


def make_encoder(model: Any = None, **fields: Any) -> Encoder:
    """An encoder of LinearTowers on the CPU, batches of 4."""
    defaults: dict[str, Any] = {
        "model": model or LinearTowers(),
        "tokenizer": TOKENIZER,
        "preprocess": PreprocessConfig(image_size=SIDE),
        "batch_size": 4,
    }
    return Encoder(**(defaults | fields))


def image_features(path: Path | str, model: Any = None, *, side: int = SIDE) -> Tensor:
    """Unit-norm features of every picture of a shard, one at a time: [N, E] in fp64."""
    source, transform = open_source(str(path)), eval_transform(PreprocessConfig(image_size=side))
    model = model or LinearTowers()
    rows = [
        model.encode_image(transform(decode_sample(source.read(number)))[None]).double()
        for number in range(source.num_samples)
    ]
    return torch.cat([row / row.norm() for row in rows])


def text_features(texts: list[str], model: Any = None) -> Tensor:
    """Unit-norm features of every text, one at a time: [M, E] in fp64."""
    model = model or LinearTowers()
    rows = [model.encode_text(TOKENIZER([text])).double() for text in texts]
    return torch.cat([row / row.norm() for row in rows])


def write_classified(path: Path, count: int, *, num_classes: int, kind: str = "PNG") -> Path:
    """A shard of `count` pictures of various sizes; 7 times their number modulo is their class."""
    samples = []
    for number in range(count):
        image = picture((20 + number % 7, 18 + number % 5), seed=number)
        label = number * 7 % num_classes
        files = {kind.lower(): encoded(image, kind), "json": {"concept": label}}
        samples.append((f"{number:05d}", files | {"cls": str(label)}))
    return write_shard(path, samples)


def write_captioned(path: Path, captions: list[Any], *, same: Collection[int] = ()) -> Path:
    """A shard of one picture per entry, its captions in the .json; those in `same` look alike."""
    samples = []
    for number, texts in enumerate(captions):
        image = picture((22, 19), seed=99 if number in same else number)
        files = {"png": encoded(image, "PNG"), "json": {"captions": texts}}
        samples.append((f"{number:05d}", files))
    return write_shard(path, samples)
