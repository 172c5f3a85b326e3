"""Recompute changes no number and keeps less: counted in bytes and in operations run again."""

import dataclasses
import functools
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch._C._distributed_c10d import _get_work_registry_size
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from mmtrain.errors import UsageError
from mmtrain.models import Clip
from mmtrain.nn import attention
from mmtrain.parallel.apply import parallelize
from mmtrain.parallel.mesh import Layout, ParallelConfig
from mmtrain.parallel.recompute import RecomputeConfig, apply_recompute
from mmtrain.settings.decode import decode
from tests.parallel.tiny_clip import CPU, SOFTMAX, Result, Trained, make_batch, tiny_config
from tests.ranks import run_ranks

NONE = RecomputeConfig()
FULL = RecomputeConfig(kind="full")
BOTH = RecomputeConfig(kind="selective")
MATMUL = RecomputeConfig(kind="selective", keep=("matmul",))
ATTENTION = RecomputeConfig(kind="selective", keep=("attention",))
EVERY_2 = RecomputeConfig(kind="full", every=2)
ALL = {
    "full": FULL,
    "attention and matmul": BOTH,
    "matmul": MATMUL,
    "attention": ATTENTION,
    "every 2nd": EVERY_2,
}
ENDS = (("none", NONE), ("full", FULL))
CONFIG = tiny_config(4, patch_dropout=0.25)


@functools.cache
def reference() -> Result:
    """Everything kept, in one pass."""
    return Trained(CONFIG, SOFTMAX).train(num_steps=3)


def trained(recompute: RecomputeConfig, **options: Any) -> Trained:
    """A single process that recomputes."""
    layout = Layout(device=CPU, config=ParallelConfig(recompute=recompute))
    return Trained(CONFIG, SOFTMAX, layout=layout, **options)


@pytest.mark.parametrize(("name", "microbatches"), [*zip(ALL, (1, 2, 1, 2, 2), strict=True)])
def test_the_numbers_stay(name: str, microbatches: int) -> None:
    """Gradients, norm and weights after three steps, patch dropout and stochastic depth on."""
    result = trained(ALL[name], num_microbatches=microbatches).train(num_steps=3)
    result.check(reference(), name)


