"""The state dict among what a weights' file holds: out of its containers, without the prefixes that
wrappers put before every name, in whatever order they were put on.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mmtrain.errors import UsageError
from mmtrain.interop.tensor_links import Tensors

WEIGHTS = (
    "state_dict", "model", "model_state_dict", "model_state", "module", "net", "network", "clip",
    "clip_model", "weights", "params",
)  # fmt: skip
"""Keys under which files keep a model, the likeliest first."""
AVERAGES = (
    "ema", "model_ema", "ema_model", "ema_state_dict", "state_dict_ema", "model_ema_state_dict",
    "ema_model_state_dict", "shadow", "shadow_params", "averaged_model",
)  # fmt: skip
"""Keys under which they keep the average of its weights."""
WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")
"""Parts of names that wrappers put in, before every name or within."""
PREFIXES = ("module", *WRAPPERS, *WEIGHTS, *AVERAGES)
"""Parts that may stand before every name."""
COUNTERS = ("n_averaged", "num_updates", "decay")
"""Numbers that averages keep beside the weights."""


def state_dict_of(content: Any, path: Path) -> Tensors:
    """The tensors among the content of a file, under the model's own names.

    Where weights and their average are both there, the weights are taken and that is said.

    Raises:
        UsageError: there are none, several models, or other things among them.
    """
    return bare_names(raw_state_dict(content, path), path)


def raw_state_dict(content: Any, path: Path) -> Tensors:
    """The same with the names as the file has them."""
    while isinstance(content, Mapping) and not _has_tensors(content):
        content = content[_choose_container(content, path)]
    if not isinstance(content, Mapping) or not content:
        raise UsageError(f"{path} holds no state dict")
    kept = {name: x for name, x in content.items() if not _is_counter(name, content)}
    wrong = [name for name, x in kept.items() if not isinstance(x, Tensor)]
    if wrong:
        raise UsageError(f"{path}: {wrong[0]} is no tensor, so this is no state dict")
    return dict(kept)


def bare_names(tensors: Tensors, path: Path) -> Tensors:
    """Tensors without the prefixes of wrappers.

    Raises:
        UsageError: two of them would have one name then.
    """
    while True:
        firsts = {name.partition(".")[0] for name in tensors}
        if len(firsts) == 1 and firsts <= set(PREFIXES) and all("." in name for name in tensors):
            (first,) = firsts
        else:
            both = {f for f in firsts if f in PREFIXES}
            if both != firsts or len(both) < 2 or not any(f in AVERAGES for f in both):
                break
            first = _choose(sorted(both), path)
        tensors = {
            name.partition(".")[2]: x
            for name, x in tensors.items()
            if name.startswith(f"{first}.") and name.partition(".")[2] not in COUNTERS
        }
    found: Tensors = {}
    for name, x in tensors.items():
        bare = ".".join(part for part in name.split(".") if part not in WRAPPERS)
        if bare in found:
            raise UsageError(f"{path}: {name} and another tensor are both {bare} without wrappers")
        found[bare] = x
    return found


def _has_tensors(content: Mapping[Any, Any]) -> bool:
    return any(
        isinstance(x, Tensor) and not _is_counter(name, content) for name, x in content.items()
    )


def _is_counter(name: Any, content: Mapping[Any, Any]) -> bool:
    """Whether it is no weight but a number beside a container or an average's weights."""
    return name in COUNTERS and len(content) > 1


def _choose_container(content: Mapping[Any, Any], path: Path) -> Any:
    """The key of what is nested in a file."""
    nested = [key for key, x in content.items() if isinstance(x, Mapping) and _leads_to_tensors(x)]
    known = [key for key in nested if key in WEIGHTS or key in AVERAGES]
    # An optimizer's state leads to tensors too, and is no model.
    others = [key for key in nested if "optim" not in str(key).lower()]
    found = known or others
    if not found:
        raise UsageError(f"{path} holds no state dict")
    return _choose(found, path)


def _leads_to_tensors(content: Any) -> bool:
    if isinstance(content, Mapping):
        return any(isinstance(x, Tensor) or _leads_to_tensors(x) for x in content.values())
    return False


def _choose(keys: list[Any], path: Path) -> Any:
    """One of several places of weights; aloud where an average is left."""
    weights = [key for key in keys if key not in AVERAGES]
    if len(keys) == 1:
        return keys[0]
    if len(weights) > 1 or not weights:
        listed = ", ".join(map(str, weights or keys))
        raise UsageError(
            f"{path} holds several sets of weights ({listed}); save the one that is meant alone"
        )
    left = ", ".join(str(key) for key in keys if key != weights[0])
    print(
        f"mmtrain: {path} holds {weights[0]} and {left}; {weights[0]} is taken (save {left} alone "
        "to take that)",
        file=sys.stderr,
    )
    return weights[0]
