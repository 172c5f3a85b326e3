"""A model with all that it needs to be used, and the weight files that other libraries write."""

import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from mmtrain.data.images.transforms import PreprocessConfig
from mmtrain.data.questions.answers import AnswerVocabulary
from mmtrain.data.text.tokenizer import Tokenizer
from mmtrain.errors import UsageError
from mmtrain.interop.state_dict import state_dict_of
from mmtrain.interop.tensor_links import Tensors
from mmtrain.models import ClipConfig
from mmtrain.models.vqa import Vqa


@dataclass(frozen=True, kw_only=True)
class ModelPackage:
    """What travels between forms."""

    config: ClipConfig
    """Both towers; the pixels' mean and std too."""
    tensors: Tensors
    """Every tensor of `Clip(config).state_dict()`."""
    preprocess: PreprocessConfig
    """What an image goes through before the model."""
    tokenizer: Tokenizer
    """Texts to ids."""


@dataclass(frozen=True, kw_only=True)
class VqaModel:
    """A model and what it needs to be asked."""

    model: Vqa
    """In eval mode where it was read."""
    tokenizer: Tokenizer
    """Of questions and answers."""
    preprocess: PreprocessConfig
    """What images go through."""
    vocabulary: AnswerVocabulary | None
    """What `classify` chooses among."""
    answer_length: int
    """Tokens of a written answer at most, its end token counted."""
    decoder_files: Mapping[str, bytes] = field(default_factory=dict)
    """config.json and the tokenizer's files of the folder that the decoder began as."""


def read_tensors(path: Path) -> Tensors:
    """The state dict of a .safetensors file or of one that torch.save wrote; no pickle is executed.

    It is taken out of the containers and prefixes that training puts around it.

    Raises:
        UsageError: the file is missing, damaged, or holds anything but tensors and plain values.
    """
    return state_dict_of(read_checkpoint(path), path)


def read_checkpoint(path: Path) -> Any:
    """Whatever a weights' file holds; no pickle is executed.

    Raises:
        UsageError: the file is missing, damaged, or holds anything but tensors and plain values.
    """
    if not path.is_file():
        raise UsageError(f"{path} is missing")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's own message recommends to execute the file.
        asked = re.search(r"GLOBAL (\S+)", str(error))
        what = f"asks to run {asked[1]}, and nothing of it was run" if asked else "is no checkpoint"
        raise UsageError(
            f"{path} {what}; only tensors and plain values are read, best from .safetensors"
        ) from error
    except (SafetensorError, RuntimeError, EOFError, OSError, KeyError, ValueError) as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UsageError(f"{path} cannot be read as weights: {line}") from error


def float_tensors(tensors: Tensors) -> Tensors:
    """Every number format of floats as fp32, in which models are built."""
    return {name: x.float() if x.is_floating_point() else x for name, x in tensors.items()}
