"""What batches cost by stage, and how many come a second from so many workers."""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmtrain.data.numbered import NumberedData
from mmtrain.data.order.plan import PADDING


@dataclass(frozen=True, kw_only=True)
class Rate:
    """What came out with so many workers."""

    workers: int
    """Processes; 0: this one."""
    samples_per_second: float
    """After the first batch, which waits for the workers to start."""
    batch_ms_p99: float
    """Milliseconds in which 99 % of the batches were made."""


def drop_cached(data: NumberedData[Any], batches: int) -> bool:
    """Let the system forget the files that the first batches are read from -> whether it could."""
    places = {
        data.sources[source].place(sample)
        for number in range(batches)
        for source, sample in _planned(data, number)
    }
    files = [Path(place) for place in places if Path(place).is_file()]
    if not files or not hasattr(os, "posix_fadvise"):
        return False
    for file in files:
        with file.open("rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return True


def _planned(data: NumberedData[Any], number: int) -> list[tuple[int, int]]:
    rows = data.plan.rows(number)
    both = zip(rows.source_B.tolist(), rows.sample_B.tolist(), strict=True)
    return [(source, sample) for source, sample in both if sample != PADDING]


def measure_stages(data: NumberedData[Any], batches: int) -> dict[str, float]:
    """Milliseconds a sample by stage, and of all, in this process."""
    data.work.figures()
    for _ in data.iterate(0, batches):
        pass
    figures, size = data.work.figures(), data.plan.batch_size
    stages = {name.partition("/")[2]: ms / size for name, ms in figures.items() if "/" in name}
    return stages | {"all": sum(stages.values())}


def measure(data: NumberedData[Any], batches: int) -> Rate:
    """How fast the data's workers are.

    Args:
        data: of a recipe, with its workers.
        batches: how many are taken; at least 2.
    """
    workers = data.config.workers
    made = data.iterate(0, batches)
    try:
        next(made)
        start, num = time.perf_counter(), 0
        for batch in made:
            num += batch.num_rows
        passed = time.perf_counter() - start
    finally:
        made.close()
    return Rate(
        workers=workers,
        samples_per_second=num / passed,
        batch_ms_p99=data.work.figures()["data_batch_ms_p99"],
    )
