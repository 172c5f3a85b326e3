"""Layouts that nobody chose: drawn from a seed, each gives the single process's numbers.

A draw is a model, the axes' sizes, a schedule, microbatches, batch size, text lengths by step, and
what may be locked. What fails prints its seed; `draw(num_ranks, seed)` is it again.
"""

import dataclasses
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, get_args

import pytest
import torch.distributed as dist

from mmtrain.errors import UsageError
from mmtrain.parallel.mesh import DataParallelKind, Layout, ParallelConfig, ScheduleName
from mmtrain.parallel.pipeline import check_microbatches
from tests.parallel.test_layouts import EIGHT_RANKS
from tests.parallel.test_layouts import compare as compare_chosen
from tests.parallel.tiny_answers import (
    BCE,
    CE,
    DECODER,
    GPT,
    TrainedDecoder,
    TrainedVqa,
    both_heads,
    choosing,
    make_questions,
    writing,
)
from tests.parallel.tiny_clip import (
    CONTEXT,
    CPU,
    SIGMOID,
    SOFTMAX,
    Trained,
    make_batch,
    modern_config,
    siglip_config,
    tiny_config,
)
from tests.ranks import run_ranks

STEPS = 2
NUM_DRAWS = {2: 8, 3: 3, 4: 6, 6: 2, 8: 3}
CLIPS: dict[str, Callable[..., Any]] = {
    "openai": lambda layers: tiny_config(layers, patch_dropout=0.25),
    "modern": modern_config,
    "siglip": siglip_config,
}
ANSWERERS: dict[str, Callable[..., Any]] = {
    "both heads": both_heads,
    "choosing": choosing,
    "writing": writing,
}
DECODERS = {"decoder, tied": DECODER, "gpt": GPT}


@dataclass(frozen=True, kw_only=True)
class Draw:
    """One case."""

    seed: int
    model: str
    num_layers: int
    second_loss: bool
    layout: ParallelConfig
    num_microbatches: int
    batch_size: int
    longest: tuple[int, ...]
    """Tokens of a text at most, by step."""
    locked: bool
    """The vision tower does not train."""


def draw(num_ranks: int, seed: int) -> Draw:
    """The case of a seed."""
    choose = random.Random(f"{num_ranks} ranks, seed {seed}")
    sizes = dict.fromkeys(("pp", "dp_replicate", "dp_shard", "tp"), 1)
    for factor in _prime_factors(num_ranks):
        # Four heads have no third.
        axes = [axis for axis, size in sizes.items() if axis != "tp" or factor * size in (2, 4)]
        sizes[choose.choice(axes)] *= factor
    schedule = choose.choice(get_args(ScheduleName))
    layout = ParallelConfig(
        **sizes,
        schedule=schedule,
        sequence=choose.random() < 0.7,
        reshard_after_forward=choose.random() < 0.7,
    )
    num_stages = sizes["pp"] * (1 if schedule in ("GPipe", "1F1B") else 2)
    batch_size = choose.choice((24,) if num_ranks % 3 == 0 else (8, 16))
    rows = batch_size // (sizes["dp_replicate"] * sizes["dp_shard"])
    fits = [n for n in range(1, rows + 1) if rows % n == 0 and _runs(layout, n)]
    case = Draw(
        seed=seed,
        model=choose.choice((*CLIPS, *ANSWERERS, *DECODERS)),
        num_layers=choose.randint(max(2, num_stages), max(4, num_stages)),
        second_loss=choose.random() < 0.5,
        layout=layout,
        num_microbatches=choose.choice(fits),
        batch_size=batch_size,
        longest=tuple(choose.randint(3, CONTEXT) for _ in range(3)),
        locked=choose.random() < 0.2,
    )
    kind = choose.choice(get_args(DataParallelKind))
    if kind != "fsdp" and sizes["pp"] == sizes["tp"] == 1:
        return replace(case, layout=ParallelConfig(dp_kind=kind))
    return case


def _prime_factors(number: int) -> list[int]:
    factors = []
    for prime in (2, 3):
        while number % prime == 0:
            factors.append(prime)
            number //= prime
    return factors


def _runs(config: ParallelConfig, num_microbatches: int) -> bool:
    if config.pp == 1:
        return True
    layout = Layout(device=CPU, config=config)
    object.__setattr__(layout, "size", lambda axis: getattr(config, axis))
    try:
        check_microbatches(layout, num_microbatches)
    except UsageError:
        return False
    return True


def build(case: Draw, **layout: Any) -> Trained:
    """A training of the case's model on its batches."""
    layout["batch_size"] = case.batch_size
    # Pipelines fix their shapes, and SigLIP sees its padding.
    cuts = case.layout.pp == 1 and case.model != "siglip"
    widths = [longest if cuts else CONTEXT for longest in case.longest]

    def texts(step: int) -> Any:
        size = {"longest": case.longest[step], "width": widths[step]}
        return make_batch(case.batch_size, step=step, **size)

    def questions(step: int) -> Any:
        size = {"longest": case.longest[step], "width": widths[step]}
        return make_questions(
            case.batch_size, step=step, with_answers=case.model != "choosing", **size
        )

    if case.model in CLIPS:
        config = CLIPS[case.model](case.num_layers)
        loss = SIGMOID if case.second_loss else SOFTMAX
        trained = Trained(config, loss, lock=(0 if case.locked else None, None), **layout)
        trained.batch = texts
    elif case.model in ANSWERERS:
        loss = CE if case.second_loss else BCE
        lock = 0 if case.locked else None
        config = ANSWERERS[case.model](case.num_layers)
        trained = TrainedVqa(config, loss, lock_vision=lock, **layout)
        trained.batch = questions
    else:
        config = DECODERS[case.model]
        blocks, count = config.transformer, case.num_layers
        local = tuple(layer for layer in blocks.local_layers or () if layer < count)
        blocks = dataclasses.replace(blocks, num_layers=count, local_layers=local or None)
        trained = TrainedDecoder(dataclasses.replace(config, transformer=blocks), **layout)
        trained.batch = texts
    return trained


def compare(rank: int, cases: list[Draw]) -> None:
    """Every case, on all ranks; eight have the chosen ones too."""
    if dist.get_world_size() == 8:
        compare_chosen(rank, EIGHT_RANKS)
    for case in cases:
        try:
            want = build(case).train(num_steps=STEPS)
            laid = build(case, parallel=case.layout, num_microbatches=case.num_microbatches)
            laid.train(num_steps=STEPS).check(want, "as drawn")
        except Exception as error:
            raise AssertionError(f"rank {rank}, {case}: {error}") from error


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("num_ranks", NUM_DRAWS)
def test_any_layout_gives_the_single_process_result(num_ranks: int) -> None:
    run_ranks(compare, num_ranks, [draw(num_ranks, seed) for seed in range(NUM_DRAWS[num_ranks])])
