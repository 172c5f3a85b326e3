"""A layout whose ranks are not there yet, and each rank's share of the parameters in it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod

from torch import nn

from mmtrain.nn import TransformerConfig
from mmtrain.parallel.mesh import Axis, Layout
from mmtrain.parallel.pipeline import stage_indices
from mmtrain.plan.shares import cut_shape

ITEM_BYTES: dict[str, int] = {"bf16-pure": 2, "fp64": 8}
"""Of a stored number by train.precision, where it is not fp32."""
GATHERED_BYTES = ITEM_BYTES | {"bf16-fsdp": 2}
"""The same of what FSDP gathers."""
_VOCABULARIES = ("decoder.embed.token.weight", "decoder.head.projection.weight")


@dataclass(frozen=True, kw_only=True)
class PlannedLayout(Layout):
    """A layout without ranks: sizes by axis, and the pipeline coordinate that is looked at."""

    world_size: int
    blocks: dict[str, TransformerConfig]
    """Of each stack of them, by its path in the model's stage."""
    pp_rank: int = 0

    def size(self, name: Axis) -> int:
        """Ranks along an axis."""
        config = self.config
        fixed = {"pp": config.pp, "tp": config.tp}
        return fixed.get(name, self.world_size // (config.pp * config.tp))

    def rank(self, name: Axis) -> int:
        """The pipeline coordinate that is looked at; 0 along other axes, where all are alike."""
        return self.pp_rank if name == "pp" else 0

    @property
    def dp_shard(self) -> int:
        """Ranks that share one copy of the weights."""
        return self.size("dp") // self.config.dp_replicate


def held_stages(layout: Layout) -> list[int]:
    """The stages of the pipeline coordinate that is looked at; the only one of no pipeline."""
    return stage_indices(layout) if layout.size("pp") > 1 else [0]


def _tp_shape(name: str, parameter: nn.Parameter, layout: PlannedLayout) -> tuple[int, ...]:
    """The shape that a tensor-parallel rank holds."""
    shape, tp = tuple(parameter.shape), layout.size("tp")
    if name.endswith(_VOCABULARIES):
        return (-(-shape[0] // tp), *shape[1:])
    stack, _, within = name.partition(".blocks.")
    path, _, leaf = within.partition(".")[2].rpartition(".")
    return cut_shape(path, leaf, shape, layout.blocks[stack], tp) if path else shape


@dataclass(frozen=True)
class Sizes:
    """Elements of parameters on a rank: its shard, and the whole that FSDP gathers."""

    shard: int
    whole: int


def sizes_of(named: Iterable[tuple[str, nn.Parameter]], layout: PlannedLayout) -> Sizes:
    """Of the fullest rank: FSDP cuts the first dim, every share as large as the largest."""
    shard = whole = 0
    for name, parameter in named:
        shape = _tp_shape(name, parameter, layout)
        rest = prod(shape[1:])
        rows = -(-shape[0] // layout.dp_shard)
        shard += rows * rest
        whole += shape[0] * rest
    return Sizes(shard, whole)


def named_parameters(
    stages: Sequence[nn.Module], *, trains: bool = False
) -> list[tuple[str, nn.Parameter]]:
    """Of the stages: all, or those that train."""
    named = [pair for stage in stages for pair in stage.named_parameters()]
    return [pair for pair in named if pair[1].requires_grad or not trains]


def is_resharded(layout: PlannedLayout) -> bool:
    """Whether FSDP frees what it gathered for a forward before the backward."""
    return layout.config.reshard_after_forward and layout.size("pp") == 1
