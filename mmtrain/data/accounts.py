"""Where all samples of an epoch are: delivered + bad + dropped = indexed, or the run ends."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from mmtrain.data.batch import BadSample, Taken
from mmtrain.data.order.batches import RowPlan, Rows
from mmtrain.data.order.plan import PADDING
from mmtrain.errors import FaultsFound

Key = tuple[int, int]
"""A source and one of its epochs."""
Sums = Counter[str]
"""Of `Taken`, by field."""
_WRAP = 1 << 64


def taken_by(rows: Rows, bad: Iterable[BadSample]) -> tuple[Taken, ...]:
    """What the rows of a batch take of the epochs of their sources, as they were read.

    Args:
        rows: of one rank.
        bad: samples that could not be used.
    """
    refused = [one.position for one in bad if not one.is_replacement]
    bad_B = np.isin(rows.position_B, refused)
    found = []
    pairs = zip(rows.source_B.tolist(), rows.source_epoch_B.tolist(), strict=True)
    for source, epoch in sorted(set(pairs)):
        own = (rows.source_B == source) & (rows.source_epoch_B == epoch)
        own &= rows.position_B != PADDING
        sample_B = rows.sample_B[own]
        if not sample_B.size:
            continue
        num_bad = int(bad_B[own].sum())
        found.append(Taken(source, epoch, sample_B.size - num_bad, num_bad, *_moments(sample_B)))
    return tuple(found)


class EpochAccounts:
    """Adds up what was taken, and settles each epoch when it is over.

    Beside the numbers it compares the sums of the samples and of their squares: a sample that came
    twice in the place of another is told as well.

    Args:
        names: of the sources; "" of data without a mixture.
        sizes: samples that each source has.
        rank: this data-parallel coordinate: ranks of the same one took the same.
        gather: every rank's value, on every rank.
    """

    def __init__(
        self,
        names: Sequence[str],
        sizes: Sequence[int],
        *,
        rank: int = 0,
        gather: Callable[[Any], list[Any]] = lambda value: [value],
    ) -> None:
        self._names, self._sizes = names, sizes
        self._rank, self._gather = rank, gather
        self._open: dict[Key, Sums] = {}
        self._next = [0] * len(names)
        """The first epoch of each source that is not over."""
        self._settled = [Counter[str]() for _ in names]
        self._is_known, self._batches = True, 0

    def begin(self, plan: RowPlan, batches: int) -> None:
        """Begin behind so many batches that another program took: the epochs before are not ours.
        Where that is amid an epoch, none is settled."""
        self._batches, self._next = batches, list(plan.epochs_done(batches))
        before = plan.epochs_done(max(0, batches - 1))
        self._is_known = batches == 0 or all(x > y for x, y in zip(self._next, before, strict=True))

    def record(self, taken: Iterable[Taken]) -> None:
        """Take up a batch of this rank."""
        for one in taken if self._is_known else ():
            sums = self._open.setdefault((one.source, one.epoch), Counter())
            sums.update(one.sums)

    def settle(self, plan: RowPlan, batches: int) -> None:
        """Settle the epochs that are over after so many batches. Collective where there are any.

        Raises:
            FaultsFound: on every rank, one does not add up.
        """
        self._batches = batches
        done = plan.epochs_done(batches) if self._is_known else []
        over = [(s, e) for s, end in enumerate(done) for e in range(self._next[s], end)]
        if not over:
            return
        taken = self._of_all_ranks(over)
        for source, epoch in over:
            self._settle_one(source, epoch, taken[source, epoch], plan.left_out(source, epoch))
            self._open.pop((source, epoch), None)
            self._next[source] = epoch + 1

    def _of_all_ranks(self, keys: Iterable[Key]) -> dict[Key, Sums]:
        own = {key: dict(self._open.get(key, {})) for key in keys}
        by_rank: dict[int, dict[Key, dict[str, int]]] = dict(self._gather((self._rank, own)))
        total: dict[Key, Sums] = {}
        for part in by_rank.values():
            for key, sums in part.items():
                total.setdefault(key, Counter()).update(sums)
        return total

    def _settle_one(self, source: int, epoch: int, sums: Sums, dropped: np.ndarray) -> None:
        size = self._sizes[source]
        found = {"delivered": sums["delivered"], "bad": sums["bad"], "dropped": dropped.size}
        # As many, and the same: of 0 to size - 1.
        wanted = (size * (size - 1) // 2, (size - 1) * size * (2 * size - 1) // 6)
        given = zip((sums["total"], sums["squares"]), _moments(dropped), strict=True)
        same = all((x + y - z) % _WRAP == 0 for (x, y), z in zip(given, wanted, strict=True))
        if sum(found.values()) == size and same:
            self._settled[source].update(epochs=1, indexed=size, **found)
            return
        name = f"data.mixture[{self._names[source]}]" if self._names[source] else "data.train"
        told = " + ".join(f"{num:,} {word}" for word, num in found.items())
        why = (
            "some came twice, and others not at all"
            if sum(found.values()) == size
            else "they do not add up"
        )
        raise FaultsFound(
            f"{name}: of {size:,} samples indexed, epoch {epoch} had {told}: {why}; this is a "
            "fault of mmtrain, and checkpoints of earlier steps are sound"
        )

    def figures(self) -> dict[str, dict[str, dict[str, int]]]:
        """Of the epochs that are over, by source; empty before the first is."""
        found = {
            name or "data": dict(sums)
            for name, sums in zip(self._names, self._settled, strict=True)
            if sums
        }
        return {"epoch_accounts": found} if found else {}

    def state_dict(self) -> dict[str, Any] | None:
        """All ranks' sums as plain JSON; None where the run began before there were any.
        Collective."""
        if not self._is_known:
            return None
        keys = {key for _, part in self._gather((self._rank, [*self._open])) for key in part}
        taken = self._of_all_ranks(sorted(keys))
        return {
            "batches": self._batches,
            "open": [[*key, dict(sums)] for key, sums in taken.items()],
            "next": self._next,
            "settled": [dict(sums) for sums in self._settled],
        }

    def load_state_dict(self, state: Mapping[str, Any] | None, *, batches: int) -> None:
        """Go on from a checkpoint; no epoch is settled where that has none, as older ones, or those
        of another number of batches, as one whose step was written by hand."""
        self._is_known = state is not None and state["batches"] == batches
        if state is None or not self._is_known:
            return
        self._batches = batches
        self._next = list(state["next"])
        self._settled = [Counter(sums) for sums in state["settled"]]
        if self._rank == 0:
            self._open = {(s, e): Counter(sums) for s, e, sums in state["open"]}


def _moments(sample_N: np.ndarray) -> tuple[int, int]:
    """Sum, and sum of squares, of samples; modulo 2 ** 64."""
    numbers = sample_N.astype(np.uint64)
    return int(numbers.sum()), int((numbers * numbers).sum())
