"""The start of front doors: dictionaries are centres of what pretrained towers make of the data."""

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn

from mmtrain.data.numbered import NumberedData
from mmtrain.errors import UsageError
from mmtrain.models.vqa import Vqa
from mmtrain.nn.front_door import FrontDoor, kmeans

FEATURES_PER_ENTRY = 20
"""Features that a centre is the mean of, on average."""
_AT_MOST_BATCHES = 64


@torch.no_grad()
def fill_dictionaries(
    model: Vqa,
    data: NumberedData[Any],
    look_at: Callable[[Any], None],
    *,
    seed: int,
    given: Collection[str] = (),
) -> None:
    """Fill every dictionary that wants it with k-means centres, in place.

    Features are those that enter each front door, of the first batches of the first epoch.

    Args:
        model: whole.
        data: as one process has them, so that every rank finds the same centres.
        look_at: lets the model see a batch.
        seed: the run's.
        given: parameters that another model brought; their dictionaries stay as they are.

    Raises:
        UsageError: there is no image to look at.
    """
    config = model.config.front_door
    doors = [
        door
        for name, door in model.named_modules()
        if isinstance(door, FrontDoor) and f"{name}.dictionary" not in given
    ]
    if config is None or config.init != "kmeans" or not doors:
        return
    wanted = FEATURES_PER_ENTRY * config.entries
    seen: dict[FrontDoor, list[Tensor]] = {door: [] for door in doors}
    hooks = [door.register_forward_pre_hook(_keeper(seen[door])) for door in doors]
    model.eval()
    try:
        for number in range(min(_AT_MOST_BATCHES, data.batches_per_epoch)):
            look_at(data.batch(number))
            if all(sum(map(len, features)) >= wanted for features in seen.values()):
                break
    finally:
        for hook in hooks:
            hook.remove()
        model.train()
    if not all(seen.values()):
        raise UsageError(
            'vqa.front_door.init = "kmeans" needs images to take centres of, and the first '
            f'{_AT_MOST_BATCHES} batches have none; use "random"'
        )
    generator = torch.Generator().manual_seed(seed)
    for door in doors:
        features_BD = torch.cat(seen[door])
        chosen = torch.randperm(features_BD.size(0), generator=generator)[:wanted]
        door.dictionary.copy_(kmeans(features_BD[chosen], config.entries, generator=generator))


def refuse_shut_doors(model: Vqa) -> None:
    """Refuse a front door that adds nothing and would not learn to.

    Raises:
        UsageError: naming the first; [peft] leaves what leads out of it frozen at 0.
    """
    for name, door in model.named_modules():
        if isinstance(door, FrontDoor) and not any(
            parameter.requires_grad or bool(parameter.any()) for parameter in door.fuse.parameters()
        ):
            raise UsageError(
                f"[peft] leaves the front door {name} at its start, at which it adds nothing; set "
                'peft.also_train = ["*front_door*"], or leave [vqa.front_door] out'
            )


def _keeper(features: list[Tensor]) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    """A hook that keeps the real ones of the tokens that enter a front door."""

    def keep(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        x_BTD, mask = inputs
        real = x_BTD.flatten(0, 1) if mask.allowed is None else x_BTD[mask.allowed[:, 0]]
        features.append(real)

    return keep
