"""mmtrain plan: against the memory of real steps on one and on two ranks; the bubble against its
formula; mistakes in a line."""

import dataclasses
import weakref
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed._functional_collectives import AsyncCollectiveTensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from mmtrain.build.tasks import build_workload
from mmtrain.build.workload import read_workload
from mmtrain.cli import main
from mmtrain.data.questions.batches import VqaBatch, VqaDataConfig
from mmtrain.errors import UsageError
from mmtrain.loading.config import ModelConfig
from mmtrain.models.parameters import LockConfig
from mmtrain.nn.products import fast_products
from mmtrain.optim.config import OptimConfig
from mmtrain.parallel.mesh import Layout, ParallelConfig
from mmtrain.parallel.precision import Precision
from mmtrain.parallel.recompute import RecomputeConfig
from mmtrain.peft import PeftConfig
from mmtrain.plan.kept import stage_memory
from mmtrain.plan.layout import Plan, plan_layout
from mmtrain.plan.order import idle_fraction, pipeline_order
from mmtrain.plan.stages import attention_of, cut_stages, run_stages
from mmtrain.recipe import TrainRecipe, load_recipe
from mmtrain.tasks.config import GenerateSection, LossSection, VqaSection
from mmtrain.tasks.terms.distill import DistillConfig
from mmtrain.tasks.terms.matryoshka import MatryoshkaConfig
from tests.parallel.tiny_answers import BCE, QUESTION, SLOTS, TrainedVqa, both_heads
from tests.parallel.tiny_clip import (
    CPU,
    SIGMOID,
    SOFTMAX,
    Trained,
    make_batch,
    modern_config,
    take_rows,
    tiny_config,
)
from tests.ranks import run_ranks
from tests.tasks.test_terms import write_teacher

ROOT = Path(__file__).parents[2]
Case = tuple[Any, ParallelConfig, int]
"""A model, its layout, microbatches."""
FULL = RecomputeConfig(kind="full")
LAYOUTS: list[Case] = [
    (tiny_config(), ParallelConfig(), 1),
    (modern_config(), ParallelConfig(tp=2), 2),
    (tiny_config(), ParallelConfig(pp=2), 4),
]
MORE_LAYOUTS: list[Case] = [
    (tiny_config(), ParallelConfig(reshard_after_forward=False), 2),
    (tiny_config(), ParallelConfig(dp_replicate=2), 1),
    (tiny_config(), ParallelConfig(dp_kind="ddp"), 2),
    (tiny_config(), ParallelConfig(dp_kind="zero1"), 1),
    (tiny_config(), ParallelConfig(tp=2), 1),
    (tiny_config(), ParallelConfig(tp=2, sequence=False), 1),
    (tiny_config(), ParallelConfig(tp=2, recompute=FULL), 1),
    (tiny_config(), ParallelConfig(tp=2, recompute=RecomputeConfig(kind="selective")), 1),
    (tiny_config(), ParallelConfig(pp=2, schedule="GPipe"), 4),
    (tiny_config(), ParallelConfig(pp=2, recompute=FULL), 4),
    (tiny_config(4), ParallelConfig(pp=2, schedule="Interleaved1F1B"), 8),
    (tiny_config(4), ParallelConfig(pp=2, schedule="LoopedBFS"), 4),
    (tiny_config(4), ParallelConfig(pp=2, schedule="InterleavedZeroBubble"), 8),
    (tiny_config(4), ParallelConfig(pp=2, schedule="ZBVZeroBubble"), 4),
    (both_heads(), ParallelConfig(), 1),
    (both_heads(), ParallelConfig(tp=2), 2),
    (both_heads(), ParallelConfig(pp=2), 4),
]


def recipe_of(config: Any, parallel: ParallelConfig, microbatches: int) -> TrainRecipe:
    """A recipe of a small model, 8 rows; a CLIP in fp32, one that answers in fp64."""
    recipe = load_recipe(ROOT / "configs/debug_clip.toml")
    clip, vqa = config if isinstance(config, tuple) else (config, None)
    fields = {} if vqa is None else shallow(vqa)
    if generate := fields.get("generate"):
        fields["generate"] = GenerateSection(**shallow(generate))
    train = dataclasses.replace(
        recipe.train,
        batch_size=8,
        microbatches=microbatches,
        precision="fp32" if vqa is None else "fp64",
        device="cpu",
    )
    return dataclasses.replace(
        recipe,
        model=ModelConfig(**shallow(clip)),
        vqa=vqa and VqaSection(**fields, data=VqaDataConfig(per_image=SLOTS)),
        parallel=parallel,
        train=train,
        optim=dataclasses.replace(recipe.optim, kind="adamw", ema_decay=None),
    )


