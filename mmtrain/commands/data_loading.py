"""`mmtrain data show` and `bench`: which samples a run sees, and what bounds its loader."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from mmtrain.build.data import open_data, read_recipe
from mmtrain.commands.outputs import refuse_out
from mmtrain.data.bench import Rate, drop_cached, measure, measure_stages
from mmtrain.data.numbered import NumberedData
from mmtrain.data.origin import origins
from mmtrain.data.survey.seen import Seen
from mmtrain.errors import UsageError
from mmtrain.files import replace_file
from mmtrain.report.data_pages import write_sheet
from mmtrain.train.config import total_steps


def data_show_command(
    *, recipe: Path, overrides: list[str], step: int, out: Path | None, world_size: int
) -> None:
    """`mmtrain data show`: the samples of one step.

    Raises:
        UsageError: the run has no such step, or its data cannot be read.
    """
    if out is not None:
        refuse_out(out, "--out", ".html")
    read = read_recipe(recipe, overrides)
    data = open_data(read, begun=recipe.is_dir())
    steps = total_steps(read.train, data)
    data.check_length(steps, key=read.train.length)
    if step > steps:
        raise UsageError(f"--step {step}: the run has {steps:,} steps; name one of them")
    sized = data.phases.sizes.parts[data.phases.number(step - 1)]
    if sized.batch_size % world_size:
        raise UsageError(f"--world-size {world_size} must divide {sized}")
    batch = data.batch(step - 1)
    rows = _rows(data, batch, step - 1, world_size=world_size)
    print(f"# step {step:,} of {steps:,}, epoch {batch.epoch}, {len(rows)} samples")
    print("\t".join(rows[0]))
    for row in rows:
        print("\t".join(" ".join(str(cell).split()) for cell in row.values()))
    for bad in batch.bad:
        print(f"# replaced, position {bad.position}: {bad}: {bad.reason}")
    if out is not None:
        seen = [_seen(row, image) for row, image in zip(rows, _images(batch), strict=True)]
        title = f"Step {step:,} of {recipe}"
        subtitle = f"epoch {batch.epoch}, {len(rows)} samples as the model is given them"
        write_sheet(out, seen, title=title, subtitle=subtitle)
        print(f"# wrote {out}")


def _rows(
    data: NumberedData[Any], batch: Any, number: int, *, world_size: int
) -> list[dict[str, Any]]:
    """What is told of each row that is no padding."""
    per_rank = batch.num_rows // world_size
    texts = batch.row_texts(data.tokenizer.decode)
    rows = []
    for row, found in enumerate(origins(data, number, batch.keys)):
        if found is None:
            continue
        source, sample = found
        name = data.config.sources[source].name
        rows.append(
            {"row": row}
            | ({"rank": row // per_rank} if world_size > 1 else {})
            | {"position": int(batch.position_B[row])}
            | ({"source": name} if name else {})
            | {"key": batch.keys[row], "shard": data.sources[source].place(sample)}
            | {"text": texts[row]}
        )
    return rows


def _images(batch: Any) -> list[np.ndarray]:
    return [
        image.permute(1, 2, 0).numpy()
        for image, valid in zip(batch.row_images(), batch.valid_B.tolist(), strict=True)
        if valid
    ]


def _seen(row: dict[str, Any], image_HWC: np.ndarray) -> Seen:
    told = {name: row[name] for name in row if name not in ("key", "shard", "text")}
    return Seen(
        number=row["row"],
        key=row["key"],
        place=row["shard"],
        captions=(row["text"],),
        fields=told,
        pixels_HWC=np.ascontiguousarray(image_HWC),
    )


def data_bench_command(
    *,
    recipe: Path,
    overrides: list[str],
    workers: tuple[int, ...],
    batches: int,
    rate: float | None,
    json_out: Path | None,
) -> None:
    """`mmtrain data bench`: what a recipe's batches cost, and how many workers they want.

    Raises:
        UsageError: the data cannot be read, or are too few.
    """
    if json_out is not None:
        refuse_out(json_out, "--json", ".json")
    read = read_recipe(recipe, overrides)
    data = open_data(read, begun=recipe.is_dir(), workers=0)
    if data.batches_per_epoch < batches:
        raise UsageError(
            f"--batches {batches}: an epoch has {data.batches_per_epoch}; ask for fewer"
        )
    if data.phases.number(batches - 1) > 0:
        raise UsageError(
            f"--batches {batches}: train.phase[0] has {data.phases.firsts[1]}, and the figures are "
            "of one phase; ask for no more"
        )
    is_dropped = drop_cached(data, batches)
    size = data.plan.batch_size
    cold = measure_stages(data, batches)
    warm = measure_stages(data, batches)
    first = "files dropped from memory before" if is_dropped else "as the system had the files"
    print(f"ms a sample, in one process, {batches} batches of {size:,}; cold: {first}")
    print(f"{'':10}{'cold':>9}{'warm':>9}")
    for name in cold:
        print(f"{name:10}{cold[name]:9.3f}{warm[name]:9.3f}")
    rates = [
        measure(open_data(read, begun=recipe.is_dir(), workers=each), batches) for each in workers
    ]
    print(f"{'workers':10}{'samples/s':>12}{'batch p99, ms':>16}")
    for one in rates:
        print(f"{one.workers:<10}{one.samples_per_second:12,.0f}{one.batch_ms_p99:16,.1f}")
    needed = None if rate is None else _needed(rate, warm["all"], rates)
    if json_out is not None:
        content = {"cold_ms": cold, "warm_ms": warm, "rates": [vars(one) for one in rates]}
        content |= {"rate": rate, "workers_needed": needed}
        replace_file(json_out, json.dumps(content, indent=1) + "\n")
        print(f"wrote {json_out}")


def _needed(rate: float, ms: float, rates: list[Rate]) -> int:
    """Say how many workers a rate takes -> their number, by the best that one was seen to do."""
    each = max([1e3 / ms, *(r.samples_per_second / max(1, r.workers) for r in rates)])
    needed = -(-rate // each)
    cores = os.cpu_count() or 1
    told = "" if needed <= cores else f"; this machine has {cores} cores"
    print(f"{rate:,.0f} samples/s take {needed:,.0f} workers of {each:,.0f} samples/s each{told}")
    return int(needed)
