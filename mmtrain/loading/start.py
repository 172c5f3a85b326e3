"""What a run starts from: what it brings to the recipe, and where the recipe contradicts it."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from mmtrain.data.images.transforms import PreprocessConfig
from mmtrain.data.text.tokenizer import Tokenizer, TokenizerConfig, build_tokenizer
from mmtrain.errors import UsageError
from mmtrain.interop.bare_weights import named_config
from mmtrain.interop.model_kind import refuse_other_kind
from mmtrain.interop.timm import read_timm_interpolation, read_timm_tower
from mmtrain.loading import Preprocess, load
from mmtrain.loading.hub_models import model_folder
from mmtrain.loading.text_sizes import refuse_other_sizes, text_sizes
from mmtrain.losses.config import STANDARD_LIMIT
from mmtrain.models import Clip, ClipConfig, VisionConfig
from mmtrain.settings.decode import encode
from mmtrain.settings.describe import NONE

_TRAINING = ("stochastic_depth", "patch_dropout")
"""Fields that only training reads: another value is a choice, not a contradiction."""
_BROUGHT = ("init_logit_scale", "init_logit_bias", "init", "layer_scale")
"""Fields that say how weights are drawn."""
_SHAPES = ("head_dim", "ff_dim", "num_kv_heads", "image_size", "vocab_size", "num_queries")
_SHAPES += ("context_length", "end_token_id", "num_context", "context_start")
_SHAPES += ("num_answers", "text_length", "prompt", "front_door")
"""Fields that tensors would differ by, or that are told, or fixed, elsewhere."""
_TOWERS = frozenset(field.name for field in fields(ClipConfig))


@dataclass(frozen=True, kw_only=True)
class Start:
    """A whole model that a run starts from."""

    key: str
    """Of the recipe, with its value, for messages."""
    model: Clip
    """Its weights."""
    preprocess: PreprocessConfig
    """What it saw of images."""
    tokenizer: Tokenizer
    """Its ids."""


def read_start(path: str | None, *, name: str | None = None) -> Start | None:
    """The model of model.init, where there is one.

    Args:
        path: model.init.
        name: model.name, which says the architecture of weights that do not.

    Raises:
        UsageError: as `load`.
    """
    if path is None:
        return None
    model, preprocess, tokenizer = load(path, architecture=name, key="model.init")
    key = f"model.init = {path}"
    return Start(key=key, model=model, preprocess=preprocess.config, tokenizer=tokenizer)


def with_start(data: dict[str, Any], *, begun: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A recipe's dict over what its model's `name`, `init` and `vision_init` stand for.

    A start brings its resize and filter too, and a model with a bias of its logits its sigmoid
    loss, where the recipe says nothing of them.

    Args:
        data: the recipe's.
        begun: the recipe that a run which goes on recorded. Where it started from the same model,
            it says what that brought, and the model is not read.

    Raises:
        UsageError: there is no such model, or two keys say the same.
    """
    section = data.get("model", {})
    if not isinstance(section, dict) or not all(
        isinstance(section.get(key, NONE), str) for key in ("name", "init", "vision_init")
    ):
        return data  # for `decode` to refuse
    name, init, tower = (section.get(key, NONE) for key in ("name", "init", "vision_init"))
    below: dict[str, Any] = {"model": {}}
    if begun is not None and (init, tower) != (NONE, NONE) and _starts_alike(section, begun):
        below = _brought(begun)
    elif init != NONE:
        if tower != NONE:
            raise UsageError("model.init brings an image tower, and so does model.vision_init")
        tokenizer = data.get("tokenizer", {})
        _refuse_no_tokenizer(tokenizer, init)
        if name != NONE:
            named_config(name, key="model.name")
        model, preprocess, own = load(
            init, architecture=None if name == NONE else name, key="model.init"
        )
        _refuse_standard_tokenizer(tokenizer, own, init)
        _refuse_other_sizes(section.get("text", {}), tokenizer, own, model.config.text.num_context)
        below = {"model": encode(model.config), "data": _resize(preprocess)}
    else:
        below = _named_towers(name, tower)
    for key in ("vocab_size", "context_length", "end_token_id"):
        below["model"].get("text", {}).pop(key, None)  # the tokenizer decides, see `resolve`
    merged = _overlay(below, data)
    if merged["model"].get("init_logit_bias", NONE) != NONE and "vqa" not in data:
        merged = _overlay({"loss": {"kind": "siglip"}}, merged)
    return merged


