"""OpenAI's own files, which carry no config: their shapes say nearly all of it."""

from typing import Any

from mmtrain.errors import UsageError
from mmtrain.interop.tensor_links import Tensors
from mmtrain.models.trunks.resnet import STRIDE

_TEXT = ("text_projection", "positional_embedding", "token_embedding.weight")
_VIT = ("visual.proj", "visual.conv1.weight", "visual.positional_embedding")
_RESNET = ("visual.layer1.0.conv1.weight", "visual.attnpool.positional_embedding")


def cfg_of_openai(tensors: Tensors, *, source: str) -> dict[str, Any]:
    """The model_cfg of such a file: the shapes say all but the heads, of 64 features each, and the
    activation, QuickGELU.

    Raises:
        UsageError: the tensors are no CLIP of theirs.
    """
    is_resnet = _RESNET[0] in tensors
    names = (*(_RESNET if is_resnet else _VIT), *_TEXT)
    if missing := [name for name in names if name not in tensors]:
        raise UsageError(f"{source}: {missing[0]} is missing, so this is none of OpenAI's CLIPs")
    context_length, text_width = tensors["positional_embedding"].shape
    return {
        "embed_dim": tensors["text_projection"].shape[1],
        "quick_gelu": True,
        "vision_cfg": _resnet(tensors) if is_resnet else _vit(tensors),
        "text_cfg": {
            "context_length": context_length,
            "vocab_size": tensors["token_embedding.weight"].shape[0],
            "width": text_width,
            "heads": text_width // 64,
            "layers": _count(tensors, "transformer.resblocks."),
        },
    }


def _vit(tensors: Tensors) -> dict[str, Any]:
    width, _, _, patch_size = tensors["visual.conv1.weight"].shape
    return {
        "image_size": patch_size * _side(tensors["visual.positional_embedding"].shape[0]),
        "patch_size": patch_size,
        "width": width,
        "layers": _count(tensors, "visual.transformer.resblocks."),
    }


def _resnet(tensors: Tensors) -> dict[str, Any]:
    return {
        "image_size": STRIDE * _side(tensors["visual.attnpool.positional_embedding"].shape[0]),
        "layers": [_count(tensors, f"visual.layer{stage}.") for stage in (1, 2, 3, 4)],
        "width": tensors["visual.layer1.0.conv1.weight"].shape[0],
    }


def _side(num_places: int) -> int:
    """Of a grid of places, with one more for the class token or the mean."""
    return round((num_places - 1) ** 0.5)


def _count(tensors: Tensors, prefix: str) -> int:
    """The numbers that follow a prefix."""
    return len({n.removeprefix(prefix).split(".")[0] for n in tensors if n.startswith(prefix)})
