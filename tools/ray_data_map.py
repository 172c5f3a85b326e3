"""Check, survey or embed data on Ray Data: every task takes a share of the shards.

    python tools/ray_data_map.py check DATA ... [what mmtrain data check takes]
    python tools/ray_data_map.py stats DATA ... --out stats.html [what mmtrain data stats takes]
    python tools/ray_data_map.py embed --model MODEL --data DATA --out DIR --gpus 1 [...]

What comes out is what `mmtrain data check`, `mmtrain data stats` and `mmtrain embed` give. It runs
on the cluster of RAY_ADDRESS, or on this machine. Data, models and DIR must be where all machines
see them. Index shards before (mmtrain data index): else each machine reads them all for an index.
"""

import argparse
import os
import pickle
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from mmtrain.cli.cache_options import asked_cache
from mmtrain.cli.data import check_options
from mmtrain.cli.data_pages import data_options, stats_options
from mmtrain.cli.embed import embed_options
from mmtrain.cli.endings import end_well
from mmtrain.cli.parser import Parser
from mmtrain.cli.program import parse
from mmtrain.cli.words import in_words_of
from mmtrain.commands.data import (
    compare_shards,
    open_no_shards,
    read_samples,
    tell_samples,
    tell_shards,
)
from mmtrain.commands.data_stats import (
    look,
    open_looked_at,
    refuse_unfit,
    samples_of,
    write_figures,
)
from mmtrain.commands.evaluate import build_encoder, embed_data, tell_embedded
from mmtrain.data.questions.check import QuestionReport
from mmtrain.data.sample_check import SampleReport, joined_reports
from mmtrain.data.shards.check import CheckReport
from mmtrain.data.shards.patterns import expand_patterns
from mmtrain.data.shards.source import ShardSource
from mmtrain.data.sources.open import open_source
from mmtrain.data.survey.piece import joined
from mmtrain.errors import UsageError, WorkerKilledError
from mmtrain.settings.numbers import WHOLE, at_least

_TASKS_A_CPU = 4
"""Shares for each processor of the cluster, so that a slow one holds up little."""
_QUESTIONS = "questions are checked by mmtrain data check, not here"
_SHARES = {"--shard-range", "--merge", "--parts"}


class Job(NamedTuple):
    """What one of the commands does in a task, and with what all tasks found."""

    words: tuple[str, ...]
    """The command."""
    num_shares: Callable[[argparse.Namespace], int]
    """How many shares there may be."""
    find: Callable[[argparse.Namespace, tuple[int, int]], Any]
    """One share."""
    end: Callable[[argparse.Namespace, Sequence[Any], Callable[..., Any]], None]
    """All shares; the last argument runs one more task."""


def _num_checked(arguments: argparse.Namespace) -> int:
    options = check_options(arguments)
    if options.questions.is_set(options.data):
        raise UsageError(f"{' '.join(options.data)}: {_QUESTIONS}")
    source = open_no_shards(options)
    if source is None:
        return len(expand_patterns(options.data, key="data"))
    return source.num_samples


def _check(
    arguments: argparse.Namespace, part: tuple[int, int]
) -> tuple[CheckReport | None, SampleReport | None]:
    options = replace(check_options(arguments), part=part)
    source = open_no_shards(options)
    shards = compare_shards(options) if source is None else None
    if shards is not None and shards.problems:
        return shards, None
    report = read_samples(options, source)
    if isinstance(report, QuestionReport):
        raise UsageError(f"{' '.join(options.data)}: {_QUESTIONS}; --captions checks captions")
    return shards, report


