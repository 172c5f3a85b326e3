"""Pictures of surveys' tests, and what is on a sheet of them."""

import re
from pathlib import Path

import numpy as np
from PIL import Image

from mmtrain.cli import main


def landscape(seed: int, size: tuple[int, int] = (96, 72)) -> Image.Image:
    """A picture with large shapes, as photographs have them."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def sheet(data: str, out: Path, *options: str) -> list[str]:
    """The keys on a sheet, in its order."""
    assert main(["data", "view", data, "--out", str(out), *options]) == 0
    return re.findall(r'<div class="soft small anywhere">(.*?)</div>', out.read_text())
