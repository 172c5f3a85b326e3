"""Where the time of training steps went, read from a trace of torch.profiler.

On a GPU a part's time is that of the kernels launched in it, whichever thread launched them; on a
CPU it is the main thread's own. So the parts of a step add up to it, with what is between them.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmtrain.nn.regions import PREFIX, REGIONS

Event = Mapping[str, Any]
Span = tuple[float, float]

_DEVICE_WORK = ("kernel", "gpu_memcpy", "gpu_memset")
_LAUNCHES = ("cuda_runtime", "cuda_driver")
_MUCH = 0.2
"""From which share of a step on something beside computing is said to bound it."""


@dataclass(frozen=True, kw_only=True)
class StepTimes:
    """Milliseconds of a step, on average over the steps of a trace."""

    steps: int
    step: float
    """From the start of one to the start of the next, or to the end of the last one's work."""
    parts: dict[str, float]
    """By region, in order: of the device where there is one, else of the host. `elsewhere` is
    between them."""
    waiting: float
    """The host's, until batches were there."""
    communication: float
    """While collectives ran, beside other work or alone."""
    exposed: float
    """The part of it in which the device did nothing else; 0 on a CPU, where that is not seen."""
    idle: float | None
    """In which a device had nothing to do. None: there is none beside the host."""


def read_step_times(events: Iterable[Event]) -> StepTimes:
    """The times of a Chrome trace's events.

    Raises:
        ValueError: no step was traced.
    """
    spans = [event for event in events if event.get("ph") == "X"]
    named = [e for e in spans if e.get("cat") == "user_annotation" and _is_region(e)]
    steps = [event for event in named if event["name"] == f"{PREFIX}step"]
    if not steps:
        raise ValueError("the trace has no training step")
    thread = steps[0]["tid"]
    regions = _Regions([event for event in named if event["tid"] == thread])
    work = [event for event in spans if event.get("cat") in _DEVICE_WORK]
    begin = min(event["ts"] for event in steps)
    end = max(_end(event) for event in [*steps, *work])
    per_step = 1e-3 / len(steps)
    told = [_span(e) for e in spans if _communicates(e)]
    communication, exposed, idle = _length(told), 0.0, None
    own = regions.own_times()
    waiting = own.get("waiting for data", 0.0)
    if work:
        own = _device_times(regions, work, spans)
        rest = _length([_span(event) for event in work if not _communicates(event)])
        busy = _length([_span(event) for event in work])
        communication = _length([_span(event) for event in work if _communicates(event)])
        exposed, idle = busy - rest, (end - begin - busy) * per_step
    parts = {name: own[name] * per_step for name in (*REGIONS[1:], "elsewhere") if own.get(name)}
    return StepTimes(
        steps=len(steps),
        step=(end - begin) * per_step,
        parts=parts,
        waiting=waiting * per_step,
        communication=communication * per_step,
        exposed=exposed * per_step,
        idle=idle,
    )


def what_bounds(times: StepTimes) -> str:
    """One sentence: what to mend first."""
    shares = {
        "data": times.waiting / times.step,
        "communication": times.exposed / times.step,
        "host": 0.0 if times.idle is None else times.idle / times.step,
    }
    if shares["data"] >= _MUCH:
        return (
            f"The data bound it: {shares['data']:.0%} of a step the host waits for a batch; more "
            "data.workers, smaller images or shards prepared at the size that is trained on help."
        )
    if shares["communication"] >= _MUCH:
        return (
            f"Communication bounds it: {shares['communication']:.0%} of a step nothing else runs; "
            "a larger train.batch_size a rank, fewer parallel.tp or dp_shard ranks help."
        )
    if shares["host"] >= _MUCH:
        return (
            f"The host bounds it: the device is idle for {shares['host']:.0%} of a step though the "
            "data are there; train.compile or a larger batch a rank help."
        )
    longest = max(times.parts, key=lambda name: times.parts[name])
    return (
        f"Computing bounds it: {longest} takes {times.parts[longest] / times.step:.0%} of a step, "
        f"waiting for data {shares['data']:.0%}."
    )


class _Regions:
    """The regions of one thread, which lie in each other or apart."""

    def __init__(self, events: Sequence[Event]) -> None:
        self._events = sorted(events, key=lambda event: (event["ts"], -event["dur"]))
        self._starts = [event["ts"] for event in self._events]
        self._parent: list[int | None] = []
        for index, event in enumerate(self._events):
            above = index - 1 if index else None
            while above is not None and _end(self._events[above]) <= event["ts"]:
                above = self._parent[above]
            self._parent.append(above)

    def own_times(self) -> dict[str, float]:
        """Of each region without those in it; what a step has between them is `elsewhere`."""
        found: dict[str, float] = defaultdict(float)
        for event, above in zip(self._events, self._parent, strict=True):
            found[_name(event)] += event["dur"]
            if above is not None:
                found[_name(self._events[above])] -= event["dur"]
        found["elsewhere"] = found.pop("step", 0.0)
        return dict(found)

    def at(self, moment: float) -> str:
        """The innermost region at a moment."""
        index: int | None = bisect_right(self._starts, moment) - 1
        while index is not None and index >= 0:
            if moment < _end(self._events[index]):
                name = _name(self._events[index])
                return "elsewhere" if name == "step" else name
            index = self._parent[index]
        return "elsewhere"


def _device_times(
    regions: _Regions, work: Sequence[Event], spans: Sequence[Event]
) -> dict[str, float]:
    """Kernels' times by the region that was open when they were launched."""
    launched = {
        event["args"]["correlation"]: event["ts"]
        for event in spans
        if event.get("cat") in _LAUNCHES and "correlation" in event.get("args", {})
    }
    found: dict[str, float] = defaultdict(float)
    for event in work:
        if not _communicates(event):
            moment = launched.get(event.get("args", {}).get("correlation"), event["ts"])
            found[regions.at(moment)] += event["dur"]
    return dict(found)


def _communicates(event: Event) -> bool:
    """A collective's kernel, or gloo's work on a CPU."""
    name = event["name"].lower()
    return name.startswith("gloo:") or (event.get("cat") == "kernel" and "nccl" in name)


def _is_region(event: Event) -> bool:
    return event["name"].startswith(PREFIX)


def _name(event: Event) -> str:
    return event["name"].removeprefix(PREFIX)


def _end(event: Event) -> float:
    return event["ts"] + event["dur"]


def _span(event: Event) -> Span:
    return event["ts"], _end(event)


def _length(spans: Sequence[Span]) -> float:
    """Of what the spans cover, however they overlap."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total
