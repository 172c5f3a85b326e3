"""Which parameters training treats otherwise than the rest, told by the modules that own them.

A module names in `no_decay` those of its own parameters which are tables and not maps: positions,
learned tokens and queries, a dictionary that stands for data. Nothing else has to know them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

from torch import nn

from mmtrain.models.decoder import Decoder
from mmtrain.models.model import Model, Tower
from mmtrain.nn import TransformerBlock
from mmtrain.peft.lora import TERMS

_DOOR = "front_door."
"""What names of a front door's parameters start with in the block that it stands behind."""


@runtime_checkable
class HasTables(Protocol):
    """A module which owns parameters that weight decay leaves alone."""

    no_decay: ClassVar[tuple[str, ...]]
    """Their names in it, whether or not its configuration gives it all of them."""


@dataclass(frozen=True, kw_only=True)
class ParameterNames:
    """What an optimizer must know of a model's parameters, by their names in it."""

    no_decay: set[str]
    """Those that weight decay leaves alone."""
    hidden_matrices: set[str]
    """Those that Muon may take."""
    layer_ids: dict[str, tuple[int, int]]
    """(layer, layers above it) of the towers' parameters."""


def parameter_names(model: Model) -> ParameterNames:
    """All of it, for any model."""
    return ParameterNames(
        no_decay=no_decay_names(model),
        hidden_matrices=hidden_matrix_names(model),
        layer_ids=layer_ids(model.towers()),
    )


def no_decay_names(model: nn.Module) -> set[str]:
    """Parameters that weight decay leaves alone: vectors, scalars, and what modules declare."""
    return {
        name
        for name, parameter in model.named_parameters()
        if parameter.ndim <= 1 or _is_table(model, name)
    }


def hidden_matrix_names(model: nn.Module) -> set[str]:
    """The blocks' projection matrices, which Muon may take: q, k, v, o and the feed-forward; not
    the thin ones of an adapter, nor those of a front door, wherever it stands."""
    return {
        _join(path, name)
        for path, module in model.named_modules()
        if isinstance(module, TransformerBlock)
        for name, parameter in module.named_parameters()
        if parameter.ndim == 2 and name.rpartition(".")[2] not in TERMS
        if not name.startswith(_DOOR)
    }


def layer_ids(towers: Mapping[str, Tower]) -> dict[str, tuple[int, int]]:
    """Depth of every tower parameter as (layer, layers above it): 0 for embeddings, then blocks.

    For learning rates that decay with the distance from the output (arXiv:2106.08254).
    """
    ids: dict[str, tuple[int, int]] = {}
    for path, tower in towers.items():
        top = _top(tower)
        for name, _ in tower.named_parameters():
            layer = _layer(name, top)
            ids[_join(path, name)] = (layer, top - layer)
    return ids


@dataclass(frozen=True, kw_only=True)
class LockConfig:
    """Frozen towers (LiT, arXiv:2111.07991) and decoders. None: the part trains."""

    vision: int | None = None
    """0 freezes the vision tower; n leaves the head and its last n - 1 blocks trainable. Front
    doors in it train in any case."""
    text: int | None = None
    """The same for the text tower."""
    decoder: int | None = None
    """The same for the decoder that writes answers: 0, and the connector learns to speak to it."""


def lock_tower(tower: Tower | Decoder, *, unlocked_layers: int = 0) -> None:
    """Freeze a tower but for its head-side layers (LiT, arXiv:2111.07991).

    Args:
        tower: frozen in place.
        unlocked_layers: 0 freezes all of it; 1 leaves the head trainable, 1 + n also the last n
            blocks; more than the blocks leaves everything trainable.
    """
    top = _top(tower)
    for name, parameter in tower.named_parameters():
        # Statistics, which do not train, stay as they are.
        unlocked = top - _layer(name, top) < unlocked_layers or f".{_DOOR}" in name
        trains = parameter.requires_grad and unlocked
        parameter.requires_grad_(trains)


def _is_table(model: nn.Module, name: str) -> bool:
    path, _, leaf = name.rpartition(".")
    owner = model.get_submodule(path)
    return isinstance(owner, HasTables) and leaf in owner.no_decay


def _top(tower: Tower | Decoder) -> int:
    """The head's layer."""
    return tower.transformer.config.num_layers + 1


def _layer(name: str, top: int) -> int:
    """The layer of a tower's parameter: 0 for the embedding, `top` for the head."""
    if name.startswith("embed."):
        return 0
    if name.startswith("transformer.blocks."):
        return int(name.split(".")[2]) + 1
    return top


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
