"""What `mmtrain` does with its words: find the command, run it, say a mistake in one line."""

import argparse
import sys
from collections.abc import Sequence

from mmtrain.cli.cache_options import asked_cache
from mmtrain.cli.checkpoint import add_checkpoint
from mmtrain.cli.compare import add_compare
from mmtrain.cli.completion import add_completion
from mmtrain.cli.data import add_data
from mmtrain.cli.demo import add_demo
from mmtrain.cli.doctor import add_doctor
from mmtrain.cli.embed import add_embed
from mmtrain.cli.endings import end_well
from mmtrain.cli.evaluate import add_eval
from mmtrain.cli.generate import add_generate
from mmtrain.cli.models import add_export, add_models
from mmtrain.cli.pages import add_report, add_serve, add_watch
from mmtrain.cli.parser import Parser, VersionAction
from mmtrain.cli.plan import add_plan
from mmtrain.cli.profile import add_profile
from mmtrain.cli.push import add_push
from mmtrain.cli.recipes import add_recipes
from mmtrain.cli.replay import add_replay, add_why
from mmtrain.cli.train import add_train
from mmtrain.cli.vqa import add_ask
from mmtrain.cli.words import explain, in_words_of, refuse_document_dashes, split_overrides
from mmtrain.errors import ExitStatus, UsageError, leave_error, mistake_before_restart

_EXAMPLES = """\
examples:
  mmtrain demo
  mmtrain recipes debug_clip
  mmtrain train debug_clip.toml --run-dir runs/first
  mmtrain train runs/first --resume
  torchrun --nproc-per-node 8 -m mmtrain train RECIPE --parallel.tp 2

`mmtrain COMMAND --help` tells more; `mmtrain train --help SECTION` lists the keys of a recipe.
"""
_GROUPS = (
    add_recipes,
    add_train,
    add_plan,
    add_profile,
    add_eval,
    add_compare,
    add_embed,
    add_generate,
    add_ask,
    add_data,
    add_checkpoint,
    add_export,
    add_push,
    add_models,
    add_report,
    add_watch,
    add_replay,
    add_why,
    add_serve,
    add_demo,
    add_doctor,
    add_completion,
)
"""In the order of the help."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status, one of `ExitStatus`.

    A user's mistake is one line on stderr and status 2; a defect of ours keeps its traceback.
    """
    if (mistake := mistake_before_restart()) is not None:
        leave_error(mistake, ExitStatus.MISTAKE)  # it was said; the next restart must know too
        return ExitStatus.MISTAKE
    words = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    return end_well(lambda: _run(words), name="mmtrain")


def build_parser() -> Parser:
    """The whole command line; the namespace has `run`, the command, and the `parser` that read
    it."""
    parser = Parser(
        prog="mmtrain",
        description="Multimodal pretraining: CLIP on sharded tars, zero-shot evaluation.",
        epilog=_EXAMPLES,
    )
    parser.add_argument("--version", action=VersionAction)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for add in _GROUPS:
        add(commands)
    return parser


def parse(argv: list[str]) -> argparse.Namespace | None:
    """What the words are; None: help or the versions were asked for, and are printed.

    Raises:
        UsageError: a mistake.
    """
    everything = build_parser()
    refuse_document_dashes(argv, everything)
    words, overrides = split_overrides(argv)
    try:
        arguments, unknown = everything.parse_known_args(words)
    except SystemExit:
        return None
    parser: Parser = arguments.parser
    if unknown or (overrides and not parser.takes_overrides):
        raise UsageError(explain((unknown or overrides)[0], argv=argv, parser=parser))
    arguments.overrides = overrides
    return arguments


def _run(argv: list[str]) -> None:
    arguments = parse(argv)
    if arguments is None:
        return
    try:
        with asked_cache(arguments):
            arguments.run(arguments)
    except UsageError as error:
        raise UsageError(in_words_of(arguments, str(error))) from error
