"""What an image goes through before the model, in Hugging Face's files: both ways.

What a file leaves out is what its class takes, and the class is the one that it names, not the one
that the model is mostly seen with.
https://github.com/huggingface/transformers: image_processing_auto.py and models/*.
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from mmtrain.data.images.transforms import PreprocessConfig
from mmtrain.errors import UsageError
from mmtrain.interop.canonical import show
from mmtrain.interop.foreign_config import ForeignConfig, read_json
from mmtrain.models import ClipConfig, VisionConfig

PREPROCESS_FILE = "preprocessor_config.json"
PROCESSOR_FILE = "processor_config.json"
FILTERS: dict[int, Literal["bilinear", "bicubic"]] = {2: "bilinear", 3: "bicubic"}
"""Pillow's numbers."""
_HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True, kw_only=True)
class _Standard:
    """What a class takes where the file says nothing."""

    size: dict[str, int]
    crop_size: int | None = None
    """Of the centre crop; None: it crops nothing."""
    resample: int = 3
    is_square: bool = False
    """Whether a size that is one number is both sides, and not the shortest."""
    mean: tuple[float, ...] = VisionConfig.mean
    std: tuple[float, ...] = VisionConfig.std


_CLIP = _Standard(size={"shortest_edge": 224}, crop_size=224)
_SQUARE = {"height": 224, "width": 224}
STANDARDS: dict[str, _Standard] = {
    "CLIPImageProcessor": _CLIP,
    "ChineseCLIPImageProcessor": _CLIP,
    "SiglipImageProcessor": _Standard(size=_SQUARE, mean=_HALF, std=_HALF),
    "Siglip2ImageProcessor": _Standard(size={}, resample=2, mean=_HALF, std=_HALF),
    "ViTImageProcessor": _Standard(size=_SQUARE, resample=2, is_square=True, mean=_HALF, std=_HALF),
    "BlipImageProcessor": _Standard(size={"height": 384, "width": 384}, is_square=True),
    "DeiTImageProcessor": _Standard(
        size={"height": 256, "width": 256}, crop_size=224, is_square=True, mean=_HALF, std=_HALF
    ),
}
"""By class, without `Fast` at its end."""
NAFLEX = "Siglip2ImageProcessor"
"""Cuts patches itself, of an image whose sides follow from their number."""
OF_MODEL = {"clip": "CLIPImageProcessor", "siglip": "SiglipImageProcessor", "siglip2": NAFLEX}
"""The class by a model's type where the file names none."""


def read_preprocess(
    folder: Path, config: ClipConfig, *, model_type: str
) -> tuple[ClipConfig, PreprocessConfig]:
    """The model with its pixels' mean and standard deviation, and how images are resized.

    Args:
        folder: holds the files.
        config: the model.
        model_type: as its config.json says.

    Raises:
        UsageError: there is no such file, or it says something that we do not compute.
    """
    fields = _fields(folder)
    kind = _class_name(fields, model_type)
    standard = STANDARDS[kind]
    for name in ("do_resize", "do_rescale", "do_normalize"):
        if not (value := fields.take_even_null(name, bool, True)):
            told = f"{name} = {'null' if value is None else 'false'}"
            raise UsageError(f"{fields.source}: {told} is not supported; we read true")
    fields.only("do_convert_rgb", True, False)
    fields.ignore(
        "processor_class", "data_format", "device", "input_data_format", "return_tensors",
        "size_divisor", "disable_grouping", "image_seq_length",
    )  # fmt: skip
    _one_in(fields, "rescale_factor", 1 / 255)
    mean = fields.take_numbers("image_mean", standard.mean)
    std = fields.take_numbers("image_std", standard.std)
    vision = config.vision
    preprocess = PreprocessConfig(
        image_size=vision.image_size,
        resize_mode=_patches(fields, vision) if kind == NAFLEX else _mode(fields, kind, vision),
        interpolation=FILTERS[_resample(fields, standard)],
    )
    fields.close()
    try:
        vision = replace(vision, mean=mean, std=std)
    except ValueError as error:
        raise UsageError(f"{fields.source}: {error}") from error
    return replace(config, vision=vision), preprocess


def _fields(folder: Path) -> ForeignConfig:
    """Of the processor's file where that has them, as theirs chooses, else of their own."""
    path, processor = folder / PREPROCESS_FILE, folder / PROCESSOR_FILE
    if processor.is_file():
        whole = ForeignConfig(read_json(processor), source=str(processor))
        if whole.holds("image_processor") or not path.is_file():
            own = whole.take("image_processor", dict)
            return ForeignConfig(own, source=f"{processor}: image_processor")
    return ForeignConfig(read_json(path), source=str(path))


