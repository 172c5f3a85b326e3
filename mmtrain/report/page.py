"""The page of one run."""

import statistics
from collections import Counter
from pathlib import Path
from typing import Any

from mmtrain.errors import UsageError
from mmtrain.eval.encode import Encoder
from mmtrain.files import real_path
from mmtrain.report.chart import short_number
from mmtrain.report.compare import comparison
from mmtrain.report.curves import draw_curves, draw_reliability, draw_scores, draw_sources
from mmtrain.report.evaluations import Evaluation
from mmtrain.report.facts import (
    facts_of,
    last_loss,
    of_training,
    run_length,
    run_making,
    seen_before,
    speed,
)
from mmtrain.report.look import update_look
from mmtrain.report.reading import column
from mmtrain.report.render import percent, render, write_page
from mmtrain.report.run_folder import RunFolder, is_run, read_run
from mmtrain.settings.counted import counted
from mmtrain.settings.paths import refuse_unwritable

NUM_BAD_SHOWN = 10


def write_report(
    run_dirs: tuple[Path, ...], *, out: Path | None = None, encoder: Encoder | None = None
) -> Path:
    """Draw the page of one run, or one that compares several, and return its path.

    The page needs no network and no script: styles, curves and pictures are in it.

    Args:
        run_dirs: run folders; at least one.
        out: where the page goes; None: report.html in the run's folder, of several comparison.html
            in the first one's.
        encoder: the one run's model as export/ holds it, on this process alone; None: it is loaded
            if the page needs it.

    Raises:
        UsageError: one is no run folder or is there twice, `out` is called as something else, the
            page cannot be written.
    """
    if not run_dirs:
        raise UsageError("no run is named; name at least one run folder")
    if out is not None and out.suffix not in (".html", ".htm"):
        raise UsageError(f"out = {out} must end in .html")
    if out is not None:
        refuse_unwritable(out, "out")
    lacking = None
    if len(run_dirs) == 1 and is_run(run_dirs[0]):
        lacking = update_look(run_dirs[0], encoder=encoder)
    runs = [read_run(path) for path in run_dirs]
    for number, run in enumerate(runs):
        if real_path(run.path) in [real_path(other.path) for other in runs[:number]]:
            raise UsageError(f"run = {run.path} is named twice; name every run once")
    if len(runs) == 1:
        html = render("page.html", _one_run(runs[0], lacking=lacking))
    else:
        html = render("compare.html", comparison(runs))
    path = out or run_dirs[0] / ("report.html" if len(runs) == 1 else "comparison.html")
    write_page(path, html)
    return path


def _one_run(run: RunFolder, *, lacking: str | None) -> dict[str, Any]:
    judged = run.of_kind("zero-shot") + run.of_kind("probe")
    return {
        "title": run.name,
        "subtitle": run_length(run),
        "making": run_making(run),
        "command": run.facts.get("command"),
        "of_training": of_training(run),
        "notes": [*seen_before(run), *run.notes],
        "tiles": tiles(run),
        **by_kind(run),
        "confused": [one for one in judged if one.result.get("confusions")],
        "reliability": draw_reliability(judged),
        "look": run.look,
        "lacking": lacking,
        "curves": [
            *draw_curves([run], [run.name]),
            *draw_sources(run),
            *draw_scores([run], [run.name]),
        ],
        "examples": [one for one in run.evaluations if _has_examples(one)],
        "accounts": accounts(run),
        **faults(run, shown=slice(NUM_BAD_SHOWN)),
        "facts": facts_of(run) + _fingerprints(run.evaluations),
        "recipe": run.recipe,
    }


def by_kind(run: RunFolder) -> dict[str, list[Evaluation]]:
    """The evaluations of each table of results.html."""
    return {
        "zero_shot": run.of_kind("zero-shot"),
        "probes": run.of_kind("probe"),
        "retrieval": run.of_kind("retrieval"),
        "questions": run.of_kind("questions"),
        "others": [one for one in run.of_kind("other") if one.figures],
    }


def faults(run: RunFolder, *, shown: slice) -> dict[str, Any]:
    """What faults.html tells of samples and steps that could not be used.

    Args:
        run: what is in its folder.
        shown: those that get a line of their own.
    """
    return {
        "bad_samples": run.bad_samples[shown],
        "num_bad_samples": len(run.bad_samples),
        "bad_reasons": Counter(str(row.get("reason", "?")) for row in run.bad_samples),
        "bad_batches": run.bad_batches[shown],
        "num_bad_batches": len(run.bad_batches),
    }


def accounts(run: RunFolder) -> dict[str, dict[str, Any]]:
    """Of the epochs that were over by the last line, by source."""
    found = run.metrics[-1].get("epoch_accounts") if run.metrics else None
    tables = found.items() if isinstance(found, dict) else ()
    return {name: table for name, table in tables if isinstance(table, dict)}


def _has_examples(one: Evaluation) -> bool:
    return any(one.result.get("examples", {}).values())


def tiles(run: RunFolder) -> list[tuple[str, str, str]]:
    """The few figures that a reader looks for first: (name, value, remark)."""
    found: list[tuple[str, str, str]] = []
    for one in run.of_kind("zero-shot"):
        times = one.result["top1"] * one.result["num_classes"]
        remark = f"zero-shot top-1, {times:,.0f}\xa0×\xa0chance"
        found.append((one.name, percent(one.result["top1"]), remark))
    for one in run.of_kind("probe"):
        remark = f"{one.result['method']} top-1"
        found.append((one.name, percent(one.result["top1"]), remark))
    for one in run.of_kind("retrieval"):
        remark = f"image to text R@1, {counted(one.result['num_images'], 'image')}"
        found.append((one.name, percent(one.result["i2t_recall@1"]), remark))
    for one in run.of_kind("questions"):
        remark = f"of {one.result['num_questions']:,} questions right"
        found.append((one.name, percent(one.result["accuracy"]), remark))
    loss = last_loss(run)
    if loss is not None:
        found.append(("Loss", f"{loss:.3f}", "mean of the last steps"))
    per_second = speed(run)
    if per_second is not None:
        waits = [value for _, value in column(run.metrics, "data_wait_fraction")]
        waiting = f", {percent(statistics.median(waits))} waiting for data" if waits else ""
        remark = f"median{waiting}"
        found.append(("Samples/s", short_number(per_second), remark))
    return found


def _fingerprints(evaluations: list[Evaluation]) -> list[tuple[str, str]]:
    return [
        (f"{one.name} data fingerprint", str(one.result["data_fingerprint"]))
        for one in evaluations
        if "data_fingerprint" in one.result
    ]
