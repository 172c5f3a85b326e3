"""open_clip's files: the hub folder, both ways, and bare checkpoints of its training, read.

A folder holds open_clip_config.json (`model_cfg` and `preprocess_cfg`) and the weights. A bare file
needs its architecture: an open_clip_config.json beside it, or the params.txt that open_clip's
training writes above its checkpoints; OpenAI's own files show theirs by their shapes.
"""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from mmtrain.data.images.transforms import PreprocessConfig
from mmtrain.data.text.tokenizer import Tokenizer, TokenizerConfig, build_tokenizer
from mmtrain.errors import UsageError
from mmtrain.files import parse_json, replace_file, save_tensors
from mmtrain.interop.foreign_config import ForeignConfig, read_json
from mmtrain.interop.hf_tokenizer import read_hf_tokenizer
from mmtrain.interop.hf_tokenizer_writing import has_clips_words, is_clips_own, write_hf_tokenizer
from mmtrain.interop.jit_archive import is_jit_archive, read_jit_archive
from mmtrain.interop.open_clip import from_open_clip, to_open_clip
from mmtrain.interop.open_clip_config import config_to_open_clip
from mmtrain.interop.open_clip_timm import is_timm_tower
from mmtrain.interop.openai_files import cfg_of_openai
from mmtrain.interop.package import ModelPackage, float_tensors, read_tensors
from mmtrain.models import ClipConfig
from mmtrain.models.named import MODEL_NAMES, QUICKGELU, named_model
from mmtrain.models.vision_config import CLIP_MEAN, CLIP_STD

CONFIG_FILE = "open_clip_config.json"
WEIGHTS_FILE = "open_clip_model.safetensors"
WEIGHTS_FILES = (
    WEIGHTS_FILE,
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
    "model.safetensors",
    "pytorch_model.bin",
)
"""Where a folder's weights are looked for, in open_clip's own order."""
PARAMS_FILE = "params.txt"
CLEANS = ("lower", "whitespace", "canonicalize")
"""What open_clip can do to a text before its tokenizer."""


def read_open_clip(path: Path) -> ModelPackage:
    """The model of a hub folder, or of a checkpoint file with its config beside it.

    Raises:
        UsageError: a file is missing or damaged, or the model is none that we can compute.
    """
    folder = path if path.is_dir() else path.parent
    weights = _weights_in(path) if path.is_dir() else path
    if (folder / CONFIG_FILE).is_file():
        content = read_json(folder / CONFIG_FILE)
        fields = ForeignConfig(content, source=str(folder / CONFIG_FILE))
        model_cfg = fields.take("model_cfg", dict)
        preprocess_cfg = fields.section("preprocess_cfg")
        found = read_tensors(weights)
    elif is_jit_archive(weights):
        found = read_jit_archive(weights)
        model_cfg = cfg_of_openai(found, source=str(path))
        preprocess_cfg = ForeignConfig({}, source=str(path))
    else:
        model_cfg, preprocess_cfg = _from_params(path)
        found = read_tensors(weights)
    # Masks are no state; TorchScript keeps them beside it.
    found = {name: x for name, x in found.items() if not name.endswith("attn_mask")}
    config, tensors = from_open_clip(model_cfg, found, source=str(weights))
    config, preprocess = _with_preprocess(config, preprocess_cfg)
    return ModelPackage(
        config=config,
        tensors=float_tensors(tensors),
        preprocess=preprocess,
        tokenizer=read_open_clip_tokenizer(model_cfg.get("text_cfg", {}), config, folder),
    )


def says_itself(path: Path) -> bool:
    """Whether a weights' file shows its architecture, or one beside it does."""
    beside = (path.parent / CONFIG_FILE, path.parent / PARAMS_FILE)
    above = path.parent.parent / PARAMS_FILE
    return any(one.is_file() for one in (*beside, above)) or is_jit_archive(path)


def model_cfg_of(path: Path) -> dict[str, Any]:
    """The architecture of a checkpoint of open_clip's training, from what lies beside it.

    Raises:
        UsageError: nothing says it.
    """
    config = path.parent / CONFIG_FILE
    if config.is_file():
        return ForeignConfig(read_json(config), source=str(config)).take("model_cfg", dict)
    return _from_params(path)[0]