def _class_name(fields: ForeignConfig, model_type: str) -> str:
    """The class, by its name today."""
    old = fields.take("feature_extractor_type", str, "")
    given = fields.take("image_processor_type", str, old)
    kind = given.replace("FeatureExtractor", "ImageProcessor").removesuffix("Fast")
    kind = kind.removesuffix("Pil") or OF_MODEL[model_type]
    if kind not in STANDARDS or (kind == NAFLEX and model_type != "siglip2"):
        known = ", ".join(name for name in STANDARDS if name != NAFLEX)
        raise UsageError(
            f"{fields.source}: image_processor_type = {show(given)} is not read for a model of "
            f"type {model_type}; we read {known}"
        )
    return kind


def _resample(fields: ForeignConfig, standard: _Standard) -> int:
    others = (number for number in FILTERS if number != standard.resample)
    return fields.only("resample", standard.resample, *others)


def _one_in(fields: ForeignConfig, name: str, wanted: float) -> None:
    value = fields.take(name, float, wanted)
    if abs(value - wanted) > 1e-9:
        raise UsageError(f"{fields.source}: {name} = {value} is not supported; we read {wanted}")


def _mode(fields: ForeignConfig, kind: str, vision: VisionConfig) -> Literal["shortest", "squash"]:
    """Shortest side and centre crop, or both sides at once."""
    standard, side = STANDARDS[kind], vision.image_size
    square = {"height": side, "width": side}
    is_square = fields.take("default_to_square", bool, standard.is_square)
    said = fields.take("size", (int, dict), None) if fields.holds("size") else None
    size = standard.size if said is None else _sides(said, is_square=is_square)
    crops = fields.take_even_null("do_center_crop", bool, standard.crop_size is not None)
    crop = _sides(fields.take("crop_size", (int, dict), standard.crop_size or side))
    _pad(fields, square)
    if size == {"shortest_edge": side} and crops and crop == square:
        return "shortest"
    if size == square and (not crops or crop == square):
        return "squash"
    told = f"crop_size = {crop}" if crops else "no centre crop"
    by_class = "" if said is not None else f" (as {kind} has it where no size is said)"
    raise UsageError(
        f"{fields.source}: size = {size}{by_class} with {told} is not supported for "
        f"image_size = {side}; we read the shortest side and a crop of it, or both sides at once"
    )


def _sides(value: int | dict[str, int], *, is_square: bool = True) -> dict[str, int]:
    if isinstance(value, dict):
        return {name: side for name, side in value.items() if side is not None}
    return {"height": value, "width": value} if is_square else {"shortest_edge": value}


def _pad(fields: ForeignConfig, square: dict[str, int]) -> None:
    """Images of one size are not filled up, but to a larger one that is said."""
    pads = fields.take("do_pad", bool, False)
    size = fields.take("pad_size", (int, dict), square)
    if pads and _sides(size) != square:
        raise UsageError(f"{fields.source}: pad_size = {show(size)} is not supported")


def _patches(fields: ForeignConfig, vision: VisionConfig) -> Literal["squash"]:
    """An image of as many patches as the model has positions, which makes a square of it."""
    fields.ignore("size", "crop_size", "do_center_crop", "default_to_square", "do_pad", "pad_size")
    for name, standard, own in (
        ("patch_size", 16, vision.patch_size),
        ("max_num_patches", 256, vision.num_patches),
    ):
        if (value := fields.take_size(name, standard)) != own:
            raise UsageError(
                f"{fields.source}: {name} = {value} is not the model's {own}; positions are not "
                "stretched"
            )
    print(
        f"mmtrain: {fields.source}: images are made squares of {vision.image_size} pixels, where "
        "transformers keeps their sides' ratio (NaFlex): features of oblong ones are others",
        file=sys.stderr,
    )
    return "squash"


def preprocess_to_hf(
    preprocess: PreprocessConfig, vision: VisionConfig, *, is_clip: bool
) -> dict[str, Any]:
    """The content of preprocessor_config.json.

    Raises:
        UsageError: transformers has no such.
    """
    size = preprocess.image_size
    if preprocess.resize_mode == "longest":
        raise UsageError('--format hf cannot express preprocess.resize_mode = "longest"')
    shortest = preprocess.resize_mode == "shortest"
    square = {"height": size, "width": size}
    processor = "CLIPImageProcessor" if is_clip or shortest else "SiglipImageProcessor"
    content: dict[str, Any] = {
        "image_processor_type": processor,
        "do_resize": True,
        "size": {"shortest_edge": size} if shortest else square,
        "resample": {name: number for number, name in FILTERS.items()}[preprocess.interpolation],
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(vision.mean),
        "image_std": list(vision.std),
        "do_convert_rgb": True,
    }
    if processor == "CLIPImageProcessor":
        content |= {"do_center_crop": shortest, "crop_size": square}
    return content
