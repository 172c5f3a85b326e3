"""An architecture's name over a recipe that says another one by its keys."""

from collections.abc import Iterator, Mapping
from typing import Any

from mmtrain.errors import UsageError
from mmtrain.interop.bare_weights import named_config
from mmtrain.settings.decode import encode
from mmtrain.settings.describe import NONE

_NO_SHAPES = ("stochastic_depth", "patch_dropout", "init_logit_scale", "init_logit_bias", "init")
_NO_SHAPES += ("layer_scale", "context_length", "init_training")
"""Keys that say how any model is trained, drawn or gone on with, or that the tokenizer decides."""


def refuse_hidden_name(under: Mapping[str, Any], over: Mapping[str, Any]) -> None:
    """Refuse `model.name` over a recipe whose keys are an architecture themselves: they would hold
    over the name, and nothing or a mongrel come of it. Where that names or starts from a model, its
    other keys are changes of one, and stay.

    Args:
        under: the dict of a recipe that another begins from.
        over: what the other one, or a command's words, say.

    Raises:
        UsageError: naming the keys.
    """
    section, said = under.get("model", {}), over.get("model", {})
    name = said.get("name", NONE) if isinstance(said, dict) else NONE
    if name == NONE or not isinstance(name, str) or not isinstance(section, dict):
        return
    if any(section.get(key, NONE) != NONE for key in ("name", "init", "vision_init")):
        return
    named = dict(_leaves(encode(named_config(name, key="model.name"))))
    own = dict(_leaves(said))
    kept = [
        f"model.{key}"
        for key, value in _leaves(section)
        if key not in own and named.get(key) != value and key.rpartition(".")[2] not in _NO_SHAPES
    ]
    if kept:
        told = ", ".join(kept[:3]) + (f" and {len(kept) - 3} more" if kept[3:] else "")
        raise UsageError(
            f'model.name = "{name}" is laid over a recipe whose own keys are another architecture '
            f"and would hold over it ({told}); begin from a recipe that names its model, or say "
            "these too"
        )


def _leaves(table: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys below a table with their values."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value
