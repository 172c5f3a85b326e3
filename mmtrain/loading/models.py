"""Whole models on disk: our directory form, written and read, and the forms of others, read.

A folder of ours holds config.json (both towers, the preprocess, a SHA-256 of the weights),
model.safetensors (every parameter, the logits' scale and bias among them) and the tokenizer.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mmtrain.data.images.transforms import PreprocessConfig, eval_transform
from mmtrain.data.text.language_tokenizer import LanguageTokenizer
from mmtrain.data.text.tokenizer import Tokenizer, load_tokenizer
from mmtrain.errors import UsageError
from mmtrain.files import parse_json, remove_partials, replace_file, replacing, save_tensors
from mmtrain.interop.bare_weights import check_architecture, named_config, read_bare
from mmtrain.interop.foreign_config import read_json, refusing
from mmtrain.interop.hf_clip_files import read_hf
from mmtrain.interop.hf_decoder_files import read_hf_decoder
from mmtrain.interop.model_kind import refuse_other_kind
from mmtrain.interop.open_clip_files import CONFIG_FILE as OPEN_CLIP_CONFIG_FILE
from mmtrain.interop.open_clip_files import read_open_clip, says_itself
from mmtrain.interop.package import ModelPackage
from mmtrain.interop.tensor_links import check_tensors
from mmtrain.loading.fitting_tokenizer import refuse_unfit_tokenizer
from mmtrain.loading.hub_models import model_folder
from mmtrain.models import Clip, ClipConfig, Decoder
from mmtrain.settings.decode import decode, encode

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
FORMAT = "mmtrain.clip"
FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class SavedConfig:
    """What config.json holds."""

    format: Literal["mmtrain.clip"] = FORMAT
    """Tells our config.json from the many others of that name."""
    format_version: int = FORMAT_VERSION
    """Raised when an older reader would misread the folder."""
    model: ClipConfig
    """Both towers."""
    preprocess: PreprocessConfig
    """What an image goes through before the model."""
    sha256: dict[str, str]
    """Of the weights' file: a flipped byte would otherwise load as another weight."""


class Preprocess:
    """PIL image -> uint8 [3, H, W], as evaluation wants it; the model normalises the pixels."""

    def __init__(self, config: PreprocessConfig) -> None:
        self.config = config
        self._transform = eval_transform(config)

    def __call__(self, image: Image.Image) -> Tensor:
        """Any mode and size of image -> uint8 [3, H, W]."""
        return self._transform(image)