class Storages(TorchDispatchMode):
    """Sees every tensor that is made, but views of a module's parameters, and every operation."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.known = {p.untyped_storage()._cdata for p in module.parameters()}
        self.made: dict[int, tuple[StorageWeakRef, int]] = {}
        self.ran: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.ran[func.overloadpacket.__name__] += 1
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                reference = StorageWeakRef(storage)
                if reference.cdata not in self.known:
                    self.made[reference.cdata] = (reference, storage.nbytes())
        return out

    def held(self) -> int:
        """Bytes of those that are still there."""
        return sum(size for reference, size in self.made.values() if not reference.expired())


def forward_and_backward(
    recompute: RecomputeConfig, *, num_layers: int = 4
) -> tuple[int, Counter[str]]:
    """Bytes kept between the two, and the operations of both together."""
    stage = Clip(tiny_config(num_layers, patch_dropout=0.25)).init_weights(0).stage()
    apply_recompute(stage, recompute)
    batch = make_batch()
    rows = {"tokens_BT": batch.tokens_BT, "length_B": batch.text_length_B}
    kept_BP = torch.arange(12).expand(8, -1)
    fused = mock.patch.object(attention, "PLAIN_UP_TO", {})  # the same form on every processor
    with fused, Storages(stage) as storages:
        features = stage(batch.images_BCHW, kept_BP=kept_BP, **rows)
        held = storages.held()
        features.sum().backward()
    return held, storages.ran


@functools.cache
def measured() -> dict[str, tuple[int, Counter[str]]]:
    return {name: forward_and_backward(config) for name, config in {"none": NONE, **ALL}.items()}


def test_less_is_kept_between_forward_and_backward() -> None:
    """What the names promise, in bytes of live tensors."""
    held = {name: bytes_ for name, (bytes_, _) in measured().items()}
    assert held["full"] < held["attention"] < held["attention and matmul"] < held["none"]
    assert held["full"] < held["matmul"] < held["attention and matmul"]
    # Half of the blocks keep everything.
    assert held["every 2nd"] == (held["none"] + held["full"]) / 2
    # Of two more blocks in each tower, their inputs: 8 rows of 13 or 11 tokens, 32 fp32 features.
    inputs = 2 * 8 * (13 + 11) * 32 * 4
    two_less = {kind: forward_and_backward(config, num_layers=2)[0] for kind, config in ENDS}
    assert held["full"] - two_less["full"] == inputs
    assert held["none"] - two_less["none"] > 15 * inputs


def test_only_what_is_not_kept_runs_again() -> None:
    """Attention and matmuls, counted; 8 blocks, each with one attention and six matmuls."""
    fused = "_scaled_dot_product_flash_attention_for_cpu"
    ran = {name: operations for name, (_, operations) in measured().items()}
    again = {name: one[fused] - ran["none"][fused] for name, one in ran.items()}
    assert ran["none"][fused] == 8
    assert again == {
        "none": 0, "full": 8, "attention and matmul": 0, "matmul": 8, "attention": 0,
        "every 2nd": 4,
    }  # fmt: skip
    again = {name: one["addmm"] - ran["none"]["addmm"] for name, one in ran.items()}
    # The last matmul's result is needed by no backward: recompute stops before it.
    assert again == {
        "none": 0, "full": 40, "attention and matmul": 0, "matmul": 0, "attention": 40,
        "every 2nd": 20,
    }  # fmt: skip


def test_the_first_of_two_passes_is_not_slowed() -> None:
    """Without gradients nothing is kept, so nothing is managed."""
    stage = Clip(CONFIG).init_weights(0).stage()
    apply_recompute(stage, BOTH)
    block = stage.vision.transformer.blocks["0"]
    with torch.no_grad(), mock.patch("mmtrain.parallel.recompute.checkpoint") as called:
        block(torch.randn(2, 5, 32), mask=stage.vision.transformer.build_mask(5, device=CPU))
    assert not called.called


@contextmanager
def counted_compile() -> Iterator[list[Any]]:
    """torch.compile without a compiler behind it; the graphs that it was asked for."""
    from torch._dynamo.backends.debugging import aot_eager

    graphs: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Callable[..., Any]:
        graphs.append(graph)
        return aot_eager(graph, inputs)

    torch._dynamo.reset()
    with mock.patch.object(torch, "compile", functools.partial(torch.compile, backend=backend)):
        yield graphs
    torch._dynamo.reset()


# Dynamo looks at the gradients of what it compiles, and hides the warning in a way of its own.
looks_at_gradients = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")


@looks_at_gradients
@pytest.mark.parametrize("name", [None, pytest.param("full", marks=pytest.mark.slow), "matmul"])
def test_compiled_blocks_give_the_same(name: str | None) -> None:
    """In either order, and one compilation serves all blocks of a tower."""
    with counted_compile() as graphs:
        one = trained(NONE if name is None else ALL[name], compile=True)
        one.train(num_steps=3).check(reference(), f"compiled, {name}")
    # Vision and text differ in shape and mask; the text's length differs from step to step.
    assert 2 <= len(graphs) <= 4


@pytest.mark.slow
@looks_at_gradients
def test_a_selection_is_kept_in_compiled_code() -> None:
    """Compiled code hides operations from a selection around it: it has to go inside."""
    held = {}
    for name, config in {"none": NONE, "full": FULL, "both": BOTH, "attention": ATTENTION}.items():
        sizes: list[int] = []

        def keep(tensor: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(tensor.nbytes)
            return tensor

        with counted_compile():
            model = Clip(CONFIG).init_weights(0)
            layout = Layout(device=CPU, config=ParallelConfig(recompute=config))
            (stage,) = parallelize(model, layout, compile=True)
            batch = make_batch()
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
                stage(batch.images_BCHW, tokens_BT=batch.tokens_BT, length_B=batch.text_length_B)
        held[name] = sum(sizes)
    assert held["full"] < held["attention"] < held["both"] < held["none"]


@pytest.mark.parametrize(
    ("section", "complaint"),
    [
        ({"kind": "full", "every": 0}, "every = 0 must be at least 1"),
        ({"kind": "selective", "keep": []}, 'keep = [] keeps nothing; use kind = "full"'),
        ({"kind": "full", "keep": ["matmul"]}, "keep = ['matmul'] has no effect"),
        ({"every": 2}, "every = 2 has no effect"),
    ],
)
def test_what_would_have_no_effect_is_refused(section: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UsageError) as error:
        decode(ParallelConfig, {"recompute": section})
    assert complaint in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("schedule", ["InterleavedZeroBubble", "ZBVZeroBubble"])
def test_a_backward_in_two_parts_takes_no_selection(schedule: str) -> None:
    """torch would raise in the first step; full recompute works."""
    decode(ParallelConfig, {"schedule": schedule, "recompute": {"kind": "full"}})
    complaint = f'schedule = "{schedule}" takes no recompute.kind = "selective"; use "full"'
    with pytest.raises(UsageError) as error:
        decode(ParallelConfig, {"schedule": schedule, "recompute": {"kind": "selective"}})
    assert complaint in str(error.value) and "\n" not in str(error.value)


def test_names_of_parameters_stay() -> None:
    """Checkpoints do not depend on it."""
    want = set(dict(Clip(CONFIG).stage().named_parameters()))
    for config in ALL.values():
        stage = Clip(CONFIG).stage()
        apply_recompute(stage, dataclasses.replace(config))
        assert set(dict(stage.named_parameters())) == want


def compile_at_tensor_parallel(rank: int) -> None:
    """Compiled blocks under tensor parallelism, with each kind of recompute."""
    warnings.filterwarnings("ignore", "The .grad attribute of a Tensor")
    small = tiny_config(2, patch_dropout=0.25)
    wanted = Trained(small, SOFTMAX).train(num_steps=2)
    for config in (NONE, FULL, MATMUL):
        parallel = ParallelConfig(tp=2, recompute=config)
        with counted_compile():
            one = Trained(small, SOFTMAX, parallel=parallel, num_microbatches=2, compile=True)
            one.train(num_steps=2).check(wanted, f"compiled, {parallel}")
        assert _get_work_registry_size() == 0, parallel
    with pytest.raises(UsageError, match=r"needs parallel\.sequence = true"):
        Trained(CONFIG, SOFTMAX, parallel=ParallelConfig(tp=2, sequence=False), compile=True)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_compiled_recompute_under_tensor_parallelism() -> None:
    """The order of compile, recompute and tensor parallelism is the one that is right."""
    run_ranks(compile_at_tensor_parallel, 2)
