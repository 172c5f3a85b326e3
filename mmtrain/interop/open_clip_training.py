"""A checkpoint of open_clip's training beyond its weights: the epoch, and AdamW's moments.

Its optimizer numbers the trainable tensors: first the vectors and scalars, which do not decay, then
the matrices, each in the model's order (open_clip_train/main.py). The moments of a tensor go
through the same links as the tensor; none of them does more than move and split numbers, so that
squares stay squares.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmtrain.errors import UsageError
from mmtrain.interop.open_clip import from_open_clip
from mmtrain.interop.open_clip_files import model_cfg_of
from mmtrain.interop.package import read_checkpoint
from mmtrain.interop.state_dict import state_dict_of
from mmtrain.interop.tensor_links import Tensors

MOMENTS = ("exp_avg", "exp_avg_sq")
_NO_DECAY = ("bn", "ln", "bias", "logit_scale")


@dataclass(frozen=True, kw_only=True)
class OpenClipTraining:
    """What a run can take up."""

    epoch: int
    """Epochs done."""
    steps: float
    """Updates that AdamW counts."""
    moments: dict[str, dict[str, Tensor]]
    """AdamW's tensors by our names of the parameters: `{name: {"exp_avg", "exp_avg_sq"}}`."""
    left: tuple[str, ...]
    """What else is in the file."""


def read_open_clip_training(path: Path) -> OpenClipTraining:
    """Read `{epoch, name, state_dict, optimizer}`; no pickle is executed.

    Raises:
        UsageError: it is no such file, or its optimizer is not AdamW over all of the model.
    """
    content = read_checkpoint(path)
    if not isinstance(content, dict) or not {"epoch", "state_dict", "optimizer"} <= content.keys():
        raise UsageError(
            f"{path} is no checkpoint of open_clip's training: it lacks epoch, state_dict or "
            "optimizer; leave out model.init_training to start from its weights"
        )
    tensors, optimizer = state_dict_of(content, path), content["optimizer"]
    state = _by_name(tensors, optimizer, path)
    model_cfg, source = model_cfg_of(path), f"{path}: the optimizer"
    found: dict[str, Tensors] = {}
    for moment in MOMENTS:
        # A tensor that never had a gradient has no moments.
        theirs = {
            name: each.get(moment, torch.zeros_like(x))
            for (name, x), each in zip(tensors.items(), state, strict=True)
        }
        found[moment] = from_open_clip(model_cfg, theirs, source=source)[1]
    others = content.keys() - {"epoch", "name", "state_dict", "optimizer"}
    return OpenClipTraining(
        epoch=int(content["epoch"]),
        steps=max((float(each["step"]) for each in state if "step" in each), default=0.0),
        moments={
            name: {moment: found[moment][name].float() for moment in MOMENTS}
            for name in found[MOMENTS[0]]
        },
        left=("lr", "betas", "eps", "weight_decay", *sorted(others)),
    )


def _by_name(tensors: Tensors, optimizer: Any, path: Path) -> list[dict[str, Tensor]]:
    """The optimizer's state of each tensor, in the order of the tensors."""
    spared = [
        name for name, x in tensors.items() if x.ndim < 2 or any(part in name for part in _NO_DECAY)
    ]
    rest = [name for name in tensors if name not in set(spared)]
    try:
        groups = [group["params"] for group in optimizer["param_groups"]]
        if [len(group) for group in groups] != [len(spared), len(rest)]:
            raise UsageError(
                f"{path}: its optimizer has groups of {[len(group) for group in groups]} tensors, "
                f"and open_clip's AdamW over this model {[len(spared), len(rest)]}: another "
                "optimizer, or towers that were locked; leave out model.init_training"
            )
        numbers = dict(zip((*spared, *rest), (*groups[0], *groups[1]), strict=True))
        state = [optimizer["state"].get(numbers[name], {}) for name in tensors]
        wrong = [
            name
            for (name, x), each in zip(tensors.items(), state, strict=True)
            if each and any(each[moment].shape != x.shape for moment in MOMENTS)
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path}: its optimizer's state is not AdamW's ({error!r})") from error
    if wrong:
        raise UsageError(f"{path}: the moments of {wrong[0]} are of another shape than itself")
    return state
