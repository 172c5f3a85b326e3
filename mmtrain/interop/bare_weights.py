"""Weights without a config, of an architecture that is known by name."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

from mmtrain.data.images.transforms import PreprocessConfig
from mmtrain.data.text.tokenizer import Tokenizer, TokenizerConfig, build_tokenizer
from mmtrain.errors import UsageError
from mmtrain.interop.canonical import canonical, differences
from mmtrain.interop.hf_clip import from_hf
from mmtrain.interop.hf_clip_config import config_to_hf
from mmtrain.interop.hf_tokenizer import read_hf_tokenizer
from mmtrain.interop.hf_tokenizer_files import JSON_FILE
from mmtrain.interop.open_clip import from_open_clip
from mmtrain.interop.open_clip_config import config_to_open_clip
from mmtrain.interop.package import ModelPackage, float_tensors, read_tensors
from mmtrain.interop.tensor_links import Tensors, check_tensors, shapes_of
from mmtrain.models import ClipConfig, TextConfig
from mmtrain.models.named import MODEL_NAMES, named_model
from mmtrain.settings.nearest import nearest

_OURS, _THEIRS = "vision.embed.patch.weight", "vision_model."
"""What tells our names and Hugging Face's from open_clip's."""


def named_config(name: str, *, key: str = "architecture") -> ClipConfig:
    """The architecture of a name.

    Raises:
        UsageError: it is unknown, naming `key`.
    """
    try:
        return named_model(name)
    except ValueError as error:
        near = nearest(name, MODEL_NAMES)
        hint = f"did you mean {near}? " if near else ""
        raise UsageError(
            f'{key} = "{name}" is unknown; {hint}`mmtrain models` lists all'
        ) from error


def read_bare(path: Path, architecture: str) -> ModelPackage:
    """The model of a weights' file in our names, open_clip's or Hugging Face's.

    Images are resized as that architecture's usually are; texts get CLIP's own ids, or those of the
    tokenizer whose files lie beside the weights.

    Raises:
        UsageError: the weights are damaged or not that architecture's, or there is no tokenizer.
    """
    config = named_config(architecture)
    found = read_tensors(path)
    if "logit_bias" in found and config.init_logit_bias is None:
        config = replace(config, init_logit_bias=-10.0)  # trained with the sigmoid loss
    tensors = _tensors(config, found, source=f"{path} as {architecture}")
    is_siglip = config.vision.pool == "attention"
    resize_mode: Literal["squash", "shortest"] = "squash" if is_siglip else "shortest"
    return ModelPackage(
        config=config,
        tensors=float_tensors(tensors),
        preprocess=PreprocessConfig(image_size=config.vision.image_size, resize_mode=resize_mode),
        tokenizer=_tokenizer(config.text, path, architecture),
    )


def check_architecture(package: ModelPackage, architecture: str, path: Path) -> None:
    """Refuse a name beside a model that says what it is, and is something else.

    Raises:
        UsageError: naming the first tensor of another shape, or else the first field.
    """
    named = named_config(architecture)
    config = replace(package.config, init_logit_bias=named.init_logit_bias)
    wanted = shapes_of(replace(named, init_logit_bias=package.config.init_logit_bias))
    for name, x in wanted.items():
        has = package.tensors.get(name)
        if has is None or has.shape != x.shape:
            shape = "missing" if has is None else list(has.shape)
            raise UsageError(
                f"{path} is no {architecture}: its {name} is {shape}, and {architecture}'s is "
                f"{list(x.shape)}"
            )
    pixels = replace(config.vision, mean=named.vision.mean, std=named.vision.std)
    other = differences(canonical(replace(config, vision=pixels)), canonical(named))
    if other:
        raise UsageError(f"{path} is no {architecture}: it says {other[0]}; leave the name out")


def _tensors(config: ClipConfig, found: Tensors, *, source: str) -> Tensors:
    if any(name.startswith(_THEIRS) for name in found):
        return from_hf(config_to_hf(config), found, source=source)[1]
    if _OURS in found:
        check_tensors(shapes_of(config), found, source=source)
        return found
    found = {name: x for name, x in found.items() if not name.endswith("attn_mask")}
    return from_open_clip(config_to_open_clip(config), found, source=source)[1]


def _tokenizer(text: TextConfig, path: Path, architecture: str) -> Tokenizer:
    if text.vocab_size == TextConfig.vocab_size:
        return build_tokenizer(TokenizerConfig(context_length=text.context_length))
    names = (JSON_FILE, "spiece.model")
    if not any((path.parent / name).is_file() for name in names):
        raise UsageError(
            f"{path}: {architecture} has a tokenizer of its own; put its {' or '.join(names)} "
            "beside the weights"
        )
    return read_hf_tokenizer(path.parent, context_length=text.context_length, clean="canonicalize")
