"""Real captions and images, and random-weight models of the peers to compare with."""

import io
import tarfile
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torch.nn import functional as F

ROOT = Path(__file__).parents[2]
CAPTIONS = [
    "a photo of a cat",
    "Two people are crossing the street, in the RAIN!",
    "\N{RED APPLE} a red apple; caf\u00e9 &amp; cr\u00e8me br\u00fbl\u00e9e",
    "x",
    "",
    "a very long description of a drawing with many parts, " * 12,
]


def images(number: int = 4) -> list[Image.Image]:
    """Drawings of the debug shard, of several modes, and two made here, wide and tall."""
    found: list[Image.Image] = []
    with tarfile.open(ROOT / "mmtrain/demo/debug/train.tar") as tar:
        for member in tar:
            if member.name.endswith((".webp", ".png", ".jpg")) and len(found) < number - 2:
                found.append(Image.open(io.BytesIO(tar.extractfile(member).read())).copy())
    for size in ((301, 97), (64, 190)):
        drawn = Image.new("RGB", size, "#d0e0f0")
        draw = ImageDraw.Draw(drawn)
        draw.ellipse((10, 10, size[0] - 10, size[1] // 2), fill="#b03060")
        draw.line((0, 0, *size), fill="#103010", width=7)
        found.append(drawn)
    return found


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter drawn anew, so that no bias is 0 and no norm the identity."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim <= 1:
                scale = 0.1 if name.endswith("weight") or "ls" in name else 0.05
                parameter.add_(scale * noise)
            else:
                fan_in = parameter[0].numel()
                parameter.copy_(noise * fan_in**-0.5)
    return model.eval()


@torch.no_grad()
def unit(features: Tensor) -> Tensor:
    return F.normalize(features.float(), dim=-1)


def assert_same_features(got: Tensor, want: Tensor, *, atol: float = 1e-5) -> None:
    """Unit-norm features within the bound, rows unlike each other."""
    assert got.shape == want.shape
    torch.testing.assert_close(got, want, rtol=0, atol=atol)
    spread = (want[:, None] - want[None]).norm(dim=-1) + 10 * torch.eye(len(want))
    assert spread.min() > 1e-3, "rows that are all alike would compare equal by chance"


def assert_same_tensors(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    assert got.keys() == want.keys()
    for name, tensor in want.items():
        assert got[name].dtype == tensor.dtype and torch.equal(got[name], tensor), name


def tiny_open_clip(**changes: Any) -> dict[str, Any]:
    """A model_cfg of two small towers; `vision_cfg` and `text_cfg` are merged."""
    cfg: dict[str, Any] = {
        "embed_dim": 32,
        "vision_cfg": {
            "image_size": 32,
            "patch_size": 8,
            "width": 48,
            "head_width": 16,
            "layers": 2,
        },
        "text_cfg": {"context_length": 24, "width": 32, "heads": 4, "layers": 2},
    }
    for key, value in changes.items():
        cfg[key] = cfg[key] | value if isinstance(value, dict) and key in cfg else value
    return cfg
