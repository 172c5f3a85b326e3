"""Hugging Face's model folders: config.json, weights, preprocessor_config.json, tokenizer files.

Their centre crop rounds its offset down, ours to even as torchvision's does: where it differs by an
odd number of pixels, theirs lies one pixel higher or further left.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from mmtrain.data.images.transforms import PreprocessConfig
from mmtrain.data.text.tokenizer import Tokenizer
from mmtrain.errors import UsageError
from mmtrain.files import replace_file, save_tensors
from mmtrain.interop.foreign_config import ForeignConfig, read_json
from mmtrain.interop.hf_clip import from_hf, to_hf
from mmtrain.interop.hf_tokenizer import read_hf_tokenizer
from mmtrain.interop.hf_tokenizer_writing import write_hf_tokenizer
from mmtrain.interop.package import (
    ModelPackage,
    float_tensors,
    read_checkpoint,
    read_tensors,
)
from mmtrain.interop.state_dict import bare_names, raw_state_dict
from mmtrain.interop.tensor_links import Tensors
from mmtrain.models import ClipConfig

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
WEIGHTS_FILES = (WEIGHTS_FILE, "pytorch_model.bin")
PREPROCESS_FILE = "preprocessor_config.json"
PROCESSOR_FILE = "processor_config.json"
FILTERS: dict[int, Literal["bilinear", "bicubic"]] = {2: "bilinear", 3: "bicubic"}
"""Pillow's numbers."""


def read_hf(folder: Path) -> ModelPackage:
    """The model of a folder.

    Raises:
        UsageError: a file is missing or damaged, or the model is none that we can compute.
    """
    source = str(folder / CONFIG_FILE)
    config, tensors = from_hf(read_json(folder / CONFIG_FILE), read_weights(folder), source=source)
    config, preprocess = _read_preprocess(folder, config)
    tokenizer = read_hf_tokenizer(folder, context_length=config.text.context_length)
    if tokenizer.vocab_size > config.text.vocab_size:
        raise UsageError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} ids, but the model's vocab_size = "
            f"{config.text.vocab_size}"
        )
    return ModelPackage(
        config=config,
        tensors=float_tensors(tensors),
        preprocess=preprocess,
        tokenizer=tokenizer,
    )


def write_hf(package: ModelPackage, folder: Path) -> Tokenizer:
    """Write a folder that `CLIPModel.from_pretrained`, or `SiglipModel`'s, loads.

    Returns:
        The tokenizer as transformers will read it.

    Raises:
        UsageError: transformers has no such model, preprocess or tokenizer, naming the fields.
    """
    data, tensors = to_hf(package.config, package.tensors)
    preprocess = _preprocess_to(package, is_clip=data["model_type"] == "clip")
    write_hf_tokenizer(package.tokenizer, folder, masks=data["model_type"] == "clip")
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(folder / WEIGHTS_FILE, tensors)
    for name, content in ((PREPROCESS_FILE, preprocess), (CONFIG_FILE, data)):
        replace_file(folder / name, json.dumps(content, indent=2) + "\n")
    return read_hf_tokenizer(folder, context_length=package.config.text.context_length)


def read_weights(folder: Path) -> Tensors:
    """The state dict of a folder: of one file, or of those that an index names.

    Raises:
        UsageError: there is none, or a file is missing or damaged.
    """
    for name in WEIGHTS_FILES:
        if (folder / name).is_file():
            return read_tensors(folder / name)
        index = folder / f"{name}.index.json"
        if index.is_file():
            parts = ForeignConfig(read_json(index), source=str(index)).take("weight_map", dict)
            tensors: Tensors = {}
            _refuse_elsewhere(parts, index)
            for part in sorted(set(parts.values())):
                path = folder / part
                found = raw_state_dict(read_checkpoint(path), path)
                # A piece may hold what another one is named for, as an older one that stayed.
                tensors |= {n: x for n, x in found.items() if parts.get(n, part) == part}
            if missing := sorted(parts.keys() - tensors.keys()):
                raise UsageError(f"{index} names {missing[0]}, and {parts[missing[0]]} lacks it")
            return bare_names(tensors, index)  # a part alone may look as if it had a prefix
    raise UsageError(f"{folder} holds {CONFIG_FILE} but no weights ({' or '.join(WEIGHTS_FILES)})")


def _refuse_elsewhere(parts: dict[str, Any], index: Path) -> None:
    """A file of another folder is another model's."""
    if not parts or not all(isinstance(part, str) for part in parts.values()):
        raise UsageError(f"{index}: weight_map must name a file for each tensor")
    for part in parts.values():
        if not part or part != Path(part).name or "\0" in part or part == "..":
            raise UsageError(f"{index}: weight_map names {part!r}, which is no file beside it")


def _read_preprocess(folder: Path, config: ClipConfig) -> tuple[ClipConfig, PreprocessConfig]:
    path = folder / PREPROCESS_FILE
    data = read_json(path) if path.is_file() or not (folder / PROCESSOR_FILE).is_file() else None
    if data is None:
        path = folder / PROCESSOR_FILE
        data = ForeignConfig(read_json(path), source=str(path)).take("image_processor", dict)
    fields = ForeignConfig(data, source=str(path))
    for name in ("do_resize", "do_rescale", "do_normalize"):
        fields.only(name, True)
    fields.only("do_convert_rgb", True, False)
    fields.ignore(
        "image_processor_type", "feature_extractor_type", "processor_class", "data_format",
        "device", "input_data_format", "return_tensors", "default_to_square", "size_divisor",
        "do_pad", "pad_size", "disable_grouping", "max_num_patches", "patch_size",
        "image_seq_length",
    )  # fmt: skip
    _one_in(fields, "rescale_factor", 1 / 255)
    mean, std = (
        fields.take_numbers(f"image_{name}", default)
        for name, default in (("mean", config.vision.mean), ("std", config.vision.std))
    )
    preprocess = PreprocessConfig(
        image_size=config.vision.image_size,
        resize_mode=_resize_mode(fields, config.vision.image_size),
        interpolation=FILTERS[fields.only("resample", 3, 2)],
    )
    fields.close()
    try:
        vision = replace(config.vision, mean=mean, std=std)
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from error
    return replace(config, vision=vision), preprocess


def _one_in(fields: ForeignConfig, name: str, wanted: float) -> None:
    value = fields.take(name, float, wanted)
    if abs(value - wanted) > 1e-9:
        raise UsageError(f"{fields.source}: {name} = {value} is not supported; we read {wanted}")


def _resize_mode(fields: ForeignConfig, image_size: int) -> Literal["shortest", "squash"]:
    """Shortest side and centre crop, or both sides at once."""
    size = fields.take("size", (int, dict), {})
    crop = fields.take("crop_size", (int, dict), {})
    crops = fields.only("do_center_crop", bool(crop), not crop)
    square = {"height": image_size, "width": image_size}
    by_shortest = size in (image_size, {"shortest_edge": image_size})
    if by_shortest and crops and crop in (image_size, square, {}):
        return "shortest"
    if size in ({}, square) and not crops:
        return "squash"
    raise UsageError(
        f"{fields.source}: size = {size} with crop_size = {crop} is not supported for "
        f"image_size = {image_size}"
    )


def _preprocess_to(package: ModelPackage, *, is_clip: bool) -> dict[str, Any]:
    preprocess, vision = package.preprocess, package.config.vision
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