def _named_towers(name: str, tower: str) -> dict[str, Any]:
    """What `model.name` and `model.vision_init` stand for, where they are there."""
    model = {} if name == NONE else encode(named_config(name, key="model.name"))
    if tower == NONE:
        return {"model": model}
    return {
        "model": model | {"vision": encode(_image_tower(tower))},
        "data": {"interpolation": read_timm_interpolation(tower_folder(tower))},
    }


def _starts_alike(section: Mapping[str, Any], begun: Mapping[str, Any]) -> bool:
    was = begun.get("model", {})
    return all(section.get(key, NONE) == was.get(key, NONE) for key in ("init", "vision_init"))


def _brought(begun: Mapping[str, Any]) -> dict[str, Any]:
    """What a recorded recipe says of the model that its run started from."""
    towers = {key: value for key, value in begun["model"].items() if key in _TOWERS}
    resize = {key: begun["data"][key] for key in ("resize_mode", "interpolation")}
    return {"model": towers, "data": resize}


def _refuse_no_tokenizer(section: Any, init: str) -> None:
    """What says nothing of a tokenizer leaves the start's in place, and so does `none` alone."""
    keys = list(section) if isinstance(section, dict) else []
    if keys and all(section[key] == NONE for key in keys):
        raise UsageError(
            f'tokenizer.{keys[0]} = "{NONE}" has no effect: model.init = {init} brings its whole '
            "tokenizer; name another by tokenizer.path, or leave it out"
        )


def _refuse_standard_tokenizer(section: Any, own: Tokenizer, init: str) -> None:
    """A section of defaults alone is taken for none, so it would not win over the start's.

    A complete one is a run's record of that.
    """
    standard = encode(TokenizerConfig())
    if not isinstance(section, dict) or not section or standard.keys() <= section.keys():
        return
    as_default = all(standard.get(key, NONE) == value for key, value in section.items())
    if as_default and _ids(own) != _ids(build_tokenizer(TokenizerConfig())):
        key, value = next(iter(section.items()))
        raise UsageError(
            f"tokenizer.{key} = {_shown(value)} has no effect: model.init = {init} brings a "
            "tokenizer of its own, and the section says nothing that is not the default; leave it "
            "out, or name another tokenizer by tokenizer.path"
        )


def _refuse_other_sizes(text: Any, section: Any, own: Tokenizer, num_context: int) -> None:
    """What is written of the text tower must be what the start's tokenizer has, if that is kept."""
    standard = encode(TokenizerConfig())
    if not isinstance(text, dict) or not isinstance(section, dict):
        return
    if all(standard.get(key, NONE) == value for key, value in section.items()):
        sizes = text_sizes(own, num_context=num_context, add_eot=True)
        refuse_other_sizes({k: None if v == NONE else v for k, v in text.items()}, sizes)


def _resize(preprocess: Preprocess) -> dict[str, str]:
    config = preprocess.config
    return {"resize_mode": config.resize_mode, "interpolation": config.interpolation}


def _image_tower(folder: str) -> VisionConfig:
    """timm's tower with a projection, which its own has not."""
    path = tower_folder(folder)
    refuse_other_kind(path, "tower", key="model.vision_init")
    try:
        config, _ = read_timm_tower(path)
    except UsageError as error:
        raise UsageError(f"model.vision_init = {folder}: {error}") from error
    return replace(config, projection=True)


def tower_folder(vision_init: str) -> Path:
    """The folder that model.vision_init names, on this machine or on the hub."""
    return model_folder(vision_init, key="model.vision_init", tower=True)