def save_model(
    folder: Path | str, *, model: Clip, tokenizer: Tokenizer, preprocess: PreprocessConfig
) -> None:
    """Write a model that `load` reads, over what the folder held.

    config.json comes last and names the weights by their hash, so a folder that a kill left half
    written is refused, not misread.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    remove_partials(folder, WEIGHTS_FILE)
    tensors = {name: x.detach().cpu().contiguous() for name, x in model.state_dict().items()}
    with replacing(folder / WEIGHTS_FILE) as partial:
        save_tensors(partial, tensors)
        digest = _sha256(partial)
    tokenizer.save(folder)
    config = SavedConfig(model=model.config, preprocess=preprocess, sha256={WEIGHTS_FILE: digest})
    text = json.dumps(encode(config), indent=2, ensure_ascii=False, allow_nan=False)
    replace_file(folder / CONFIG_FILE, text + "\n")


def load(
    path: Path | str,
    device: str | torch.device = "cpu",
    *,
    architecture: str | None = None,
    key: str = "model",
) -> tuple[Clip, Preprocess, Tokenizer]:
    """The model, its preprocess and its tokenizer, from any form that we know.

    Args:
        path: a folder that `save_model` wrote, a run folder (its export/ is taken), a folder in
            open_clip's form (open_clip_config.json) or Hugging Face's (CLIP, SigLIP), a weights'
            file of which something says the architecture, or as a text a model of the hub,
            `hf://OWNER/NAME[@REVISION]` or `open_clip:NAME/TAG`, which is fetched.
        device: where the weights go.
        architecture: a name of `mmtrain models`, for a weights' file of which nothing says it.
        key: the option or key that the path came from, for messages.

    Returns:
        The model in eval mode: `encode_image(uint8 [B, 3, H, W])` and `encode_text([B, T])` give
        unit-norm features. `preprocess(PIL.Image)` gives uint8 [3, H, W] and `tokenizer(texts)`
        int64 [B, T].

    Raises:
        UsageError: the folder is none of these, or a file in it is missing, damaged or of another
            model.
    """
    package = read_package(path, architecture=architecture, key=key)
    with torch.device("meta"):
        model = Clip(package.config)
    model.load_state_dict(package.tensors, assign=True)
    model = model.eval().to(torch.device(device))
    return model, Preprocess(package.preprocess), package.tokenizer


def load_decoder(
    path: Path | str, device: str | torch.device = "cpu"
) -> tuple[Decoder, LanguageTokenizer | None]:
    """A decoder and its tokenizer (None where the folder has none) from Hugging Face's form.

    Args:
        path: a folder of GPT-1, GPT-2, Llama, Qwen2, Qwen3, Gemma (1, 2, 3) or OLMo 2, or as a text
            `hf://OWNER/NAME[@REVISION]`.
        device: where the weights go.

    Raises:
        UsageError: the folder is none of these, or a file in it is missing or damaged.
    """
    path = model_folder(path, key="model")
    refuse_other_kind(path, "decoder")
    if not (path / CONFIG_FILE).is_file():
        raise UsageError(
            f"model = {path} holds no {CONFIG_FILE}; name a decoder's folder in Hugging Face's form"
        )
    package = read_hf_decoder(path)
    with torch.device("meta"):
        decoder = Decoder(package.config)
    decoder.load_state_dict(package.tensors, assign=True)
    return decoder.eval().to(torch.device(device)), package.tokenizer


def read_package(
    path: Path | str, *, architecture: str | None = None, key: str = "model"
) -> ModelPackage:
    """What `load` loads, as plain data on the CPU.

    Raises:
        UsageError: as `load`, or a model that says itself what it is is not of `architecture`.
    """
    path = model_folder(path, key=key)
    if architecture is not None:
        named_config(architecture)
    if architecture is not None and path.is_file() and not says_itself(path):
        package = read_bare(path, architecture)
    else:
        package = _read_package(path, key)
        if architecture is not None:
            check_architecture(package, architecture, path)
    refuse_unfit_tokenizer(package.config.text, package.tokenizer, source=str(path))
    return package


def _read_package(path: Path, key: str) -> ModelPackage:
    if not path.exists():
        raise UsageError(f"{key} = {path} does not exist; name a run folder or an exported model's")
    refuse_other_kind(path, "clip", key=key)
    if path.is_file():
        return read_open_clip(path)
    folder = path / "export" if (path / "export" / CONFIG_FILE).is_file() else path
    if (folder / OPEN_CLIP_CONFIG_FILE).is_file():
        return read_open_clip(folder)
    if (folder / CONFIG_FILE).is_file():
        data = read_json(folder / CONFIG_FILE)
        is_hf = isinstance(data, dict) and "model_type" in data
        return read_hf(folder) if is_hf else _read_ours(folder)
    if (folder / "recipe.toml").is_file():
        raise UsageError(f"{key} = {folder} has no export/ yet; a run writes it when it ends")
    raise UsageError(
        f"{key} = {folder} holds neither {CONFIG_FILE} nor export/ nor {OPEN_CLIP_CONFIG_FILE}; "
        "name a run folder or an exported model's"
    )


def _read_ours(folder: Path) -> ModelPackage:
    config = _read_config(folder / CONFIG_FILE)
    tensors = _read_weights(folder / WEIGHTS_FILE, config.sha256.get(WEIGHTS_FILE))
    with torch.device("meta"), refusing(str(folder / CONFIG_FILE)):  # a trunk's library knows more
        wanted = Clip(config.model).state_dict()
    check_tensors(wanted, tensors, source=str(folder / WEIGHTS_FILE))
    return ModelPackage(
        config=config.model,
        tensors=tensors,
        preprocess=config.preprocess,
        tokenizer=load_tokenizer(folder),
    )


def _read_config(path: Path) -> SavedConfig:
    try:
        data: Any = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {error}; export the model again") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise UsageError(
            f'{path} is not of our form (it has no format = "{FORMAT}"); name a folder that '
            "mmtrain exported"
        )
    version = data.get("format_version")
    if version != FORMAT_VERSION:
        raise UsageError(
            f"{path}: format_version = {version} is unknown here (we read {FORMAT_VERSION}); use "
            "the mmtrain that wrote it"
        )
    try:
        return decode(SavedConfig, data)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def _read_weights(path: Path, sha256: str | None) -> dict[str, Tensor]:
    if not path.is_file():
        raise UsageError(f"{path} is missing; export the model again")
    if _sha256(path) != sha256:
        raise UsageError(
            f"{path}: its SHA-256 is not the one in {CONFIG_FILE}: truncated, damaged or of "
            "another model; export the model again"
        )
    try:
        return load_file(path)
    except SafetensorError as error:
        raise UsageError(f"{path} is no safetensors file ({error}); export it again") from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
