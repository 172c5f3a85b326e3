"""What a training step and a block ask of a device: counted, so that no GPU is needed.

Host waits (an `.item()`, a blocking copy), operations, casts, bytes written and collectives of one
step between two log lines, for layouts, microbatches and tasks, on gloo ranks of this machine; of a
block forward and backward, ours beside open_clip's. The counts are exact: a test compares them with
the file that --out writes.

    python benchmarks/step_counts.py --out benchmarks/results/step_counts.json
"""

import argparse
import contextlib
import io
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing
from counting import Counts
from torch import Tensor

import mmtrain.nn.attention as attention
import mmtrain.nn.norm as norm
from mmtrain.build.run import Run, build_run
from mmtrain.build.utilisation import build_utilisation
from mmtrain.models import Clip
from mmtrain.models.named import named_model
from mmtrain.nn import Mask
from mmtrain.parallel.apply import parallelize
from mmtrain.parallel.mesh import Layout, ParallelConfig, build_layout, leave_ranks
from mmtrain.recipe import load_recipe
from mmtrain.train.guard import Guard
from mmtrain.train.loop import Loop
from mmtrain.train.watchdog import Watchdog

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
BLOCKS = ("ViT-B-16", "Modern-B-16")
KINDS = ("count", "colour", "shape", "exist")
"""Of questions, whatever the recipe asks: its length and answers are tuned, a step is not."""
ROWS, STEPS, COUNTED = 4, 5, 2
"""Rows of a block's batch; steps of a run, and the one that is counted, from 0: not the last of an
epoch, after which ranks tell each other what they met."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A run of which one step is counted."""

    words: str = ""
    """Laid over the recipe."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    ranks: int = 1
    task: str = "clip"
    """clip, choose or write."""


CASES = {
    "one": Case(words="--train.microbatches 1"),
    "one, 4 microbatches, 2 text groups": Case(
        words="--train.microbatches 4 --train.text_groups 2"
    ),
    "one, fp16": Case(words="--train.microbatches 1 --train.precision fp16"),
    "one, bf16-main": Case(words="--train.microbatches 1 --train.precision bf16-main"),
    "one, average, Muon": Case(words="--optim.ema_decay 0.9 --optim.kind muon"),
    "one, sigmoid, 4 microbatches": Case(words="--loss.kind siglip --train.microbatches 4"),
    "DDP": Case(words="--train.microbatches 1", parallel=ParallelConfig(dp_kind="ddp"), ranks=2),
    "DDP, 4 microbatches, 2 text groups": Case(
        words="--train.microbatches 4 --train.text_groups 2",
        parallel=ParallelConfig(dp_kind="ddp"),
        ranks=2,
    ),
    "DDP, 4 microbatches, bf16-main": Case(
        words="--train.microbatches 4 --train.precision bf16-main",
        parallel=ParallelConfig(dp_kind="ddp"),
        ranks=2,
    ),
    "ZeRO-1": Case(parallel=ParallelConfig(dp_kind="zero1"), ranks=2),
    "FSDP": Case(words="--train.microbatches 1", ranks=2),
    "FSDP, 4 microbatches, sigmoid": Case(
        words="--loss.kind siglip --train.microbatches 4", ranks=2
    ),
    "tp": Case(parallel=ParallelConfig(tp=2), ranks=2),
    "pp, 4 microbatches": Case(
        words="--train.microbatches 4", parallel=ParallelConfig(pp=2), ranks=2
    ),
    "choose": Case(task="choose", words="--train.microbatches 2"),
    "choose, DDP": Case(task="choose", parallel=ParallelConfig(dp_kind="ddp"), ranks=2),
    "write, FSDP": Case(task="write", words="--train.microbatches 2", ranks=2),
}


def count_step(case: Case, data: Path) -> Counts:
    """Of one step of a run, on this rank; between two log lines."""
    with tempfile.TemporaryDirectory() as folder:
        run = _build(case, data, Path(folder))
        counts = Counts()
        watchdog = Watchdog(Path(folder), seconds=None, rank=0, world_size=1)
        loop = Loop(
            config=run.recipe.train,
            optim=run.recipe.optim,
            state=run.state,
            data=_Data(run, counts),
            total_steps=STEPS,
            guard=Guard(Path(folder)),
            log=_Log() if run.layout.is_main else None,
            save=lambda: None,
            background=None,
            evaluate=lambda: None,
            roll_back=lambda step: None,
            figures=dict,
            watchdog=watchdog,
            utilisation=build_utilisation(run),
        )
        with gpu_kernels():
            assert loop.run()
    return counts


def _build(case: Case, data: Path, folder: Path) -> Run:
    recipe = "debug_clip" if case.task == "clip" else "vqa_shapes"
    words = ["--run.dir", str(folder), "--train.log_every", str(10 * STEPS), *case.words.split()]
    words += ["--train.device", "cpu", "--data.workers", "0"]
    if case.task == "clip":
        words += ["--data.train", str(ROOT / "mmtrain/demo/debug/train.tar")]
        words += ["--run.peak_tflops", "1"]  # as of a GPU: MFU, too, waits for nothing
    else:
        model = ROOT / "mmtrain/demo/vqa/sentencepiece.model"
        words += ["--data.train", f"{data}/train/*.tar", "--tokenizer.path", str(model)]
        words += ["--eval.vqa", "[]", "--train.epochs", "none", "--train.steps", str(STEPS)]
        words += ["--vqa.data.per_image", str(len(KINDS))]
        words += ["--train.batch_size", "8", "--model.vision.image_size", "48"]
        words += ["--model.vision.transformer.num_layers", "3"]
    if case.task == "write":
        words += ["--vqa.loss.classify", "bce", "--vqa.classify", "none"]
        words += ["--vqa.generate.transformer.dim", "64"]
        words += ["--vqa.generate.transformer.num_layers", "2"]
        words += ["--vqa.generate.transformer.num_heads", "4"]
        words += ["--vqa.generate.transformer.mask", "causal"]
    loaded = load_recipe(ROOT / f"configs/{recipe}.toml", words)
    loaded = replace(loaded, parallel=case.parallel)
    return build_run(loaded, build_layout(loaded.parallel, CPU))


class _Data:
    """The run's data; the step of one batch is counted."""

    def __init__(self, run: Run, counts: Counts) -> None:
        self._run, self._counts = run, counts

    def __getattr__(self, name: str) -> Any:
        return getattr(self._run.data, name)

    def iterate(self, start: int, end: int) -> Iterator[Any]:
        """As the data's own."""
        for step, batch in enumerate(self._run.data.iterate(start, end)):
            values = (getattr(batch, one.name) for one in fields(batch))
            self._counts.give_host(x for x in values if isinstance(x, Tensor))
            if step == COUNTED:
                self._counts.restart()
            # The step before, too: what it leaves for this one is the host's or the device's.
            counted = step in (COUNTED - 1, COUNTED)
            with self._counts if counted else contextlib.nullcontext():
                yield batch


