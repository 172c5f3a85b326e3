"""The work of many batches, summed up for a line of a log and for the end of a run."""

import math
from collections import Counter as Counts

from mmtrain.data.work import STAGES, Stage, Work, resident_bytes

_MB = 1e6
_FINENESS = 0.02
"""Relative width of the steps that batches' times are counted in, so that a long run's quantiles
take no room."""


class WorkSums:
    """Sums over the batches of this rank."""

    def __init__(self) -> None:
        self._all, self._since = _Sums(), _Sums()

    def add(self, work: Work, *, num_ready: int) -> None:
        """A batch is handed on.

        Args:
            work: what it took.
            num_ready: batches that were ready when it was asked for.
        """
        self._all.add(work, num_ready)
        self._since.add(work, num_ready)

    def figures(self) -> dict[str, float]:
        """Of the batches since the last call, as metrics.jsonl has them.

        `data_bytes_read`; of remote data `data_bytes_fetched`, and of a cache `data_cache_hits` and
        `_misses`; milliseconds that a batch took, `data_batch_ms_p50` and `_p99`, of which
        `data_ms/read` and alike are the stages, on average; `data_ready`, batches that were ready
        when one was asked for; `memory_mb` of this process, `data_memory_mb` of the largest that
        makes batches.
        """
        sums, self._since = self._since, _Sums()
        return sums.figures()

    def table(self, *, waited: float, passed: float) -> list[str]:
        """Of all batches, for people; no line where there was none.

        Args:
            waited: seconds until batches were there.
            passed: seconds in all.
        """
        of = self._all.figures()
        if not of:
            return []
        stages = [(name.partition("/")[2], ms) for name, ms in of.items() if "/" in name]
        made = sum(ms for _, ms in stages)
        rows = [
            ("waiting for data", f"{waited:,.1f} s, {waited / passed:.1%} of the time"),
            ("read", f"{of['data_bytes_read'] / _MB:,.1f} MB of {self._all.num:,} batches"),
            *_fetched(of),
            (
                "a batch was made in",
                f"{of['data_batch_ms_p50']:,.1f} ms (median), {of['data_batch_ms_p99']:,.1f} ms "
                "(99th percentile)",
            ),
            ("of which", ", ".join(f"{name} {ms / made:.0%}" for name, ms in stages)),
            ("batches ready", f"{of['data_ready']:.1f} on average"),
            (
                "memory",
                f"{of['memory_mb']:,.0f} MB, the largest maker of batches "
                f"{of['data_memory_mb']:,.0f} MB",
            ),
        ]
        if "data_unjoined" in of:
            rows.append(("without a row", f"{of['data_unjoined']:,} reads, see data.join"))
        if "data_shortened" in of:
            told = f"{of['data_shortened']:,} dialogues lost their oldest turns"
            rows.append(("too long", f"{told}, see vqa.dialogues.max_length"))
        return [f"{name:20} {told}" for name, told in rows]


def _fetched(of: dict[str, float]) -> list[tuple[str, str]]:
    if "data_bytes_fetched" not in of:
        return []
    line = f"{of['data_bytes_fetched'] / _MB:,.1f} MB"
    if hits := of.get("data_cache_hits", 0) + of.get("data_cache_misses", 0):
        line += f"; the cache had {of['data_cache_hits'] / hits:.1%} of {hits:,} pieces"
    return [("fetched", line)]


class _Sums:
    def __init__(self) -> None:
        self.num = self._ready = self._bytes = self._memory = self._unjoined = 0
        self._shortened = 0
        self._fetched = self._hits = self._misses = 0
        self._stages: dict[Stage, float] = dict.fromkeys(STAGES, 0.0)
        self._seconds = 0.0
        self._times: Counts[int] = Counts()

    def add(self, work: Work, num_ready: int) -> None:
        self.num += 1
        self._ready += num_ready
        self._bytes += work.bytes_read
        self._unjoined += work.num_unjoined
        self._shortened += work.num_shortened
        self._fetched += work.bytes_fetched
        self._hits += work.cache_hits
        self._misses += work.cache_misses
        self._seconds += work.seconds
        self._memory = max(self._memory, work.memory)
        self._times[round(math.log(max(work.seconds, 1e-6)) / _FINENESS)] += 1
        for stage, seconds in work.stages.items():
            self._stages[stage] += seconds

    def figures(self) -> dict[str, float]:
        if not self.num:
            return {}
        per_batch = 1e3 / self.num
        rest = max(0.0, self._seconds - sum(self._stages.values()))
        return {
            "data_bytes_read": self._bytes,
            **self._from_afar(),
            "data_batch_ms_p50": self._quantile(0.5),
            "data_batch_ms_p99": self._quantile(0.99),
            **{f"data_ms/{stage}": one * per_batch for stage, one in self._stages.items()},
            "data_ms/rest": rest * per_batch,
            **({"data_unjoined": self._unjoined} if self._unjoined else {}),
            **({"data_shortened": self._shortened} if self._shortened else {}),
            "data_ready": self._ready / self.num,
            "memory_mb": resident_bytes() / _MB,
            "data_memory_mb": self._memory / _MB,
        }

    def _from_afar(self) -> dict[str, float]:
        """Nothing where all data are local."""
        if not (self._fetched or self._hits):
            return {}
        found: dict[str, float] = {"data_bytes_fetched": self._fetched}
        if self._hits or self._misses:
            found |= {"data_cache_hits": self._hits, "data_cache_misses": self._misses}
        return found

    def _quantile(self, share: float) -> float:
        left, place = share * self.num, 0
        for place in sorted(self._times):
            left -= self._times[place]
            if left <= 0:
                break
        return 1e3 * math.exp(place * _FINENESS)
