"""What accumulation costs: passes that a step takes against two over everything.

A step with microbatches once ran every tower twice: for the features, then for their gradient. The
sigmoid needs its texts once and its images once; a tower of which nothing trains needs one pass.
Both forms take turns on the same model and batch; CPU time is the process's. The gradients of both
are compared. Run `python benchmarks/passes.py`.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest import mock

import torch
from machine import describe_machine
from torch import Tensor

from mmtrain.data.batch import ImageTextBatch
from mmtrain.models import Clip, ClipConfig, TextConfig, VisionConfig
from mmtrain.models.parameters import lock_tower
from mmtrain.nn import TransformerConfig
from mmtrain.parallel.mesh import Layout, ParallelConfig
from mmtrain.tasks.config import LossSection
from mmtrain.tasks.contrastive import contrastive_objective
from mmtrain.tasks.terms.contrastive import ContrastiveTerm
from mmtrain.train.step import build_schedule


def draw_batch(num_rows: int) -> ImageTextBatch:
    """Images of 64 pixels and texts of 16 tokens."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (num_rows, 3, 64, 64), generator=generator, dtype=torch.uint8)
    return ImageTextBatch(
        images_BCHW=images,
        tokens_BT=torch.randint(1, 900, (num_rows, 16), generator=generator),
        text_length_B=torch.full((num_rows,), 16),
        label_B=torch.full((num_rows,), -1),
        position_B=torch.arange(num_rows),
        valid_B=torch.ones(num_rows, dtype=torch.bool),
        epoch=0,
        keys=tuple(map(str, range(num_rows))),
    )


def build(
    kind: str, *, locked: bool, num_rows: int, num_microbatches: int
) -> tuple[Clip, Callable]:
    """A model and what computes the gradients of a step."""
    core = TransformerConfig(dim=256, num_layers=6, num_heads=4)
    config = ClipConfig(
        vision=VisionConfig(image_size=64, patch_size=8, transformer=core),
        text=TextConfig(vocab_size=1000, context_length=16, end_token_id=None, transformer=core),
        embed_dim=128,
        init_logit_bias=-10.0,
    )
    model = Clip(config).init_weights(0)
    if locked:
        lock_tower(model.vision)
    layout = Layout(device=torch.device("cpu"), config=ParallelConfig())
    objective = contrastive_objective(model, LossSection(kind=kind), layout=layout, seed=0)  # pyright: ignore[reportArgumentType]
    schedule = build_schedule(
        [model.stage()], layout, num_microbatches=num_microbatches, batch_size=num_rows
    )

    def step(batch: ImageTextBatch) -> None:
        objective.step(schedule, batch)

    step.schedule = schedule  # pyright: ignore[reportFunctionMemberAccess]
    return model, step


@contextmanager
def two_passes(step: Callable) -> Iterator[None]:
    """Within the context every tower runs twice."""
    never = mock.PropertyMock(return_value=False)
    with (
        mock.patch.object(ContrastiveTerm, "sums_over_images", never),
        mock.patch.object(step.schedule, "frozen_outputs", ()),  # pyright: ignore[reportFunctionMemberAccess]
    ):
        yield


def gradients(model: Clip) -> dict[str, Tensor]:
    """Taken away from the model."""
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def main() -> None:
    """Print a row a case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=64, help="of a batch")
    parser.add_argument("--microbatches", type=int, default=4)
    parser.add_argument("--turns", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{describe_machine()}; {arguments.rows} rows in {arguments.microbatches} parts\n")
    print("| loss | trains | two passes, s | ours, s | ratio | gradients differ by |")
    print("|---|---|---|---|---|---|")
    batch = draw_batch(arguments.rows)
    for kind, locked in (("siglip", False), ("siglip", True), ("clip", True), ("clip", False)):
        model, step = build(
            kind,
            locked=locked,
            num_rows=arguments.rows,
            num_microbatches=arguments.microbatches,
        )
        times: dict[str, list[float]] = {"two": [], "ours": []}
        last: dict[str, dict[str, Tensor]] = {}
        for _ in range(arguments.turns + 1):
            for name in times:
                start = time.process_time()
                if name == "two":
                    with two_passes(step):
                        step(batch)
                else:
                    step(batch)
                times[name].append(time.process_time() - start)
                last[name] = gradients(model)
        two, ours = (sorted(each[1:])[len(each) // 2 - 1] for each in times.values())
        # Against the largest: the bias of a key has a gradient of rounding alone.
        largest = max(x.norm().item() for x in last["two"].values())
        differ = max((last["ours"][n] - x).norm().item() for n, x in last["two"].items()) / largest
        trains = "text" if locked else "both towers"
        print(f"| {kind} | {trains} | {two:.2f} | {ours:.2f} | {two / ours:.2f} | {differ:.0e} |")


if __name__ == "__main__":
    main()