def write_open_clip(package: ModelPackage, folder: Path) -> Tokenizer:
    """Write the hub folder; `open_clip.create_model_and_transforms("local-dir:FOLDER")` loads it.

    Returns:
        The tokenizer as open_clip will read it.

    Raises:
        UsageError: open_clip has no such model or tokenizer, naming the fields.
    """
    # As open_clip's own configs have it for such models.
    custom_text = package.config.text.transformer.mask == "full" or is_timm_tower(
        package.config.vision
    )
    model_cfg, tensors = to_open_clip(package.config, package.tensors, custom_text=custom_text)
    model_cfg["text_cfg"] |= _write_tokenizer(package.tokenizer, folder)
    vision, preprocess = package.config.vision, package.preprocess
    content = {
        "model_cfg": model_cfg,
        "preprocess_cfg": {
            "mean": list(vision.mean),
            "std": list(vision.std),
            "interpolation": preprocess.interpolation,
            "resize_mode": preprocess.resize_mode,
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(folder / WEIGHTS_FILE, tensors)
    replace_file(folder / CONFIG_FILE, json.dumps(content, indent=2) + "\n")
    return read_open_clip_tokenizer(model_cfg["text_cfg"], package.config, folder)


def _weights_in(folder: Path) -> Path:
    for name in WEIGHTS_FILES:
        if (folder / name).is_file():
            return folder / name
    raise UsageError(f"{folder} holds {CONFIG_FILE} but no weights ({', '.join(WEIGHTS_FILES)})")


_WEIGHTS = re.compile(rb"PK\x03\x04|\x80[\x02-\x05]|.{8}\{", re.DOTALL)
"""How torch's archives, pickles and safetensors begin."""


def _refuse_no_weights(path: Path) -> None:
    """What holds no weights needs no architecture; what is part of a folder, the folder.

    Raises:
        UsageError: naming what it is.
    """
    if (path.parent / "config.json").is_file():
        raise UsageError(f"model = {path} is part of a model; name its folder, {path.parent}")
    with path.open("rb") as file:
        head = file.read(9)
    if not _WEIGHTS.match(head):
        raise UsageError(
            f"model = {path} is no file of weights (it begins {head!r}); name a run folder, an "
            "exported model's, or a .pt or .safetensors"
        )


def _from_params(path: Path) -> tuple[dict[str, Any], ForeignConfig]:
    """model_cfg and preprocess_cfg of a training run of open_clip: RUN/checkpoints/epoch_1.pt."""
    for params in (path.parent / PARAMS_FILE, path.parent.parent / PARAMS_FILE):
        if params.is_file():
            break
    else:
        _refuse_no_weights(path)
        raise UsageError(
            f"model = {path}: nothing says which architecture this is; name it (--architecture "
            f"ViT-B-32, in a recipe model.name), put its {CONFIG_FILE} beside it, or keep it under "
            f"the run folder with {PARAMS_FILE}"
        )
    lines = (
        line.partition(": ")
        for line in params.read_text(encoding="utf-8", errors="replace").split("\n")
    )
    values = {key: value.strip() for key, _, value in lines}
    name = values.get("model", "")
    if values.get("force_quick_gelu") == "True" and not name.endswith(QUICKGELU):
        name += QUICKGELU
    if name not in MODEL_NAMES:
        raise UsageError(f"{params}: model = {name} is unknown; use an {CONFIG_FILE} beside {path}")
    for key in ("force_image_size", "force_context_length", "force_patch_dropout"):
        if values.get(key, "None") != "None":
            raise UsageError(
                f"{params}: {key} = {values[key]} is not read; put an {CONFIG_FILE} beside {path}"
            )
    model_cfg = config_to_open_clip(named_model(name))
    if values.get("siglip") == "True":
        model_cfg["init_logit_bias"] = -10.0
    names = {"image_mean": "mean", "image_std": "std"}
    pixels = {
        ours: parse_json(values[key])
        for key, ours in names.items()
        if values.get(key, "None") != "None"
    }
    names = {"image_interpolation": "interpolation", "image_resize_mode": "resize_mode"}
    words = {ours: values[key] for key, ours in names.items() if values.get(key, "None") != "None"}
    return model_cfg, ForeignConfig(pixels | words, source=str(params))


def _with_preprocess(config: ClipConfig, cfg: ForeignConfig) -> tuple[ClipConfig, PreprocessConfig]:
    size = cfg.take("size", (int, list), config.vision.image_size)
    if size not in (config.vision.image_size, [config.vision.image_size] * 2):
        raise UsageError(
            f"{cfg.source}: size = {size} is not image_size = {config.vision.image_size}"
        )
    cfg.only("mode", "RGB")
    cfg.only("fill_color", 0)
    mean, std = (
        cfg.take_numbers(name, default)
        for name, default in (("mean", CLIP_MEAN), ("std", CLIP_STD))
    )
    interpolation = cfg.only("interpolation", "bicubic", "bilinear", "random")
    # "random" is of training; evaluation resizes bicubically then.
    filter_: Literal["bicubic", "bilinear"] = (
        "bilinear" if interpolation == "bilinear" else "bicubic"
    )
    preprocess = PreprocessConfig(
        image_size=config.vision.image_size,
        resize_mode=cfg.only("resize_mode", "shortest", "squash", "longest"),
        interpolation=filter_,
    )
    cfg.close()
    try:
        vision = replace(config.vision, mean=mean, std=std)
    except ValueError as error:
        raise UsageError(f"{cfg.source}: {error}") from error
    return replace(config, vision=vision), preprocess


def read_open_clip_tokenizer(
    text_cfg: dict[str, Any], config: ClipConfig, folder: Path
) -> Tokenizer:
    """The tokenizer of a folder: CLIP's own, unless the config names another, whose files are then
    in the folder.

    Args:
        text_cfg: of the folder's model_cfg.
        config: of its model.
        folder: holds the files.

    Raises:
        UsageError: the tokenizer is none that we can compute, or a file of it is missing.
    """
    text = config.text
    kwargs = ForeignConfig(
        text_cfg.get("tokenizer_kwargs") or {}, source=f"{folder}: tokenizer_kwargs"
    )
    name = text_cfg.get("hf_tokenizer_name")
    clean = kwargs.take("clean", str, "whitespace" if name else "lower")
    if clean not in CLEANS:
        raise UsageError(f"{kwargs.source}: clean = {clean} is none of {', '.join(CLEANS)}")
    kwargs.only("strip_sep_token", False)
    mode = text_cfg.get("tokenizer_mode")
    if name:
        kwargs.close()
        if mode:
            raise UsageError(f"{folder}: tokenizer_mode = {mode} is not supported; we read none")
        tokenizer = read_hf_tokenizer(folder, context_length=text.context_length, clean=clean)
    else:
        kwargs.close()
        tokenizer = build_tokenizer(
            TokenizerConfig(context_length=text.context_length, clean=clean)  # pyright: ignore[reportArgumentType]
        )
    if tokenizer.vocab_size > text.vocab_size:
        raise UsageError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} ids, but the model's vocab_size = "
            f"{text.vocab_size}"
        )
    return tokenizer


def _write_tokenizer(tokenizer: Tokenizer, folder: Path) -> dict[str, Any]:
    """The fields of text_cfg that bring the tokenizer back; writes the files that it needs."""
    clean = tokenizer.config.clean
    if is_clips_own(tokenizer):
        return {} if clean == "lower" else {"tokenizer_kwargs": {"clean": clean}}
    if has_clips_words(tokenizer):  # open_clip has these words without a file
        return {}
    if clean == "none":  # what open_clip does least
        clean = "whitespace"
    write_hf_tokenizer(tokenizer, folder, cleans=True)
    # Any name will do: from a folder, open_clip takes the folder's own files.
    return {"hf_tokenizer_name": folder.name, "tokenizer_kwargs": {"clean": clean}}