class _Log:
    def log(self, record: Any) -> None:
        """Nothing."""

    def say(self, text: str) -> None:
        """Nothing."""


def count_block(
    block: Callable[[Tensor], Tensor], precision: str, *, tokens: int, dim: int
) -> Counts:
    """Of one forward and backward, as a block within a tower has it."""
    counts = Counts()
    stored = torch.bfloat16 if precision in ("bf16-main", "bf16-pure") else torch.float32
    x_BTD = torch.randn(ROWS, tokens, dim, dtype=stored, requires_grad=True)
    gradient_BTD = torch.randn(ROWS, tokens, dim, dtype=stored)
    with counts:
        block(x_BTD).backward(gradient_BTD)
    return counts


@contextlib.contextmanager
def gpu_kernels() -> Iterator[None]:
    """Within the context attention and RMSNorm are one operation each, as on a GPU; on a CPU their
    form is the processor's own affair, and counts would be each machine's."""
    before = attention.PLAIN_UP_TO, norm.NO_KERNEL_ON
    attention.PLAIN_UP_TO, norm.NO_KERNEL_ON = {}, frozenset()
    try:
        yield
    finally:
        attention.PLAIN_UP_TO, norm.NO_KERNEL_ON = before


def blocks(precision: str) -> dict[str, Counts]:
    """Of a block by its model; open_clip's where it is and has that format."""
    with gpu_kernels():
        found = {name: _our_block(name, precision) for name in BLOCKS}
    if precision == "bf16-main":
        return found
    with contextlib.suppress(ImportError):
        found["open_clip's ViT-B-16"] = _their_block(precision)
    return found


