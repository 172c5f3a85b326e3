"""Layouts that do not fit are refused in one line that names key, value and remedy."""

import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from mmtrain.errors import UsageError
from mmtrain.models import Clip
from mmtrain.models.model import Stage
from mmtrain.nn import TransformerConfig
from mmtrain.parallel.mesh import Axis, Layout, ParallelConfig, build_layout, pick_device
from mmtrain.parallel.pipeline import check_microbatches, stage_indices
from mmtrain.parallel.slices import check_slices
from mmtrain.parallel.tensor import check_tensor_parallel
from mmtrain.train.step import build_schedule
from tests.parallel.tiny_clip import CPU, tiny_config


class Imagined(Layout):
    """A layout of any size without its ranks."""

    def size(self, name: Axis) -> int:
        return {"pp": self.config.pp, "dp": self.config.dp_shard, "tp": self.config.tp}[name]

    def rank(self, name: Axis) -> int:
        return 0


def imagine(**sizes) -> Imagined:
    return Imagined(device=CPU, config=ParallelConfig(**({"dp_shard": 1} | sizes)))


@pytest.mark.parametrize(
    ("sizes", "found"),
    [
        ({"pp": 0}, "pp = 0 must be at least 1"),
        ({"tp": -1}, "tp = -1 must be at least 1"),
        ({"dp_replicate": 0}, "dp_replicate = 0 must be at least 1"),
        ({"dp_shard": 0}, "dp_shard = 0 must be at least 1, or -1 for the rest"),
    ],
)
def test_sizes_below_one(sizes, found):
    with pytest.raises(ValueError, match=found):
        ParallelConfig(**sizes)


@pytest.mark.parametrize(
    ("keys", "found"),
    [
        ({"tp": 2}, 'tp = 2 goes with no dp_kind = "zero1"; use dp_kind = "fsdp" with reshard_aft'),
        ({"pp": 4}, 'pp = 4 goes with no dp_kind = "zero1"; .* reshard_after_forward = false'),
        ({"dp_shard": 2}, 'dp_shard = 2 has no effect with dp_kind = "zero1"'),
        ({"cpu_offload": True}, 'cpu_offload = True has no effect with dp_kind = "zero1"'),
        ({"reshard_after_forward": False}, "reshard_after_forward = False has no effect with"),
    ],
)
def test_replicas_are_all_there_is_beside_ddp_and_zero1(keys, found):
    with pytest.raises(ValueError, match=found) as error:
        ParallelConfig(dp_kind="zero1", **keys)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r'dp_kind = "ddp"; use dp_kind = "fsdp"'):
        ParallelConfig(dp_kind="ddp", **keys)


def test_offload_wants_a_gpu_and_nothing_but_fsdp(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    message = "parallel.cpu_offload = true has no effect on train.device = cpu: .* train on cuda"
    with pytest.raises(UsageError, match=message) as error:
        build_layout(ParallelConfig(cpu_offload=True), CPU)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="tp = 2 goes with no cpu_offload = true; use dp_shard"):
        ParallelConfig(cpu_offload=True, tp=2)


def test_replicas_take_all_ranks():
    for kind in ("ddp", "zero1"):
        for sizes in ({}, {"dp_replicate": 6}, {"dp_shard": 1}):
            config = ParallelConfig(dp_kind=kind, **sizes)
            assert config.dp_sizes(6, ranks="6 ranks") == (6, 1)
        with pytest.raises(UsageError, match=r"dp_replicate = 2 x .* does not make up 6 ranks"):
            ParallelConfig(dp_kind=kind, dp_replicate=2).dp_sizes(6, ranks="6 ranks")
    assert ParallelConfig(dp_replicate=2).dp_sizes(6, ranks="6 ranks") == (2, 3)


@pytest.mark.parametrize(
    ("world", "sizes"),
    [
        (1, {"tp": 2}),
        (4, {"pp": 3}),
        (4, {"dp_shard": 8}),
        (4, {"tp": 2, "pp": 4}),
        (6, {"tp": 2, "dp_shard": 2}),
    ],
)
def test_sizes_that_do_not_make_up_the_world(world, sizes, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", str(world))
    key, value = next(iter(sizes.items()))
    name = {"pp": "parallel.pp"}.get(key, key)
    message = rf"{name} = {value} .*the {world} rank\(s\) started; choose sizes whose product"
    with pytest.raises(UsageError, match=message) as error:
        build_layout(ParallelConfig(**sizes), CPU)
    assert "\n" not in str(error.value)


def test_one_process_needs_no_group(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    layout = build_layout(ParallelConfig(), CPU)
    assert layout.mesh is None
    assert layout.is_main and layout.is_first_stage and layout.is_last_stage
    for axis in ("pp", "dp", "tp"):
        assert (layout.size(axis), layout.rank(axis), layout.group(axis)) == (1, 0, None)


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("gpu", "use auto, cpu, cuda or cuda:0"),
        ("cuda:x", "is unknown"),
        ("cpu:1", "is unknown"),
        ("cuda:99", "CUDA devices are visible; use cpu or auto"),
    ],
)
def test_devices(name, remedy):
    with pytest.raises(UsageError, match=f"train.device = {name}.*{remedy}"):
        pick_device(name)
    assert pick_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize(
    ("schedule", "pp", "layers", "found"),
    [
        ("1F1B", 5, 4, "parallel.pp = 5 cuts .*= 4 into 5 stages; use parallel.pp <= 4"),
        (
            "Interleaved1F1B",
            4,
            4,
            r"parallel.pp = 4 with two stages a rank \(Interleaved1F1B\) cuts .* into 8 stages; "
            "use parallel.pp <= 2",
        ),
        ("ZBVZeroBubble", 3, 5, "into 6 stages; use parallel.pp <= 2"),
    ],
)
def test_more_stages_than_layers(schedule, pp, layers, found):
    layout = imagine(pp=pp, schedule=schedule)
    with pytest.raises(UsageError, match=found) as error:
        check_slices(towers(vision=12, text=layers), layout)
    assert f"model.text.transformer.num_layers = {layers}" in str(error.value)
    check_slices(towers(vision=12, text=12), layout)


