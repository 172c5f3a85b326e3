"""The device mesh: which rank does what."""

import os
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from mmtrain.errors import UsageError
from mmtrain.limits import check_choices
from mmtrain.parallel.recompute import RecomputeConfig

ScheduleName = Literal[
    "GPipe", "1F1B", "Interleaved1F1B", "LoopedBFS", "InterleavedZeroBubble", "ZBVZeroBubble"
]
Axis = Literal["pp", "dp", "tp"]
DataParallelKind = Literal["fsdp", "ddp", "zero1"]


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """Sizes of the mesh's axes, whose product is the number of ranks, and how each works."""

    dp_kind: DataParallelKind = "fsdp"
    """What data-parallel ranks keep. fsdp: a share of weights, gradients and optimizer state (by
    dp_shard); ddp: all of it; zero1: all but the optimizer state, of which each has a share."""
    pp: int = 1
    """Pipeline stages: each rank holds a slice of the layers of every tower."""
    dp_replicate: int = 1
    """Data-parallel replicas, each with one copy of the (sharded) weights. ddp and zero1 have
    nothing but replicas: all ranks, where it is left at 1."""
    dp_shard: int = -1
    """Data-parallel ranks that share one copy of weights and optimizer state (FSDP).
    -1: all ranks that the other axes leave."""
    tp: int = 1
    """Tensor-parallel ranks: each holds a share of every head and feed-forward."""
    sequence: bool = True
    """Sequence parallelism: with tp > 1, norms and residuals hold a share of the tokens."""
    schedule: ScheduleName = "1F1B"
    """Order of a pipeline's microbatches. All but GPipe and 1F1B hold two stages on each rank."""
    reshard_after_forward: bool = True
    """FSDP frees gathered weights between forward and backward (ZeRO-3). False: keeps them
    (ZeRO-2), as a pipeline always does: it would gather them anew for every microbatch."""
    cpu_offload: bool = False
    """FSDP keeps shards of weights, gradients and optimizer state in main memory and updates them
    there; a block's weights visit the GPU while it computes. On one GPU too; without tp and pp."""
    recompute: RecomputeConfig = field(default_factory=RecomputeConfig)
    """Memory for work: activations that the backward computes again."""

    def dp_sizes(self, world_size: int, *, ranks: str) -> tuple[int, int]:
        """dp_replicate and dp_shard with `world_size` ranks, which a message calls `ranks`.

        Raises:
            UsageError: the axes' sizes do not make up the number of ranks.
        """
        rest = world_size // (self.pp * self.tp)
        replicate, shard = self.dp_replicate, self.dp_shard
        if self.dp_kind != "fsdp":
            replicate, shard = rest if replicate == 1 else replicate, 1
        elif shard == -1:
            shard = rest // replicate
        if shard < 1 or self.pp * replicate * shard * self.tp != world_size:
            raise UsageError(
                f"parallel.pp = {self.pp} x dp_replicate = {self.dp_replicate} x dp_shard = "
                f"{self.dp_shard} x tp = {self.tp} does not make up {ranks}; "
                "choose sizes whose product is that number, or leave dp_shard = -1"
            )
        return replicate, shard

    def __post_init__(self) -> None:
        check_choices(self)
        for name in ("pp", "dp_replicate", "tp"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)} must be at least 1")
        if self.dp_shard < 1 and self.dp_shard != -1:
            raise ValueError(f"dp_shard = {self.dp_shard} must be at least 1, or -1 for the rest")
        if "ZeroBubble" in self.schedule and self.recompute.kind == "selective":
            # Its backward comes in two parts, and torch hands what was kept over once.
            raise ValueError(
                f'schedule = "{self.schedule}" takes no recompute.kind = "selective"; use "full", '
                'or schedule = "Interleaved1F1B"'
            )
        for name in ("pp", "tp"):
            if self.cpu_offload and getattr(self, name) > 1:
                raise ValueError(
                    f"{name} = {getattr(self, name)} goes with no cpu_offload = true; use dp_shard "
                    "alone beside it, or remove it"
                )
        if self.dp_kind != "fsdp":
            self._check_replicas()

    def _check_replicas(self) -> None:
        """Refuse what whole weights on every rank leave no room for."""
        kind = f'dp_kind = "{self.dp_kind}"'
        for name in ("pp", "tp"):
            if getattr(self, name) > 1:
                instead = (
                    "reshard_after_forward = false (ZeRO-2: the same and sharded gradients)"
                    if self.dp_kind == "zero1"
                    else "dp_replicate = n and dp_shard = 1 (replicas)"
                )
                raise ValueError(
                    f"{name} = {getattr(self, name)} goes with no {kind}; use "
                    f'dp_kind = "fsdp" with {instead}'
                )
        if self.dp_shard not in (-1, 1):
            raise ValueError(
                f'dp_shard = {self.dp_shard} has no effect with {kind}; use dp_kind = "fsdp" or '
                "remove it"
            )
        for name, default in (("reshard_after_forward", True), ("cpu_offload", False)):
            if getattr(self, name) != default:
                raise ValueError(
                    f'{name} = {not default} has no effect with {kind}; use dp_kind = "fsdp" or '
                    "remove it"
                )


