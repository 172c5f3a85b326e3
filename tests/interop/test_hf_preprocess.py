"""Whatever preprocessor_config.json says or leaves out: transformers' pixels, or a line."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from mmtrain.data.images.transforms import eval_transform
from mmtrain.errors import UsageError
from mmtrain.interop.hf_clip_config import config_from_hf
from mmtrain.interop.hf_preprocess import read_preprocess
from tests.data.shard_files import picture

SIDE = 32
SQUARE = {"height": SIDE, "width": SIDE}
IMAGES = [picture((96, 64), seed=1), picture((33, 55), seed=2), picture((32, 32), seed=3)]
WHOLE = {
    "clip": {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": SIDE},
        "crop_size": SQUARE,
        "resample": 3,
    },
    "siglip": {"image_processor_type": "SiglipImageProcessor", "size": SQUARE, "resample": 3},
}
PARTS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "sizes as numbers": {"size": SIDE, "crop_size": SIDE},
    "a square and a crop of it": {"size": SQUARE, "do_center_crop": True, "crop_size": SQUARE},
    "a square": {"size": SQUARE, "do_center_crop": False},
    "no filter": {"resample": ...},
    "no size": {"size": ...},
    "no sizes": {"size": ..., "crop_size": ...},
    "no class": {"image_processor_type": ...},
    "SigLIP's class": {"image_processor_type": "SiglipImageProcessor", "size": SQUARE},
    "CLIP's class": {"image_processor_type": "CLIPImageProcessor", "do_center_crop": False},
    "ViT's class": {"image_processor_type": "ViTImageProcessor", "resample": ..., "size": SIDE},
    "an old class": {"image_processor_type": ..., "feature_extractor_type": "ViTFeatureExtractor",
                     "size": SIDE, "resample": ...},
    "BLIP's class": {"image_processor_type": "BlipImageProcessor", "size": SIDE},
    "DeiT's class": {"image_processor_type": "DeiTImageProcessor", "size": SIDE},
    "fast": {"image_processor_type": "CLIPImageProcessorFast", "crop_size": SIDE},
    "numbers are squares": {"size": SIDE, "default_to_square": True},
    "numbers are edges": {"size": SIDE, "default_to_square": False},
    "null, no crop": {"do_center_crop": None},
    "null, no resize": {"do_resize": None},
    "filled up": {"do_pad": True, "pad_size": {"height": 64, "width": 64}},
    "filled up to the same": {"do_pad": True, "pad_size": SQUARE},
    "pixels of its own": {"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 1, 1]},
}  # fmt: skip

CROPS_OF_LARGER = [("clip", "no size"), ("clip", "null, no resize"), ("siglip", "null, no resize")]


def write(folder: Path, model_type: str, content: dict[str, Any], name: str) -> None:
    content = {key: value for key, value in content.items() if value is not ...}
    content = {"image_processor": content} if name == "processor_config.json" else content
    (folder / name).write_text(json.dumps(content))
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))


def ours(folder: Path, model_type: str, **vision: Any) -> list[torch.Tensor]:
    sizes = vision or {"image_size": SIDE, "patch_size": 8}
    config = config_from_hf({"model_type": model_type, "vision_config": sizes})
    config, preprocess = read_preprocess(folder, config, model_type=model_type)
    mean, std = (torch.tensor(x)[:, None, None] for x in (config.vision.mean, config.vision.std))
    transform = eval_transform(preprocess)
    return [(transform(image) / 255 - mean) / std for image in IMAGES]


def theirs(folder: Path) -> list[torch.Tensor]:
    import transformers

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
        return [processor(image, return_tensors="pt")["pixel_values"][0] for image in IMAGES]


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("model_type", WHOLE)
def test_pixels_are_transformers_or_the_file_is_refused(model_type, part, tmp_path: Path) -> None:
    """What is left out is the class's own, which need not be the model's."""
    write(tmp_path, model_type, WHOLE[model_type] | PARTS[part], "preprocessor_config.json")
    wanted = theirs(tmp_path)
    is_other = any(x.shape != (3, SIDE, SIDE) for x in wanted)
    if is_other or (model_type, part) in CROPS_OF_LARGER:
        with pytest.raises(UsageError, match=r"preprocessor_config.json: .* is not supported"):
            ours(tmp_path, model_type)
        return
    for one, other in zip(ours(tmp_path, model_type), wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_the_processors_file_counts_where_both_say_it(tmp_path: Path) -> None:
    other = WHOLE["clip"] | {"image_mean": [0.5] * 3, "resample": 2}
    write(tmp_path, "clip", WHOLE["clip"], "preprocessor_config.json")
    write(tmp_path, "clip", other, "processor_config.json")
    for one, want in zip(ours(tmp_path, "clip"), theirs(tmp_path), strict=True):
        torch.testing.assert_close(one, want, rtol=0, atol=1e-5)
    (tmp_path / "processor_config.json").write_text('{"processor_class": "CLIPProcessor"}')
    for one, want in zip(ours(tmp_path, "clip"), theirs(tmp_path), strict=True):
        torch.testing.assert_close(one, want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["ConvNextImageProcessor", "Siglip2ImageProcessor", "Mine"])
def test_a_class_that_is_not_known_is_refused(kind: str, tmp_path: Path) -> None:
    content = WHOLE["clip"] | {"image_processor_type": kind}
    write(tmp_path, "clip", content, "preprocessor_config.json")
    with pytest.raises(
        UsageError, match=f'image_processor_type = "{kind}" is not read for .* clip'
    ):
        ours(tmp_path, "clip")


@pytest.mark.parametrize("odd", [{"max_num_patches": 64}, {"patch_size": 14}])
def test_naflex_is_read_as_squares_of_its_own_positions(odd, tmp_path: Path, capsys: Any) -> None:
    content = {"image_processor_type": "Siglip2ImageProcessor", "max_num_patches": 16}
    write(tmp_path, "siglip2", content, "preprocessor_config.json")
    sizes = {"num_patches": 16, "patch_size": 16}
    square = Image.new("RGB", (64, 64), "red")
    made = ours(tmp_path, "siglip2", **sizes)
    assert made[0].shape == (3, square.height, square.width)
    assert "images are made squares of 64 pixels" in capsys.readouterr().err
    write(tmp_path, "siglip2", content | odd, "preprocessor_config.json")
    with pytest.raises(UsageError, match="is not the model's 16; positions are not stretched"):
        ours(tmp_path, "siglip2", **sizes)