def _overlay(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Two tables as one, the upper one's keys winning."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        tables = isinstance(value, dict) and isinstance(old, dict)
        merged[key] = _overlay(old, value) if tables else value  # pyright: ignore[reportArgumentType]
    return merged


def contradictions(ours: Any, theirs: Any, *, section: str, key: str) -> list[str]:
    """Where a recipe changes what a start's weights compute, in lines.

    Args:
        ours: a config of the recipe.
        theirs: the start's, of the same class.
        section: of the recipe that `ours` is.
        key: the start's, with its value.

    Raises:
        UsageError: a key of the recipe has no effect, since the start brings what it would draw.
    """
    lines: list[str] = []
    wanted, found = dict(_flat(encode(ours))), dict(_flat(encode(theirs)))
    for name in wanted | found:
        value, brought = wanted.get(name, NONE), found.get(name, NONE)
        last = name.rpartition(".")[2]
        if value == brought or last in _TRAINING:
            continue
        if last in _BROUGHT and name not in found:
            continue
        if last in _BROUGHT:
            raise UsageError(
                f"{section}.{name} = {_shown(value)} has no effect: {key} brings what it would "
                "draw; leave it out"
            )
        if not any(part in _SHAPES for part in name.split(".")):
            lines.append(
                f"{section}.{name} = {_shown(value)}, but {key} has {_shown(brought)}: its "
                "weights compute something else here"
            )
    return lines


def start_lines(
    clip: ClipConfig, start: Start, *, tokenizer: Tokenizer, preprocess: PreprocessConfig
) -> list[str]:
    """Where towers, images and texts of a run are not those of the model that it starts from."""
    return [
        *contradictions(clip, start.model.config, section="model", key=start.key),
        *other_images(preprocess, start.preprocess, key=start.key),
        *other_texts(tokenizer, start.tokenizer, key=start.key),
    ]


def other_images(ours: PreprocessConfig, theirs: PreprocessConfig, *, key: str) -> list[str]:
    """Where a run resizes images otherwise than its start, `key`, did, in lines."""
    return [
        f'data.{name} = "{getattr(ours, name)}", but {key} was judged with '
        f'"{getattr(theirs, name)}"'
        for name in ("resize_mode", "interpolation")
        if getattr(ours, name) != getattr(theirs, name)
    ]


def other_texts(ours: Tokenizer, theirs: Tokenizer, *, key: str) -> list[str]:
    """Where a run's ids are not those that its start, `key`, has learned, in a line."""
    if _ids(ours) == _ids(theirs):
        return []
    return [
        f"[tokenizer] is another one than that of {key}, so the same ids stand for other texts; a "
        "recipe without that section takes the tokenizer of model.init"
    ]


def _ids(tokenizer: Tokenizer) -> tuple[object, ...]:
    """What a text's ids hang on beside the context's length."""
    ends = (tokenizer.num_before, tokenizer.config.add_eot, tokenizer.pad_id)
    return tokenizer.definition, tokenizer.config.clean, *ends


def loss_lines(start: Start, *, kind: str, limit: float | None, trains: bool) -> list[str]:
    """Where the loss is not the start's, or its scale is beyond a limit, in lines.

    Args:
        start: what a run starts from.
        kind: loss.kind.
        limit: loss.max_logit_scale, where the recipe sets it.
        trains: whether the scale does.
    """
    lines: list[str] = []
    own = "clip" if start.model.logit_bias is None else "siglip"
    if kind != own:
        bias = "has no bias of the logits, which starts at model.init_logit_bias"
        bias = bias if own == "clip" else "has a bias of the logits, which softmax does not see"
        lines.append(f'loss.kind = "{kind}", but {start.key} is of kind "{own}": it {bias}')
    scale = start.model.logit_scale.exp().item()
    highest = STANDARD_LIMIT if limit is None else limit
    if trains and (scale > highest * (1 + 1e-3) or scale < 1 - 1e-3):
        side = f"above {highest:g}" if scale > highest else "below 1"
        fate = "the first update cuts it to that" if limit is not None else "that stays its limit"
        hint = "" if limit is not None else "; loss.max_logit_scale sets another"
        lines.append(f"{start.key} multiplies its logits by {scale:.4g}, {side}: {fate}{hint}")
    return lines


def _flat(data: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in data.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def _shown(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
