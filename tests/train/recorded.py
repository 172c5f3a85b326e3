"""Ranks of a real run that write down which samples each step took."""

import json
import os
import time
from pathlib import Path

from mmtrain.train.loop import Loop


def record(records: Path, pause: float) -> None:
    """From here on each step of this process is slower and leaves a line: step, world, keys."""
    take, rank = Loop._step, os.environ.get("RANK", "0")
    records.mkdir(exist_ok=True)

    def recorded(self: Loop, batch, clock, *, save_due: bool):
        with (records / f"{rank}.jsonl").open("a") as stream:
            stream.write(json.dumps([self.state.step, batch.keys]) + "\n")
        time.sleep(pause)
        return take(self, batch, clock, save_due=save_due)

    Loop._step = recorded  # pyright: ignore[reportAttributeAccessIssue]


def read_keys(records: Path) -> dict[int, list[str]]:
    """The samples of each step that all ranks of one job took: the global batch, in order."""
    ranks = [
        dict(json.loads(line) for line in path.read_text().splitlines())
        for path in sorted(records.glob("*.jsonl"))
    ]
    common = set.intersection(*(set(rank) for rank in ranks))
    return {step: [key for rank in ranks for key in rank[step]] for step in sorted(common)}