def _end_check(arguments: argparse.Namespace, found: Sequence[Any], _: Callable[..., Any]) -> None:
    options = check_options(arguments)
    by_part = [shards.shards for shards, _ in found if shards is not None]
    num = sum(map(len, by_part))
    every = tuple(by_part[n % len(by_part)][n // len(by_part)] for n in range(num))
    if by_part:
        tell_shards(CheckReport(shards=every), options)
    reports = [samples for _, samples in found if samples is not None]
    tell_samples(joined_reports(reports, places=[shard.path for shard in every]), options)


def _num_looked_at(arguments: argparse.Namespace) -> int:
    data = data_options(arguments)
    refuse_unfit(data, stats_options(arguments))
    source = open_looked_at(data, stats_options(arguments)).source
    return len(source.shards) if isinstance(source, ShardSource) else source.num_samples


def _stats(arguments: argparse.Namespace, part: tuple[int, int]) -> Any:
    data, options = data_options(arguments), replace(stats_options(arguments), part=part)
    found = open_looked_at(data, options)
    return look(options, found, samples_of(options, found.source))


def _end_stats(arguments: argparse.Namespace, found: Sequence[Any], _: Callable[..., Any]) -> None:
    data, options = data_options(arguments), stats_options(arguments)
    write_figures(joined(found), open_looked_at(data, options), options, title=data.title)


def _num_embedded(arguments: argparse.Namespace) -> int:
    options = embed_options(arguments)
    source = open_source(options.data, image_key=options.image_key, key="data")
    return -(-source.num_samples // options.piece)


def _embed(arguments: argparse.Namespace, part: tuple[int, int]) -> Any:
    options = replace(embed_options(arguments), part=part)
    return embed_data(options, build_encoder(options.model, images_only=True))


def _end_embed(
    arguments: argparse.Namespace, found: Sequence[Any], run_task: Callable[..., Any]
) -> None:
    (report,) = run_task([WHOLE])  # finds all pieces, and says so in the folder
    num_made = sum(each.num_made for each in found)
    tell_embedded(replace(report, num_made=num_made), embed_options(arguments))


JOBS = {
    "check": Job(("data", "check"), _num_checked, _check, _end_check),
    "stats": Job(("data", "stats"), _num_looked_at, _stats, _end_stats),
    "embed": Job(("embed",), _num_embedded, _embed, _end_embed),
}


def run_share(row: dict[str, Any]) -> dict[str, Any]:
    """One task of Ray Data: what a share comes to, or the mistake that it met, pickled."""
    if os.path.isdir(row["folder"]):
        os.chdir(row["folder"])  # relative paths are those of whoever typed them
    job, part = JOBS[row["job"]], (row["number"], row["count"])
    arguments = parse(row["words"])
    assert arguments is not None
    try:
        with asked_cache(arguments):
            found = job.find(arguments, part)
    except (UsageError, WorkerKilledError) as error:
        found = error
    return {"number": part[0], "found": pickle.dumps(found)}


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code: that of the command."""
    return end_well(lambda: run(list(sys.argv[1:] if argv is None else argv)), name="ray_data_map")


def run(argv: list[str]) -> None:
    """Share out a command's work and say what it came to."""
    parser = Parser(prog="ray_data_map", description=__doc__)
    parser.add_argument("job", choices=JOBS, metavar="check|stats|embed", help="what is done")
    parser.add_argument(
        "--num-shares",
        type=at_least(1),
        metavar="N",
        help=f"tasks ({_TASKS_A_CPU} for each processor, at most one a shard or file)",
    )
    parser.add_argument(
        "--gpus", type=float, default=0.0, metavar="X", help="GPUs of a task (%(default)g)"
    )
    own, words = parser.parse_known_args(argv)
    job = JOBS[own.job]
    words = [*job.words, *words]
    arguments = parse(words)
    if arguments is None:
        return
    if own_share := {word.partition("=")[0] for word in words} & _SHARES:
        raise UsageError(f"{min(own_share)}: Ray shares out the work here; leave it out")
    try:
        with asked_cache(arguments):
            _share_out(own, words, arguments)
    except UsageError as error:
        raise UsageError(in_words_of(arguments, str(error))) from error


def _share_out(own: argparse.Namespace, words: list[str], arguments: argparse.Namespace) -> None:
    try:
        import ray
    except ImportError as error:
        raise UsageError("ray is not installed; pip install 'mmtrain[ray]'") from error
    most = JOBS[own.job].num_shares(arguments)
    ray.init(ignore_reinit_error=True)
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if own.gpus > max(machine.get("GPU", 0) for machine in machines):
        raise UsageError(f"--gpus {own.gpus:g}: no machine has so many; Ray would wait for one")
    num_cpus = min(max(1, arguments.workers), max(machine.get("CPU", 1) for machine in machines))
    cpus = sum(machine.get("CPU", 0) for machine in machines)
    count = min(own.num_shares or max(1, int(_TASKS_A_CPU * cpus)), most)

    def run_tasks(parts: Sequence[tuple[int, int]]) -> list[Any]:
        rows = [
            {"job": own.job, "words": words, "folder": os.getcwd(), "number": i, "count": n}
            for i, n in parts
        ]
        return _found(rows, num_cpus=num_cpus, num_gpus=own.gpus)

    found = run_tasks([(number, count) for number in range(count)])
    JOBS[own.job].end(arguments, found, run_tasks)


def _found(rows: list[dict[str, Any]], *, num_cpus: float, num_gpus: float) -> list[Any]:
    """What Ray Data makes of the rows, each a task of its own, in the order of the shares."""
    from ray import data

    shares = data.from_items(rows, override_num_blocks=len(rows))
    made = shares.map(run_share, num_cpus=num_cpus, num_gpus=num_gpus).take_all()
    found = [pickle.loads(row["found"]) for row in sorted(made, key=lambda row: row["number"])]
    for each in found:
        if isinstance(each, Exception):
            raise each
    return found


if __name__ == "__main__":
    sys.exit(main())
