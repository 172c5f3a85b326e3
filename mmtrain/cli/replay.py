"""`mmtrain replay` and `mmtrain why`."""

import argparse
from pathlib import Path
from typing import Any

from mmtrain.cli.parser import add_command
from mmtrain.settings.numbers import at_least, positive


def add_replay(commands: Any) -> None:
    """The command that takes steps of a run again."""
    replay = add_command(
        commands,
        "replay",
        "take steps of a run again from its checkpoints and compare them with what it logged",
        _replay,
        usage="mmtrain replay RUN --step N [N ...] [--out FILE.json] [--section.key value ...]\n"
        "       torchrun --nproc-per-node 8 -m mmtrain replay RUN --step N",
        takes_overrides=True,
    )
    replay.add_argument("run_dir", type=Path, metavar="RUN", help="a run's folder; it stays as is")
    replay.add_argument(
        "--step",
        type=at_least(1),
        nargs="+",
        required=True,
        metavar="N",
        help="steps that metrics.jsonl has a line of",
    )
    replay.add_argument(
        "--tolerance",
        type=positive,
        metavar="X",
        help="relative difference up to which numbers are those of the run (1e-5 in fp32, 1e-9 in "
        "fp64, 1e-2 in the others)",
    )
    replay.add_argument(
        "--out", type=Path, metavar="FILE.json", help="also write what was compared, as a proof"
    )


def _replay(arguments: argparse.Namespace) -> None:
    from mmtrain.commands.replay import replay_command

    replay_command(
        run_dir=arguments.run_dir,
        steps=arguments.step,
        overrides=arguments.overrides,
        tolerance=arguments.tolerance,
        out=arguments.out,
    )


def add_why(commands: Any) -> None:
    """The command that looks into a step of a run."""
    why = add_command(
        commands,
        "why",
        "take a run to one of its steps again and say what that is made of: layers, samples",
        _why,
        usage="mmtrain why RUN --step N [--rows N] [--out FILE.html] [--section.key value ...]",
        takes_overrides=True,
    )
    why.add_argument("run_dir", type=Path, metavar="RUN", help="a run's folder; it stays as it is")
    why.add_argument(
        "--step", type=at_least(1), required=True, metavar="N", help="any, logged or not"
    )
    why.add_argument(
        "--rows", type=at_least(1), default=12, metavar="N", help="samples shown (%(default)s)"
    )
    why.add_argument(
        "--out", type=Path, metavar="FILE.html", help="also write a page, with the pictures"
    )


def _why(arguments: argparse.Namespace) -> None:
    from mmtrain.commands.why import why_command

    why_command(
        run_dir=arguments.run_dir,
        step=arguments.step,
        overrides=arguments.overrides,
        rows=arguments.rows,
        out=arguments.out,
    )
