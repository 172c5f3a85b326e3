"""Small real images and shards for tests."""

import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmtrain.data.config import DataConfig
from mmtrain.data.image_text import ImageTextData
from mmtrain.data.images.transforms import PreprocessConfig
from mmtrain.data.streamed import open_image_text
from mmtrain.data.text.tokenizer import TokenizerConfig, build_tokenizer

Files = Mapping[str, Any]
"""A sample's files by extension: bytes, text, or what becomes JSON."""


def picture(size: tuple[int, int] = (40, 30), *, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """A picture of `size` (width, height) with soft shapes and a little noise."""
    rng = np.random.default_rng(seed)
    width, height = size
    y, x = np.mgrid[:height, :width].astype(np.float64)
    waves = [np.sin(x / rng.uniform(2, 9) + i) + np.cos(y / rng.uniform(2, 9)) for i in range(4)]
    levels = np.stack(waves, axis=-1) * 50 + 128 + rng.normal(0, 4, (height, width, 4))
    pixels = levels.clip(0, 255).astype(np.uint8)
    if mode in ("RGBA", "CMYK"):
        return Image.fromarray(pixels, mode)
    return Image.fromarray(pixels[..., :3]).convert(mode)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The picture as a file of some format."""
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def write_shard(path: Path, samples: Iterable[tuple[str, Files]], **options: Any) -> Path:
    """A tar of samples: key and files each; `options` go to tarfile."""
    with tarfile.open(path, "w", **options) as tar:
        for key, files in samples:
            for extension, content in files.items():
                data = content if isinstance(content, bytes) else as_text(content).encode()
                member = tarfile.TarInfo(f"{key}.{extension}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return path


def as_text(content: Any) -> str:
    return content if isinstance(content, str) else json.dumps(content)


def pairs(first: int, num: int) -> list[tuple[str, dict[str, Any]]]:
    """Numbered samples of all three image kinds: key 00007 has the caption `picture 7`."""
    samples = []
    for number in range(first, first + num):
        kind = ("png", "jpg", "webp")[number % 3]
        image = picture((24 + number % 7, 24 + number % 5), seed=number)
        samples.append(
            (
                f"{number:05}",
                {
                    kind: encoded(image, {"jpg": "JPEG"}.get(kind, kind.upper())),
                    "txt": f"picture {number}",
                    "json": {"concept": f"c{number % 4}", "names": [f"n{number}", f"m{number}"]},
                },
            )
        )
    return samples


def write_set(folder: Path, sizes: Iterable[int]) -> str:
    """Shards of these sizes in a folder, numbered on; the glob that finds them."""
    first = 0
    folder.mkdir(exist_ok=True)
    for number, size in enumerate(sizes):
        write_shard(folder / f"{number:03}.tar", pairs(first, size))
        first += size
    return str(folder / "*.tar")


TOKENIZER = build_tokenizer(TokenizerConfig(context_length=16))


def build_data(train: str, *, batch_size: int = 4, **options: Any) -> ImageTextData:
    """Batches of 16-pixel images; `options` of the data come apart from those of the config."""
    own = {"rank", "world_size", "images", "fixed_length", "seed", "tokenizer"}
    rest = {"tokenizer": TOKENIZER, "seed": 5} | {k: options.pop(k) for k in own & options.keys()}
    return open_image_text(
        DataConfig(train=train, **options),
        preprocess=PreprocessConfig(image_size=16),
        batch_size=batch_size,
        **rest,
    )