def _our_block(name: str, precision: str) -> Counts:
    config = named_model(name)
    layout = Layout(device=CPU, config=ParallelConfig())
    (stage,) = parallelize(Clip(config).init_weights(0), layout, precision=precision)
    tower = stage.vision
    tokens, dim = config.vision.num_tokens, config.vision.transformer.dim
    rope = tower.rope_table((config.vision.grid_size,) * 2, None, CPU)
    if rope is not None and precision != "fp32":  # as the tower does, once for all blocks
        rope = tuple(part.bfloat16() for part in rope)
    block = tower.transformer.blocks["0"]

    def run(x_BTD: Tensor) -> Tensor:
        with _autocast(precision):
            return block(x_BTD, mask=Mask(), rope=rope)

    return count_block(run, precision, tokens=tokens, dim=dim)


def _their_block(precision: str) -> Counts:
    import open_clip  # an incumbent; not everywhere

    format = "pure_bf16" if precision == "bf16-pure" else "fp32"
    model = open_clip.create_model("ViT-B-16", precision=format)
    block = model.visual.transformer.resblocks[0].train()

    def run(x_BTD: Tensor) -> Tensor:
        with _autocast(precision):
            return block(x_BTD)

    return count_block(run, precision, tokens=197, dim=768)


def _autocast(precision: str) -> contextlib.AbstractContextManager[object]:
    return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")


def told(counts: Counts) -> dict[str, Any]:
    """Counts as plain JSON; waits by place."""
    found = {
        "operations": counts.operations.total(),
        "casts": counts.casts,
        "bytes_written": counts.bytes_written.total(),
    }
    for name in ("waits", "collectives", "sent"):
        if each := getattr(counts, name):
            found[name] = dict(sorted(each.items()))
    return found


def steps_of(names: list[str]) -> dict[str, Any]:
    """Of a step of each case: of the first rank."""
    with tempfile.TemporaryDirectory() as folder:
        draw_shapes(Path(folder))
        found = {
            name: told(count_step(CASES[name], Path(folder)))
            for name in names
            if CASES[name].ranks == 1
        }
        many = [name for name in names if CASES[name].ranks > 1]
        if many:
            torch.multiprocessing.spawn(_on_rank, args=(folder, many), nprocs=2)
            found |= json.loads((Path(folder) / "counts.json").read_text())
    return {name: found[name] for name in names}


def _on_rank(rank: int, folder: str, names: list[str]) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    found = {name: told(count_step(CASES[name], Path(folder))) for name in names}
    if rank == 0:
        (Path(folder) / "counts.json").write_text(json.dumps(found))
    leave_ranks()


def draw_shapes(folder: Path) -> None:
    """Pictures with questions about them, as FOLDER/train/*.tar."""
    sys.path.insert(0, str(ROOT))
    from tools.make_shapes_vqa import main as draw

    with contextlib.redirect_stdout(io.StringIO()):
        words = ["--out", str(folder), "--train", "64", "--val", "1", "--test", "1"]
        draw([*words, "--kinds", *KINDS])


def all_counts(names: list[str]) -> dict[str, Any]:
    """What is kept: of the blocks, and of a step of these cases."""
    return {
        "torch": torch.__version__,
        "blocks": {
            precision: {name: told(counts) for name, counts in blocks(precision).items()}
            for precision in ("fp32", "bf16", "bf16-main", "bf16-pure")
        },
        "steps": steps_of(names),
    }


def main() -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(prog="step_counts", description=__doc__)
    parser.add_argument("--cases", nargs="+", choices=tuple(CASES), default=list(CASES))
    parser.add_argument("--out", type=Path, metavar="FILE", help="keep the counts there (.json)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    text = json.dumps(all_counts(arguments.cases), indent=2)
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