def shallow(config: Any) -> dict[str, Any]:
    """A config's fields as they are."""
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}


def local(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor."""
    tensor = tensor._local_tensor if isinstance(tensor, DTensor) else tensor
    return tensor.trigger_wait() if isinstance(tensor, AsyncCollectiveTensor) else tensor


def size(tensors: Any) -> int:
    """Bytes on this rank."""
    return sum(local(t).numel() * local(t).element_size() for t in tensors)


class Meter(TorchDispatchMode):
    """The most bytes at a time of storages that come to be within it, `known` ones apart.

    Where `resized`, storages are emptied and filled again, as FSDP does, and all are looked at each
    time; else what comes and goes is counted, which for 768 rows in 48 parts is eight times faster.
    """

    def __init__(self, known: list[Tensor], *, resized: bool) -> None:
        super().__init__()
        self.known = {tensor.untyped_storage()._cdata for tensor in known}
        self.seen: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self.resized, self.now, self.peak = resized, 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # its local operations come by
        out = func(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            # A pipeline's first trial may be without memory.
            if type(tensor) in (Tensor, nn.Parameter) and tensor.device == CPU:
                self._follow(tensor.untyped_storage())
        return out

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key, num_bytes = storage._cdata, storage.nbytes()
        old = self.seen.get(key)
        if key in self.known or (old is not None and old() is not None):
            return

        def leave(_: Any) -> None:
            self.now -= num_bytes

        self.seen[key] = weakref.ref(storage, leave)
        self.now += num_bytes
        now = self.now
        if self.resized:
            now = sum(each.nbytes() for one in self.seen.values() if (each := one()) is not None)
        self.peak = max(self.peak, now)


def train(config: Any, parallel: ParallelConfig, microbatches: int, *, ranks: int) -> Any:
    """The laid-out model of a case."""
    options: dict[str, Any] = {"num_microbatches": microbatches}
    if isinstance(config, tuple):
        return TrainedVqa(config, BCE, parallel=parallel, **options)
    layout = Layout(device=CPU, config=parallel) if ranks == 1 else None
    return Trained(config, SOFTMAX, parallel=parallel, layout=layout, precision="fp32", **options)


@fast_products(torch.device("cpu"))
def peak_of_a_step(trained: Any) -> int:
    """Bytes beside weights; of the second step, with the batch; computed as a run does it."""
    layout, peak = trained.layout, 0
    for step in range(2):
        given = take_rows(trained.batch(step), layout.rank("dp"), layout.size("dp"))
        for parameter in trained.parameters().values():
            parameter.grad = None
        known = [local(p.detach()) for p in trained.parameters().values()]
        with Meter(known, resized=torch.distributed.is_initialized()) as meter:
            fields = {
                name: value.clone()
                for name, value in shallow(given).items()
                if isinstance(value, Tensor) and (name != "images_BCHW" or layout.is_first_stage)
            }
            if isinstance(given, VqaBatch):  # as long as they may be
                fields["question_length_Q"].fill_(QUESTION)
                fields["length_Q"].fill_(given.tokens_QT.size(1))
            trained.objective.step(trained.schedule, dataclasses.replace(given, **fields))
        peak = meter.peak
    return peak


def _measure(rank: int, cases: list[Case], plans: list[Plan]) -> None:
    for (config, parallel, microbatches), planned in zip(cases, plans, strict=True):
        trained = train(config, parallel, microbatches, ranks=2)
        peak = peak_of_a_step(trained)
        parameters = trained.stage_parameters()
        moments = trained.optimizers.state_dict()
        states = [t for n in parameters for key, t in moments.get(n, {}).items() if key != "step"]
        want = planned.memory[rank if parallel.pp == 2 else 0]
        name = f"{parallel}, {microbatches}: "
        # The last of two ranks may have a shorter share: of an odd number of rows, of the words.
        uneven = planned.layout.dp_shard > 1 or (parallel.tp > 1 and isinstance(config, tuple))
        near = 0.1 if rank == 1 and uneven else 0.0
        assert size(parameters.values()) == pytest.approx(want.weights, rel=near), name
        gradients = size(p.grad for p in parameters.values())
        item = 8 if isinstance(config, tuple) else 4
        alone = microbatches == 1 or planned.layout.size("dp") == 1
        alone = alone or parallel.dp_kind != "fsdp"  # replicas sum where the gradients are
        # A CLIP's scale and bias of the logits are in no stage.
        tower = planned.num_parameters - (0 if item == 8 else 2)
        whole = 0 if alone else item * tower
        assert gradients == pytest.approx(want.gradients - whole, rel=near), name
        if parallel.dp_kind == "zero1":  # whole tensors do not make even shares
            near = 0.1
        assert size(states) == pytest.approx(want.optimizer, rel=near), name
        assert peak == pytest.approx(want.step + want.gathered, rel=0.1), name
        total = size(parameters.values()) + size(states) + peak
        assert total == pytest.approx(want.total, rel=0.1), name


def check_on_two_ranks(cases: list[Case]) -> None:
    """Plan here, train there, compare."""
    plans = [plan_layout(build_workload(recipe_of(*case)), world_size=2) for case in cases]
    run_ranks(_measure, 2, cases, plans)


@pytest.mark.slow
def test_memory_of_real_ranks() -> None:
    """Two ranks hold what the plan says: weights, gradients and moments to the byte, and at the
    fullest moment of a step within a tenth, on each."""
    check_on_two_ranks(LAYOUTS)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_memory_of_real_ranks_in_more_layouts() -> None:
    """The same with the other schedules, with recompute, and for models that answer."""
    check_on_two_ranks(MORE_LAYOUTS)


@pytest.mark.parametrize(
    "recompute",
    [
        RecomputeConfig(),
        FULL,
        RecomputeConfig(kind="full", every=2),
        RecomputeConfig(kind="selective"),
        pytest.param(
            RecomputeConfig(kind="selective", keep=("attention",)), marks=pytest.mark.slow
        ),
        pytest.param(RecomputeConfig(kind="selective", keep=("matmul",)), marks=pytest.mark.slow),
    ],
)
def test_recompute_is_counted(recompute: RecomputeConfig) -> None:
    """On one process, within a hundredth."""
    case = tiny_config(), ParallelConfig(recompute=recompute), 1
    want = plan_layout(build_workload(recipe_of(*case)), world_size=1).memory[0]
    assert peak_of_a_step(train(*case, ranks=1)) == pytest.approx(want.step, rel=0.01)


ROWS = 768
CAPTIONS = ("a red car", "two dogs", "the sun", "x y") * (ROWS // 4)
SLICES = LossSection(terms=(MatryoshkaConfig(dims=tuple(range(1, 16))),))
AFFINITY = LossSection(terms=(DistillConfig(teacher="T"),))
BF16 = LossSection(terms=(DistillConfig(teacher="T", precision="bf16"),))
FEATURES = LossSection(terms=(DistillConfig(teacher="T", target="features"),))
TERMS: dict[str, tuple[LossSection, int, tuple[int | None, int | None]]] = {
    "softmax": (SOFTMAX, 48, (None, None)),
    "sigmoid": (SIGMOID, 48, (None, None)),
    "sigmoid in one": (SIGMOID, 1, (None, None)),
    "sigmoid of frozen texts": (SIGMOID, 48, (None, 0)),
    "sigmoid of frozen images": (SIGMOID, 48, (0, None)),
    "slices": (SLICES, 48, (None, None)),
    "affinity": (AFFINITY, 48, (None, None)),
    "affinity in one": (AFFINITY, 1, (None, None)),
    "teacher in bf16": (BF16, 48, (None, None)),
    "features": (FEATURES, 48, (None, None)),
}


class ManyTexts(Trained):
    """A training of batches of 768 rows with captions."""

    def batch(self, step: int) -> Any:
        batch = make_batch(ROWS, step=step)
        batch.text_length_B.fill_(batch.tokens_BT.size(1))
        return dataclasses.replace(batch, texts=CAPTIONS)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_teacher(tmp_path_factory.mktemp("plan") / "teacher", embed_dim=16)


OFTEN = ("sigmoid of frozen texts",)


@pytest.mark.parametrize(
    "name",
    [one if one in OFTEN else pytest.param(one, marks=pytest.mark.slow) for one in TERMS],
)
def test_terms_and_passes_are_counted(name: str, teacher: Path) -> None:
    """A batch whose loss is as large as its towers: on one process, within a tenth."""
    loss, microbatches, lock = TERMS[name]
    terms: Any = tuple(
        dataclasses.replace(one, teacher=str(teacher)) if one.kind == "distill" else one
        for one in loss.terms
    )
    loss = dataclasses.replace(loss, terms=terms)
    recipe = recipe_of(tiny_config(), ParallelConfig(), microbatches)
    recipe = dataclasses.replace(
        recipe,
        loss=loss,
        lock=LockConfig(vision=lock[0], text=lock[1]),
        train=dataclasses.replace(recipe.train, batch_size=ROWS),
    )
    planned = plan_layout(build_workload(recipe), world_size=1)
    assert planned.passes == (2 if loss.kind == "clip" and microbatches > 1 else 1)
    options: Any = {"num_microbatches": microbatches, "lock": lock, "batch_size": ROWS}
    trained = ManyTexts(tiny_config(), loss, precision="fp32", **options)
    teachers = [t.teacher._model for t in trained.objective.terms if hasattr(t, "teacher")]
    held = sum(size(model.state_dict().values()) for model in teachers)
    assert planned.memory[0].teachers == held and bool(held) == ("distill" in str(loss))
    peak = peak_of_a_step(trained)
    assert planned.memory[0].step == pytest.approx(peak, rel=0.1)


def most_waiting(order: Any) -> int:
    """Forwards of a rank whose backward is still to come, at most."""
    return max(accumulate({"F": 1, "B": -1}.get(action.work, 0) for action in order))


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("schedule", ["GPipe", "1F1B"])
def test_bubble_has_its_formula(schedule: Any, passes: int) -> None:
    """(pp - 1) / (m + pp - 1), Narayanan et al. 2021; and how many microbatches wait."""
    order = pipeline_order(schedule, size=4, num_microbatches=12)
    assert idle_fraction(order, passes=passes) == pytest.approx(3 / 15)
    waiting = [most_waiting(order[rank]) for rank in range(4)]
    assert waiting == ([12] * 4 if schedule == "GPipe" else [4, 3, 2, 1])


def test_interleaving_and_zero_bubble_idle_less() -> None:
    """Half the bubble with two stages a rank; less still where weights' gradients fill it."""
    idle = {
        name: idle_fraction(pipeline_order(name, size=4, num_microbatches=12), passes=2)
        for name in (
            "1F1B",
            "Interleaved1F1B",
            "LoopedBFS",
            "InterleavedZeroBubble",
            "ZBVZeroBubble",
        )
    }
    assert idle["Interleaved1F1B"] == pytest.approx(1.5 / 13.5)
    assert idle["InterleavedZeroBubble"] < idle["Interleaved1F1B"] < idle["1F1B"]
    assert idle["ZBVZeroBubble"] < idle["1F1B"]
    # Without a pass of forwards, whose bubble nothing fills, there is next to none.
    order = pipeline_order("ZBVZeroBubble", size=4, num_microbatches=12)
    assert idle_fraction(order, passes=1) < idle["ZBVZeroBubble"] / 2


def test_prints_a_plan(capsys: pytest.CaptureFixture[str]) -> None:
    """Groups, idle time and a line a pipeline coordinate; nothing is started."""
    words = ["--world-size", "8", "--parallel.pp", "2", "--parallel.tp", "2"]
    assert main(["plan", "configs/debug_clip.toml", *words, "--train.microbatches", "4"]) == 0
    said = capsys.readouterr().out
    assert "8 ranks = pp 2 x dp_replicate 1 x dp_shard 2 x tp 2" in said
    assert "pipeline: 1F1B, idle 20.0%" in said
    lines = [line.split() for line in said.splitlines()]
    assert ["tp", "2", "0,", "1"] in [line[:4] for line in lines]
    assert ["dp_shard", "2", "0,", "2"] in [line[:4] for line in lines]
    assert ["pp", "2", "0,", "4"] in [line[:4] for line in lines]
    assert not torch.distributed.is_initialized()


def test_prints_terms_and_passes(teacher: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A teacher's weights have a column; a sigmoid with microbatches is one pass, unless terms or
    a pipeline want two; a teacher that is not there is one line."""
    words = ["plan", "configs/debug_clip.toml", "--world-size", "2", "--train.microbatches", "4"]
    sigmoid, terms = ["--loss.kind", "siglip"], f'[{{kind = "distill", teacher = "{teacher}"}}]'
    for more, passes, column in (
        (sigmoid, "1 pass over", False),
        ([*sigmoid, "--loss.terms", terms], "2 passes over", True),
        ([*sigmoid, "--parallel.pp", "2"], "2 passes over", False),
    ):
        assert main([*words, *more]) == 0
        said = capsys.readouterr().out
        assert passes in said and ("teachers" in said) == column, more
    assert main([*words, "--loss.terms", terms.replace(str(teacher), "/nowhere")]) == 2
    assert "loss.terms: teacher = /nowhere does not exist" in capsys.readouterr().err


@pytest.mark.parametrize("recipe", ["vqa_easy", "vqa_easy_generate"])
def test_plans_models_that_answer(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Over all axes at once; the classifier's answers are given, so that no question is read."""
    words = ["--world-size", "8", "--parallel.pp", "2", "--parallel.tp", "2"]
    words += ["--train.microbatches", "4"]
    words += ["--vqa.classify.num_answers", "13"] if recipe == "vqa_easy" else []
    assert main(["plan", f"configs/{recipe}.toml", *words]) == 0
    said = capsys.readouterr().out
    assert "8 ranks = pp 2 x dp_replicate 1 x dp_shard 2 x tp 2" in said
    assert "4 microbatches x 4 rows; 1 pass over the batch" in said


@pytest.mark.parametrize(
    "peft",
    [
        PeftConfig(kind="lora", rank=4),
        PeftConfig(kind="lora", dora=True, also_train=("vision.head*", "text.embed.token*")),
    ],
    ids=["lora", "dora"],
)
def test_counts_an_adapter(peft: PeftConfig) -> None:
    """What trains has gradients and moments, and a real stage takes what the planned one does."""
    recipe = recipe_of(tiny_config(), ParallelConfig(), 1)
    whole = plan_layout(build_workload(recipe), world_size=1).memory[0]
    workload = build_workload(dataclasses.replace(recipe, peft=peft))
    planned = plan_layout(workload, world_size=1)
    (memory,), layout = planned.memory, planned.layout
    (stage,) = cut_stages(workload.build_model(), layout)
    trained = sum(p.numel() for p in stage.parameters() if p.requires_grad)
    terms = sum(p.numel() for name, p in stage.named_parameters() if ".lora_" in name)
    assert memory.weights == 4 * sum(p.numel() for p in stage.parameters())
    assert memory.weights == whole.weights + 4 * terms and trained >= terms > 0
    assert (memory.gradients, memory.optimizer) == (4 * trained, 8 * trained)
    muon = dataclasses.replace(recipe, peft=peft, optim=OptimConfig(kind="muon"))  # not for terms
    assert plan_layout(build_workload(muon), world_size=1).memory[0].optimizer == 8 * trained
    assert memory.step < whole.step
    (run,) = run_stages(workload, layout, rows=2)
    images = torch.zeros(2, 3, workload.clip.vision.image_size, workload.clip.vision.image_size)
    x = images.to(torch.uint8)
    rows, weights = workload.rows(2), list(stage.parameters())
    with attention_of(workload.train.device):
        found, _ = stage_memory(lambda: stage(x, **rows), weights=weights, inputs=(x,))
    assert found == run.memory


def test_counts_learned_vectors_of_texts() -> None:
    """They take places of the context, so a text has so many ids less."""
    config = tiny_config()
    text = dataclasses.replace(config.text, num_context=3)
    recipe = recipe_of(dataclasses.replace(config, text=text), ParallelConfig(), 1)
    recipe = dataclasses.replace(recipe, peft=PeftConfig(kind="context"))
    workload = build_workload(recipe)
    memory = plan_layout(workload, world_size=1).memory[0]
    assert memory.gradients == 4 * 3 * text.transformer.dim
    assert workload.num_ids == text.context_length - 3


@pytest.mark.parametrize(
    ("words", "dropout", "told"),
    [
        (("--parallel.tp", "2"), None, r"no adapter in layers cut by parallel.tp = 2"),
        ((), 0.1, r"no peft.dropout \(0.1\)"),
    ],
)
def test_an_adapter_that_is_not_counted_is_one_line(
    words: tuple[str, ...], dropout: float | None, told: str
) -> None:
    recipe = load_recipe(ROOT / "configs/debug_clip.toml", [*words])
    adapted = dataclasses.replace(recipe, peft=PeftConfig(kind="lora", dropout=dropout))
    with pytest.raises(UsageError, match=told):
        read_workload(adapted)


@pytest.mark.parametrize(
    ("parallel", "microbatches", "said"),
    [
        (ParallelConfig(tp=3), 1, "does not make up --world-size 8"),
        (ParallelConfig(tp=8), 1, "parallel.tp = 8 must divide model.vision.transformer.num_heads"),
        (ParallelConfig(pp=4), 4, "cuts model.vision.transformer.num_layers = 2 into 4 stages"),
        (ParallelConfig(), 2, "train.batch_size = 8 must be a multiple of the 8 data-parallel"),
    ],
)
def test_refuses_what_does_not_fit(parallel: ParallelConfig, microbatches: int, said: str) -> None:
    """In a line, before anything is counted."""
    with pytest.raises(UsageError, match=said):
        plan_layout(build_workload(recipe_of(tiny_config(), parallel, microbatches)), world_size=8)


def at_precision(precision: Precision, parallel: ParallelConfig) -> Plan:
    """Of a small model, over two ranks."""
    recipe = recipe_of(tiny_config(), parallel, 1)
    train = dataclasses.replace(recipe.train, precision=precision)
    return plan_layout(build_workload(dataclasses.replace(recipe, train=train)), world_size=2)


def test_refuses_a_number_format_that_the_layout_has_not() -> None:
    """As the run would."""
    with pytest.raises(UsageError, match=r'"bf16-fsdp" needs weights that FSDP gathers'):
        at_precision("bf16-fsdp", ParallelConfig(dp_kind="ddp"))
    with pytest.raises(UsageError, match=r'"float8" does not go with parallel\.tp = 2'):
        at_precision("float8", ParallelConfig(tp=2))


def test_the_total_of_an_offloading_layout_is_the_gpus() -> None:
    """Weights, moments and a shard's gradients are in main memory."""
    recipe = recipe_of(tiny_config(), ParallelConfig(), 1)
    offloads = dataclasses.replace(recipe, parallel=ParallelConfig(cpu_offload=True))
    kept, spared = (
        plan_layout(build_workload(one), world_size=2).memory[0] for one in (recipe, offloads)
    )
    moved = kept.weights + kept.optimizer
    assert kept.total - spared.total >= moved > 0
    assert kept.total - spared.total <= moved + kept.gradients
    assert spared.total >= spared.gathered + spared.activations
    assert (spared.weights, spared.optimizer) == (kept.weights, kept.optimizer)


def test_bf16_main_keeps_what_bf16_weights_keep_and_the_copies() -> None:
    """But where FSDP gathers in bf16, which is bf16-fsdp."""
    sharded = ParallelConfig(dp_shard=2)
    assert at_precision("bf16-main", sharded) == at_precision("bf16-fsdp", sharded)
    whole = ParallelConfig(dp_kind="ddp")
    main, pure = (at_precision(each, whole).memory[0] for each in ("bf16-main", "bf16-pure"))
    assert (main.weights, main.gradients) == (2 * pure.weights, 2 * pure.gradients)
    assert main.optimizer == 2 * pure.optimizer
    held = main.activations - pure.activations
    assert pure.weights <= held <= 1.2 * pure.weights


def test_float8_keeps_what_bf16_keeps() -> None:
    """Its products save their inputs in bf16."""
    assert (
        at_precision("float8", ParallelConfig()).memory
        == at_precision("bf16", ParallelConfig()).memory
    )
