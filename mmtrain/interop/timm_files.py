"""timm's folder of an image tower, written."""

import json
from dataclasses import replace
from pathlib import Path

import torch

from mmtrain.data.text.tokenizer import Tokenizer
from mmtrain.errors import UsageError
from mmtrain.files import replace_file, save_tensors
from mmtrain.interop.canonical import refuse_trunk
from mmtrain.interop.package import ModelPackage
from mmtrain.interop.timm import vision_to_timm
from mmtrain.models import VisionTower

_ARCHITECTURES = {1e-6: "vit_base_patch16_224", 1e-5: "vit_base_patch16_clip_224"}
"""By the layer norms' eps, the one thing that no argument says; arguments say all else."""
_CROP_MODES = {"shortest": "center", "squash": "squash", "longest": "border"}


def write_timm(package: ModelPackage, folder: Path) -> Tokenizer:
    """Write the image tower without its projection, which no timm tower has;
    `timm.create_model("local-dir:FOLDER", pretrained=True)` loads it.

    Returns:
        Ours: timm has none.

    Raises:
        UsageError: timm has no such tower, naming the fields.
    """
    refuse_trunk(package.config.vision, form="timm")
    vision = replace(package.config.vision, projection=False, projection_bias=False)
    with torch.device("meta"):
        names = VisionTower(vision, embed_dim=vision.transformer.dim).state_dict()
    args, tensors = vision_to_timm(
        vision, {name: package.tensors[f"vision.{name}"] for name in names}
    )
    eps = args.pop("norm_eps")
    if eps not in _ARCHITECTURES:
        raise UsageError(f"a timm folder cannot express norm_eps = {eps:g}; use ours")
    size = [3, vision.image_size, vision.image_size]
    content = {
        "architecture": _ARCHITECTURES[eps],
        "num_classes": 0,
        "num_features": vision.transformer.dim,
        "global_pool": args["global_pool"],
        "model_args": args,
        "pretrained_cfg": {
            "input_size": size,
            "mean": list(vision.mean),
            "std": list(vision.std),
            "interpolation": package.preprocess.interpolation,
            "crop_pct": 1.0,
            "crop_mode": _CROP_MODES[package.preprocess.resize_mode],
            "num_classes": 0,
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(folder / "model.safetensors", tensors)
    replace_file(folder / "config.json", json.dumps(content, indent=2) + "\n")
    return package.tokenizer
