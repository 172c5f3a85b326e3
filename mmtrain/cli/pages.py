"""`mmtrain report`, `mmtrain watch` and `mmtrain serve`: pages for a browser."""

import argparse
from pathlib import Path
from typing import Any

from mmtrain.cli.model_options import HUB, add_architecture
from mmtrain.cli.parser import add_command, add_device
from mmtrain.settings.numbers import at_least


def add_report(commands: Any) -> None:
    """The command that writes a page about runs."""
    report = add_command(commands, "report", "write one page about one or more runs", _report)
    report.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders")
    report.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="the page (report.html in the run folder; of several, comparison.html in the first)",
    )


def add_watch(commands: Any) -> None:
    """The command that shows runs while they go on."""
    watch = add_command(
        commands,
        "watch",
        "watch runs while they train: the report as a page that keeps itself up to date",
        _watch,
    )
    watch.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="run folders, which are only read; one that is not there yet is waited for",
    )
    _add_address(watch, port=8001)


def add_serve(commands: Any) -> None:
    """The command that serves a page."""
    serve = add_command(
        commands,
        "serve",
        "serve a page to play with: find images by text, or ask a model that answers about one",
        _serve,
    )
    serve.add_argument(
        "--model",
        required=True,
        metavar="MODEL",
        help=f"a run folder or its export/, {HUB}; one that answers is asked about images",
    )
    add_architecture(serve)
    serve.add_argument(
        "--index",
        nargs="+",
        default=[],
        metavar="EMBEDDINGS",
        help="images to search: what mmtrain embed wrote, or shards, which are embedded now; of a "
        "CLIP alone",
    )
    _add_address(serve, port=8000)
    add_device(serve)


def _add_address(command: argparse.ArgumentParser, *, port: int) -> None:
    command.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="NAME",
        help="where to listen; any but the default lets others in (%(default)s)",
    )
    command.add_argument(
        "--port",
        type=at_least(0),
        default=port,
        metavar="N",
        help="0 takes a free one (%(default)s)",
    )


def _watch(arguments: argparse.Namespace) -> None:
    from mmtrain.serve import watch_command

    watch_command(runs=tuple(arguments.runs), host=arguments.host, port=arguments.port)


def _report(arguments: argparse.Namespace) -> None:
    from mmtrain.report import write_report

    print(f"wrote {write_report(tuple(arguments.runs), out=arguments.out)}")


def _serve(arguments: argparse.Namespace) -> None:
    from mmtrain.serve import serve_command

    serve_command(
        model=arguments.model,
        architecture=arguments.architecture,
        index=tuple(arguments.index),
        host=arguments.host,
        port=arguments.port,
        device=arguments.device,
    )
