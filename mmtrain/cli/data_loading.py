"""`mmtrain data show` and `bench`."""

import argparse
from pathlib import Path
from typing import Any

from mmtrain.cli.parser import Parser, add_command
from mmtrain.settings.numbers import at_least, positive


def add_data_show(actions: Any) -> None:
    """The command that names the samples of a step."""
    show = add_command(
        actions,
        "show",
        "name the samples that a run sees in one step, with the captions that are drawn",
        _show,
        usage="mmtrain data show RECIPE|RUN --step N [--section.key value ...]",
        takes_overrides=True,
    )
    _add_recipe(show)
    show.add_argument(
        "--step",
        type=at_least(1),
        required=True,
        metavar="N",
        help="as metrics.jsonl counts them, from 1; bad_samples.jsonl and bad_batches.jsonl say "
        "how many were done before",
    )
    show.add_argument(
        "--world-size",
        type=at_least(1),
        default=1,
        metavar="N",
        help="data-parallel ranks: say which of them has each sample (%(default)s)",
    )
    show.add_argument("--out", type=Path, metavar="FILE.html", help="a page with the images too")


def add_data_labels(actions: Any) -> None:
    """The command that shows which tokens are learnt."""
    labels = add_command(
        actions,
        "labels",
        "show which tokens of a run's first batches are trained",
        _labels,
        usage="mmtrain data labels RECIPE|RUN [--batches N] [--out FILE.html] "
        "[--section.key value ...]",
        takes_overrides=True,
        epilog="On a terminal what is trained is green; elsewhere it stands between {+ and +}.",
    )
    _add_recipe(labels)
    labels.add_argument(
        "--batches", type=at_least(1), default=1, metavar="N", help="from the first (%(default)s)"
    )
    labels.add_argument(
        "--rows",
        type=at_least(1),
        default=16,
        metavar="N",
        help="of a batch that are shown; shares are of all (%(default)s)",
    )
    labels.add_argument("--out", type=Path, metavar="FILE.html", help="a page of it, images too")


def add_data_quarantine(actions: Any) -> None:
    """The command that names what a run could not use."""
    quarantine = add_command(
        actions,
        "quarantine",
        "name the samples that a run could not use, by reason and source",
        _quarantine,
    )
    quarantine.add_argument(
        "folder", type=Path, metavar="RUN", help="a run's folder or a checkpoint"
    )
    quarantine.add_argument("--json", type=Path, metavar="FILE.json", help="the samples")


def add_data_bench(actions: Any) -> None:
    """The command that measures a loader."""
    bench = add_command(
        actions,
        "bench",
        "tell what bounds a recipe's loader: ms by stage, samples/s by workers",
        _bench,
        usage="mmtrain data bench RECIPE|RUN [--rate X] [--section.key value ...]",
        takes_overrides=True,
    )
    _add_recipe(bench)
    bench.add_argument(
        "--workers",
        type=at_least(0),
        nargs="+",
        default=[0, 1, 2],
        metavar="N",
        help="numbers of processes to try (0 1 2)",
    )
    bench.add_argument(
        "--batches",
        type=at_least(2),
        default=16,
        metavar="N",
        help="that are taken each time (%(default)s)",
    )
    bench.add_argument(
        "--rate",
        type=positive,
        metavar="X",
        help="samples/s that the model takes on this machine: tell the workers that it needs",
    )
    bench.add_argument("--json", type=Path, metavar="FILE.json", help="the figures")


def _add_recipe(parser: Parser) -> None:
    parser.add_argument(
        "recipe", type=Path, metavar="RECIPE|RUN", help="a TOML file, or a run's folder"
    )


def _show(arguments: argparse.Namespace) -> None:
    from mmtrain.commands.data_loading import data_show_command

    data_show_command(
        recipe=arguments.recipe,
        overrides=arguments.overrides,
        step=arguments.step,
        out=arguments.out,
        world_size=arguments.world_size,
    )


def _labels(arguments: argparse.Namespace) -> None:
    from mmtrain.commands.data_labels import data_labels_command

    data_labels_command(
        recipe=arguments.recipe,
        overrides=arguments.overrides,
        batches=arguments.batches,
        rows=arguments.rows,
        out=arguments.out,
    )


def _quarantine(arguments: argparse.Namespace) -> None:
    from mmtrain.commands.data_quarantine import data_quarantine_command

    data_quarantine_command(run=arguments.folder, json_out=arguments.json)


def _bench(arguments: argparse.Namespace) -> None:
    from mmtrain.commands.data_loading import data_bench_command

    data_bench_command(
        recipe=arguments.recipe,
        overrides=arguments.overrides,
        workers=tuple(arguments.workers),
        batches=arguments.batches,
        rate=arguments.rate,
        json_out=arguments.json,
    )
