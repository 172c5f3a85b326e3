"""Which kind of model a folder holds, so that a command of another kind can say who takes it."""

from pathlib import Path
from typing import Any, Literal

from mmtrain.errors import UsageError
from mmtrain.files import parse_json
from mmtrain.interop import hf_clip_config, hf_decoder_config
from mmtrain.interop.forms import DESCRIPTION
from mmtrain.interop.hf_peft import CONFIG_FILE as ADAPTER_FILE

Kind = Literal["clip", "vqa", "decoder", "tower", "graphs", "adapter"]

_OURS: dict[object, Kind] = {"mmtrain.clip": "clip", "mmtrain.vqa": "vqa"}
"""By the `format` in our own config.json."""

_LACKS: dict[Kind, str] = {
    "clip": "is no CLIP",
    "vqa": "answers no questions",
    "decoder": "is no decoder",
    "tower": "is no image tower of timm's",
    "graphs": "holds no graphs",
    "adapter": "holds no adapter",
}
_TAKEN_BY: dict[Kind, str] = {
    "clip": "it holds a CLIP, which `mmtrain eval zero-shot`, `eval retrieval` and `embed` take, "
    "and from which a recipe (one with a [vqa] section trains answers) starts by model.init",
    "vqa": "mmtrain exported it, with questions; use `mmtrain ask` or `eval vqa`, `serve` for a "
    "page that asks, `embed` or `eval knn` for its image tower, and vqa.init to start from it",
    "decoder": "it holds a decoder, which `mmtrain generate` and mmtrain.load_decoder take, and "
    "from which a [vqa.generate] starts by init",
    "tower": "it holds an image tower of timm's, from which a recipe starts by model.vision_init",
    "graphs": "it holds graphs that other programs run (docs/onnx.md), out of which no weights are "
    "read; name the run, or an export in another form",
    "adapter": "it holds an adapter alone, from which a recipe with [peft] goes on by peft.init; "
    "the whole model of a run that trained one is in its export/",
}


def refuse_other_kind(path: Path, wanted: Kind, *, key: str = "model") -> None:
    """Refuse what is plainly another kind of model; anything else is for the reader to judge.

    Args:
        path: a folder, or a run's, whose export/ is looked at.
        wanted: what the caller reads.
        key: the option or key that the path came from, for the message.

    Raises:
        UsageError: naming the commands and keys that take such a model.
    """
    if path.parent.name == "checkpoints" and (path.parent.parent / "recipe.toml").is_file():
        raise UsageError(
            f"{key} = {path} is a checkpoint, which a run resumes from; name the run, "
            f"{path.parent.parent}, whose export/ is read"
        )
    found = kind_of(path)
    if wanted == "tower" and _kind_by_config(path) == wanted:
        return  # timm's repositories hold an open_clip's CLIP beside their tower
    if found not in (None, wanted):
        raise UsageError(f"{key} = {path} {_LACKS[wanted]}: {_TAKEN_BY[found]}")


def kind_of(path: Path) -> Kind | None:
    """What the files beside the weights say; None: nothing that is known."""
    folder = path / "export" if (path / "export" / "config.json").is_file() else path
    if (folder / "open_clip_config.json").is_file():
        return "clip"
    return _kind_by_config(folder)


def _kind_by_config(folder: Path) -> Kind | None:
    data = _object_in(folder / "config.json")
    if data is None:
        described = _object_in(folder / DESCRIPTION) or {}
        if str(described.get("format")).startswith("mmtrain."):
            return "graphs"
        return "adapter" if _object_in(folder / ADAPTER_FILE) is not None else None
    if (kind := _OURS.get(str(data.get("format")))) is not None:
        return kind
    theirs = str(data.get("model_type"))
    if theirs in hf_clip_config.CLASSES:
        return "clip"
    if theirs in hf_decoder_config.FAMILIES:
        return "decoder"
    return "tower" if "architecture" in data else None


def _object_in(path: Path) -> dict[str, Any] | None:
    """A JSON object; None: there is none, and whoever reads it says what is wrong with it."""
    try:
        data: Any = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return data if isinstance(data, dict) else None