@dataclass(frozen=True, kw_only=True)
class Layout:
    """This rank's place. `mesh` is None in a single process, which needs no process group (unless
    it offloads: FSDP wants one)."""

    device: torch.device
    config: ParallelConfig
    mesh: DeviceMesh | None = None
    dp_mesh: DeviceMesh | None = None
    """Both data-parallel axes as one."""

    def __str__(self) -> str:
        """Where a run computes, for people: `cuda`, or `8 cuda ranks (dp_shard 4, tp 2)`."""
        if self.mesh is None:
            return self.device.type
        sizes = zip(self.mesh.mesh_dim_names or (), self.mesh.shape, strict=True)
        axes = ", ".join(f"{name} {size}" for name, size in sizes if size > 1)
        ranks = f"{self.mesh.size()} {self.device.type} rank" + "s" * (self.mesh.size() > 1)
        return f"{ranks} ({axes})" if axes else ranks

    def axis(self, name: Axis) -> DeviceMesh | None:
        """The mesh along `pp`, `dp` (both data-parallel axes) or `tp`."""
        if self.mesh is None or name == "dp":
            return self.dp_mesh
        return self._axes[name]

    @cached_property
    def _axes(self) -> dict[str, DeviceMesh]:
        """Made once: torch cuts a mesh by searching tensors."""
        assert self.mesh is not None
        return {name: self.mesh[name] for name in ("pp", "tp")}

    def size(self, name: Axis) -> int:
        """Ranks along an axis."""
        mesh = self.axis(name)
        return 1 if mesh is None else mesh.size()

    def rank(self, name: Axis) -> int:
        """This rank's coordinate along an axis."""
        mesh = self.axis(name)
        # Kept by the group; torch's mesh searches a tensor for it at every call.
        return 0 if mesh is None else dist.get_rank(mesh.get_group())

    def group(self, name: Axis) -> dist.ProcessGroup | None:
        """The process group along an axis, None where the axis has one rank."""
        mesh = self.axis(name)
        return None if mesh is None or mesh.size() == 1 else mesh.get_group()

    @property
    def is_sharded(self) -> bool:
        """Whether FSDP holds the weights."""
        several = self.size("dp") > 1 or self.config.cpu_offload
        return self.config.dp_kind == "fsdp" and several

    @property
    def has_replicas(self) -> bool:
        """Whether several ranks hold the same whole weights, whose gradients are averaged."""
        return self.config.dp_kind != "fsdp" and self.size("dp") > 1

    @property
    def zero_group(self) -> dist.ProcessGroup | None:
        """The ranks that share out the optimizer's state by ZeRO-1; None: each has all of its
        parameters'."""
        return self.group("dp") if self.config.dp_kind == "zero1" else None

    @property
    def is_first_stage(self) -> bool:
        """Whether images are decoded here."""
        return self.rank("pp") == 0

    @property
    def last_stage_rank(self) -> int:
        """The coordinate along pp where the loss is computed; a V of stages ends where it began."""
        return 0 if self.config.schedule == "ZBVZeroBubble" else self.size("pp") - 1

    @property
    def is_last_stage(self) -> bool:
        """Whether the loss is computed here."""
        return self.rank("pp") == self.last_stage_rank

    @property
    def is_main(self) -> bool:
        """Whether this rank writes logs and files."""
        return self.mesh is None or dist.get_rank() == 0


def pick_device(name: str, *, key: str = "train.device") -> torch.device:
    """The device that `auto | cpu | cuda | cuda:N` names; `cuda` is that of this local rank.

    Args:
        name: of the device.
        key: the setting that it came from, for messages.

    Raises:
        UsageError: no such device is known or there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda") or (number and not (kind == "cuda" and number.isdecimal())):
        raise UsageError(f"{key} = {name} is unknown; use auto, cpu, cuda or cuda:0")
    if kind == "cpu":
        return torch.device("cpu")
    index = int(number or os.environ.get("LOCAL_RANK", "0"))
    if index >= torch.cuda.device_count():
        found = torch.cuda.device_count()
        raise UsageError(f"{key} = {name}, but {found} CUDA devices are visible; use cpu or auto")
    return torch.device("cuda", index)


def build_layout(config: ParallelConfig, device: torch.device) -> Layout:
    """Join the ranks of a torchrun job into a mesh; a plain process gets none.

    Raises:
        UsageError: the axes' sizes do not make up the number of ranks, or there is no GPU to
            offload from.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    replicate, shard = config.dp_sizes(world, ranks=f"the {world} rank(s) started")
    if config.cpu_offload and device.type != "cuda":
        raise UsageError(
            f"parallel.cpu_offload = true has no effect on train.device = {device.type}: the "
            "weights are in main memory already; remove it, or train on cuda"
        )
    if world == 1 and not config.cpu_offload:
        return Layout(device=device, config=config)
    if not dist.is_initialized():
        _init_process_group(device, cpu_offload=config.cpu_offload, alone=world == 1)
    mesh = init_device_mesh(
        device.type,
        (config.pp, replicate, shard, config.tp),
        mesh_dim_names=("pp", "dp_replicate", "dp_shard", "tp"),
    )
    dp_mesh = mesh["dp_replicate", "dp_shard"]._flatten("dp")
    return Layout(device=device, config=config, mesh=mesh, dp_mesh=dp_mesh)


def leave_ranks() -> None:
    """End the process group that `build_layout` made, if it made one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _init_process_group(device: torch.device, *, cpu_offload: bool, alone: bool) -> None:
    backend = "nccl" if device.type == "cuda" else "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if cpu_offload:  # norms and checkpoints are of tensors in main memory
        backend = "cpu:gloo,cuda:nccl"
    if alone:
        store = dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]
        dist.init_process_group(backend, store=store, rank=0, world_size=1)
    else:
        dist.init_process_group(backend)