def towers(*, vision: int, text: int) -> Stage:
    config = tiny_config()
    parts = {"vision": (config.vision, vision), "text": (config.text, text)}
    with torch.device("meta"):
        changed: dict[str, Any] = {
            name: replace(tower, transformer=replace(tower.transformer, num_layers=layers))
            for name, (tower, layers) in parts.items()
        }
        return Clip(replace(config, **changed)).stage()


@pytest.mark.parametrize(
    ("schedule", "microbatches", "remedy"),
    [
        ("1F1B", 3, r"at least parallel.pp = 4 .*; use train.microbatches = 4, better 16"),
        ("Interleaved1F1B", 9, "a multiple of parallel.pp = 4 .*; use train.microbatches = 8"),
        ("InterleavedZeroBubble", 13, "use train.microbatches = 12"),
    ],
)
def test_microbatches_that_a_schedule_cannot_run(schedule, microbatches, remedy):
    layout = imagine(pp=4, schedule=schedule)
    message = rf"train.microbatches = {microbatches} must be {remedy}|{remedy}"
    with pytest.raises(UsageError, match=message):
        check_microbatches(layout, microbatches)
    for works in (4, 8, 16):
        check_microbatches(layout, works)
    check_microbatches(imagine(pp=4, schedule="GPipe"), 1)


@pytest.mark.parametrize(
    ("batch_size", "dp", "microbatches", "remedy"),
    [
        (16, 2, 3, "the 8 rows .* of train.batch_size = 16; use for example 1, 2, 4"),
        (6, 1, 12, "the 6 rows .*; use for example 2, 3, 6"),
        (7, 1, 2, "the 7 rows .*; use for example 1, 7"),
    ],
)
def test_rows_that_do_not_divide(batch_size, dp, microbatches, remedy):
    message = f"train.microbatches = {microbatches} must divide {remedy}"
    with pytest.raises(UsageError, match=message):
        build_schedule(
            [Clip(tiny_config()).stage()],
            imagine(dp_shard=dp),
            num_microbatches=microbatches,
            batch_size=batch_size,
        )


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"num_heads": 6}, "text.transformer.num_heads = 6; use one of [1, 2, 3, 6]"),
        (
            {"num_heads": 12, "num_kv_heads": 3},
            "text.transformer.num_kv_heads = 3 or be a multiple of it; use one of [1, 3, 6, 12]",
        ),
        ({"num_heads": 8, "ff_dim": 50}, "text.transformer.ff_dim = 50"),
    ],
)
def test_tensor_parallel_that_does_not_divide(fields, found):
    core = TransformerConfig(dim=48, num_layers=2, **fields)
    message = re.escape(f"parallel.tp = 4 must divide model.{found}")
    with pytest.raises(UsageError, match=message):
        check_tensor_parallel("model.text.transformer", core, 4)
    check_tensor_parallel("model.text.transformer", core, 1)


@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
def test_tensor_parallel_over_more_ranks_than_key_heads(num_kv_heads):
    core = TransformerConfig(dim=48, num_layers=2, num_heads=8, num_kv_heads=num_kv_heads)
    check_tensor_parallel("model.text.transformer", core, 4)


@pytest.mark.parametrize(
    ("schedule", "want"),
    [
        ("GPipe", [[0], [1], [2]]),
        ("1F1B", [[0], [1], [2]]),
        ("Interleaved1F1B", [[0, 3], [1, 4], [2, 5]]),
        ("LoopedBFS", [[0, 3], [1, 4], [2, 5]]),
        ("InterleavedZeroBubble", [[0, 3], [1, 4], [2, 5]]),
        ("ZBVZeroBubble", [[0, 5], [1, 4], [2, 3]]),
    ],
)
def test_stages_of_each_rank(schedule, want):
    for rank, indices in enumerate(want):
        layout = imagine(pp=3, schedule=schedule)
        object.__setattr__(layout, "rank", lambda axis, rank=rank: rank)
        assert stage_indices(layout) == indices
        assert layout.is_last_stage == (max(map(max, want)) in indices)


def test_a_layout_names_its_ranks() -> None:
    """The mesh's axes of more than one rank; a single process is its device alone."""
    fake = SimpleNamespace(mesh_dim_names=("pp", "dp_shard", "tp"), shape=(1, 4, 2), size=lambda: 8)
    alone = Layout(device=torch.device("cpu"), config=ParallelConfig())
    assert str(alone) == "cpu"
    assert str(replace(alone, mesh=cast(Any, fake))) == "8 cpu ranks (dp_shard 4, tp 2)"
