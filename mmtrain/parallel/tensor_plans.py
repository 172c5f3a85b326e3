"""What a tp mesh does to the modules of a stage: each names its plan, all else is replicated.

Replicated on the same mesh, because clipping and the fused optimizers refuse a mix of plain and
distributed parameters. A decoder's vocabulary is shared out (parallel/vocabulary.py), its blocks
and every other stack of them by Megatron-LM's split (parallel/tensor.py).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar, Protocol, runtime_checkable

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.parallel import parallelize_module

from mmtrain.errors import UsageError
from mmtrain.models import Decoder
from mmtrain.models.model import Stage
from mmtrain.nn import Transformer
from mmtrain.nn.front_door import FrontDoorBlock
from mmtrain.parallel.local_compute import LocalCompute
from mmtrain.parallel.tensor import SequenceSharded, block_plan, check_tensor_parallel
from mmtrain.parallel.vocabulary import check_vocabulary, shard_vocabulary


class TensorPlan(ABC):
    """What a tp mesh does to a module of a kind, and what it asks of it."""

    @abstractmethod
    def check(self, module: Any, tp: int, *, key: str) -> None:
        """Refuse a degree that does not fit.

        Args:
            module: one that names this plan.
            tp: the degree.
            key: of the section that holds its shape in a recipe.

        Raises:
            UsageError: naming the value and degrees that work.
        """

    @abstractmethod
    def apply(self, module: Any, mesh: DeviceMesh, *, sequence: bool) -> set[nn.Module]:
        """Shard it in place -> the modules of which nothing is left to do."""


class BlocksPlan(TensorPlan):
    """A stack of blocks: its matrices cut, its residual stream over the tokens if `sequence`."""

    def check(self, module: Transformer, tp: int, *, key: str) -> None:
        check_tensor_parallel(key, module.config, tp)
        if tp > 1 and any(isinstance(block, FrontDoorBlock) for block in module.blocks.values()):
            raise UsageError(
                f'parallel.tp = {tp} does not cut the blocks of a tower with "vision" in '
                "vqa.front_door.places; leave it out there, or set parallel.tp = 1"
            )

    def apply(self, module: Transformer, mesh: DeviceMesh, *, sequence: bool) -> set[nn.Module]:
        for block in module.blocks.values():
            held = {path for path, _ in block.named_modules()}
            plan = block_plan(module.config, tp=mesh.size(), sequence=sequence)
            parallelize_module(block, mesh, {k: v for k, v in plan.items() if k in held})
        if sequence:
            parallelize_module(module, mesh, SequenceSharded())
        return set(module.modules())


class VocabularyPlan(TensorPlan):
    """A decoder: the rows of its embedding and of its head; its blocks have their own plan."""

    def check(self, module: Decoder, tp: int, *, key: str) -> None:
        check_vocabulary(module, tp)

    def apply(self, module: Decoder, mesh: DeviceMesh, *, sequence: bool) -> set[nn.Module]:
        return shard_vocabulary(module, mesh)


PLANS: dict[str, TensorPlan] = {"blocks": BlocksPlan(), "vocabulary": VocabularyPlan()}
"""What a module's `tensor_plan` names."""


@runtime_checkable
class HasTensorPlan(Protocol):
    """A module of which more than one rank computes a part each."""

    tensor_plan: ClassVar[str]


def planned_modules(stage: nn.Module) -> Iterator[tuple[str, nn.Module, TensorPlan]]:
    """The modules of a stage that have a plan, by path."""
    for path, module in list(stage.named_modules()):
        if (plan := _plan(module)) is not None:
            yield path, module, plan


def _plan(module: nn.Module) -> TensorPlan | None:
    return PLANS[module.tensor_plan] if isinstance(module, HasTensorPlan) else None


def check_tensor_parallel_stage(stage: Stage, tp: int) -> None:
    """Refuse a degree that does not fit a stage.

    Raises:
        UsageError: naming the field, its value and the degrees that work.
    """
    keys = {path: stack.key for path, stack in stage.stacks().items()}
    for path, module, plan in planned_modules(stage):
        plan.check(module, tp, key=keys.get(path, path))


def apply_tensor_parallel(stage: Stage, mesh: DeviceMesh, *, sequence: bool) -> None:
    """Shard what has a plan over the tp mesh, in place; whatever else has parameters computes on
    all ranks alike.

    Raises:
        UsageError: the degree does not fit the shapes.
    """
    check_tensor_parallel_stage(stage, mesh.size())
    done: set[nn.Module] = set()
    for _, module, plan in planned_modules(stage):
        done |= plan.apply(module, mesh, sequence=sequence)
    for module in stage.modules():
        if module not in done:
            LocalCompute(gradient="same").apply_to_one(module, mesh)
