"""What the page of running runs shows, made anew when it is asked for, and not too often."""

import hashlib
import json
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mmtrain.report.chart import color_class
from mmtrain.report.compare import comparison, distinct_names
from mmtrain.report.curves import Drawing, draw_curves, draw_scores, draw_sources
from mmtrain.report.facts import facts_of, run_length, seen_before
from mmtrain.report.live_run import LiveRun
from mmtrain.report.page import NUM_BAD_SHOWN, accounts, by_kind, faults, tiles
from mmtrain.report.render import render
from mmtrain.report.run_folder import RunFolder
from mmtrain.report.run_state import RunState, state_of

_LEAST_PAUSE = 1.0
_SHARE = 0.1
"""Of a core's time that reading and drawing may take while a page is open. A look at 400 lines
takes 17 ms, one at 100,000 a second."""

_KINDS = {
    "zero_shot": "Zero-shot classification",
    "probes": "Classifiers on frozen features",
    "retrieval": "Retrieval",
    "questions": "Questions about images",
}
"""Tables of scores of several runs, with their headings."""

Section = dict[str, Any]
"""id, title, css, and parts: (id, HTML)."""


class Watched:
    """Runs under somebody's eyes.

    Args:
        paths: their folders, which may not be there yet.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._runs = [LiveRun(path) for path in paths]
        self._names = distinct_names(paths)
        self._lock = threading.Lock()
        self._newest: dict[str, Any] = {}
        self._next = 0.0

    def newest(self, seen: str) -> dict[str, Any]:
        """How the runs stand and, unless `seen` is the version that they have, what is shown."""
        # One at a time: pages that are open at once share a look.
        with self._lock:
            if (begun := time.monotonic()) >= self._next:
                spent = -time.thread_time()
                self._newest = self._look()
                spent += time.thread_time()
                self._next = begun + max(_LEAST_PAUSE, spent / _SHARE)
            told = self._newest
        return {**told, "sections": None} if told["version"] == seen else told

    def _look(self) -> dict[str, Any]:
        read = [run.read() for run in self._runs]
        states = [state_of(run.path, one) for run, one in zip(self._runs, read, strict=True)]
        sections = [one for one in self._sections(read) if one["parts"]]
        version = hashlib.sha256(json.dumps(sections).encode()).hexdigest()[:16]
        rows = zip(self._names, states, read, _colors(read), strict=True)
        return {
            "version": version,
            "title": self._names[0] if len(self._names) == 1 else f"{len(self._names)} runs",
            "runs": [_told(*row) for row in rows],
            "sections": sections,
        }

    def _sections(self, read: Sequence[RunFolder | None]) -> Iterator[Section]:
        there = [
            (name, run) for name, run in zip(self._names, read, strict=True) if run is not None
        ]
        runs, names = [run for _, run in there], [name for name, _ in there]
        of = {name: f"{name}: " if len(read) > 1 else "" for name, _ in there}
        notes = [
            f"{of[name]}{note}" for name, run in there for note in (*seen_before(run), *run.notes)
        ]
        yield _section("notes", "", _table("notes", notes=notes) if notes else "")
        if len(self._names) == 1:
            yield from _of_one(runs[0]) if runs else ()
        elif runs:
            yield from _of_several(runs, names)


def _of_one(run: RunFolder) -> Iterator[Section]:
    yield _section("tiles", "", _table("tiles", tiles=tiles(run)))
    yield _curves("training", "Training", [*draw_curves([run], [run.name]), *draw_sources(run)])
    if run.evaluations:
        steps = [one for one in run.evaluations if isinstance(one.result.get("step"), int)]
        table = _table("evaluations", steps=steps, **by_kind(run))
        yield _section("evaluations", "Newest evaluations", table)
    yield _curves("scores", "Scores over the steps", draw_scores([run], [run.name]))
    if found := accounts(run):
        yield _section("epochs", "Epochs", _table("epochs", accounts=found))
    newest = slice(-NUM_BAD_SHOWN, None)
    yield _section("faults", "", _table("faults", **faults(run, shown=newest)))
    yield _section("facts", "Made with", _table("facts", facts=facts_of(run)))


def _of_several(runs: Sequence[RunFolder], names: Sequence[str]) -> Iterator[Section]:
    laid = comparison(runs)
    yield _section("summary", "", _table("summary", names=names, rows=laid["summary"]))
    yield _curves("training", "Training", laid["curves"])
    if laid["uneven"]:
        yield _section("axis", "", _table("axis"))
    scores = [(kind, title) for kind, title in _KINDS.items() if laid[kind]]
    for kind, title in scores:
        yield _section(kind, title, _table("scores", names=names, rows=laid[kind]))
    if scores:
        yield _section("explained", "", _table("explained", evaluations=laid["evaluations"]))
    if laid["settings"]:
        table = _table("settings", names=names, rows=laid["settings"])
        yield _section("settings", "What differs in the recipes", table)


def _section(name: str, title: str, html: str) -> Section:
    parts = [(name, html)] if html.strip() else []
    return {"id": name, "title": title, "css": "", "parts": parts}


def _curves(name: str, title: str, drawings: Sequence[Drawing]) -> Section:
    parts = [
        (f"{name}-{one.title}", _table("curve", title=one.title, value=one.value, svg=one.svg))
        for one in drawings
    ]
    return {"id": name, "title": title, "css": "grid curves", "parts": parts}


def _table(part: str, **content: Any) -> str:
    return render("live.html", {"part": part, **content})


def _colors(read: Sequence[RunFolder | None]) -> Iterator[str | None]:
    """Those of the curves, which are drawn of the runs that are there."""
    number = 0
    for run in read:
        yield None if run is None else color_class(number)
        number += run is not None


def _told(name: str, state: RunState, run: RunFolder | None, color: str | None) -> dict[str, Any]:
    return {
        "name": name,
        "kind": state.kind,
        "text": state.text,
        "age": state.age,
        "length": "" if run is None or not run.metrics else run_length(run),
        "color": color,
    }
