"""Hugging Face's model folders: config.json, weights, preprocessor_config.json, tokenizer files.

Their centre crop rounds its offset down, ours to even as torchvision's does: where it differs by an
odd number of pixels, theirs lies one pixel higher or further left.
"""

import json
from pathlib import Path
from typing import Any

from mmtrain.data.text.tokenizer import Tokenizer
from mmtrain.errors import UsageError
from mmtrain.files import replace_file, save_tensors
from mmtrain.interop.foreign_config import ForeignConfig, read_json
from mmtrain.interop.hf_clip import from_hf, to_hf
from mmtrain.interop.hf_preprocess import PREPROCESS_FILE, preprocess_to_hf, read_preprocess
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

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
WEIGHTS_FILES = (WEIGHTS_FILE, "pytorch_model.bin")


def read_hf(folder: Path) -> ModelPackage:
    """The model of a folder.

    Raises:
        UsageError: a file is missing or damaged, or the model is none that we can compute.
    """
    source = str(folder / CONFIG_FILE)
    data = read_json(folder / CONFIG_FILE)
    config, tensors = from_hf(data, read_weights(folder), source=source)
    config, preprocess = read_preprocess(folder, config, model_type=data["model_type"])
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
    is_clip = data["model_type"] == "clip"
    preprocess = preprocess_to_hf(package.preprocess, package.config.vision, is_clip=is_clip)
    write_hf_tokenizer(package.tokenizer, folder, masks=is_clip)
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
