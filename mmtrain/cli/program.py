"""What `mmtrain` does with its words: find the command, run it, say a mistake in one line."""

import os
import re
import sys
from collections.abc import Sequence

from mmtrain.cli.checkpoint import add_checkpoint
from mmtrain.cli.data import add_data
from mmtrain.cli.demo import add_demo
from mmtrain.cli.embed import add_embed
from mmtrain.cli.evaluate import add_eval
from mmtrain.cli.generate import add_generate
from mmtrain.cli.models import add_export, add_models
from mmtrain.cli.pages import add_report, add_serve
from mmtrain.cli.parser import Parser, VersionAction
from mmtrain.cli.plan import add_plan
from mmtrain.cli.train import add_train
from mmtrain.cli.vqa import add_ask
from mmtrain.errors import ExitStatus, FaultsFound, UsageError, WorkerKilledError, leave_error

_EXAMPLES = """\
examples:
  mmtrain demo
  mmtrain train configs/debug_clip.toml --run-dir runs/first
  mmtrain train configs/debug_clip.toml --run-dir runs/first --resume
  torchrun --nproc-per-node 8 -m mmtrain train RECIPE --parallel.tp 2

`mmtrain COMMAND --help` tells more; `mmtrain train --help` lists every key of a recipe.
"""
_GROUPS = (
    add_train,
    add_plan,
    add_eval,
    add_embed,
    add_generate,
    add_ask,
    add_data,
    add_checkpoint,
    add_export,
    add_models,
    add_report,
    add_serve,
    add_demo,
)
"""In the order of the help."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status, one of `ExitStatus`.

    A user's mistake is one line on stderr and status 2; a defect of ours keeps its traceback.
    """
    try:
        _run(list(sys.argv[1:] if argv is None else argv))
        # Here and not at exit, where a closed pipe could no longer be told from success.
        sys.stdout.flush()
    except UsageError as error:
        return _report(error, ExitStatus.MISTAKE)
    except FaultsFound as found:
        return _report(found, ExitStatus.FAULTS_FOUND)
    except WorkerKilledError as error:
        return _report(error, ExitStatus.WORKER_KILLED)
    except KeyboardInterrupt:
        _print_on_rank_0("mmtrain: interrupted")
        return ExitStatus.INTERRUPTED
    except BrokenPipeError:
        if not _is_stdout_closed():
            raise
        return ExitStatus.BROKEN_PIPE
    return ExitStatus.DONE


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


def _run(argv: list[str]) -> None:
    words, overrides = _split_overrides(argv)
    try:
        arguments, unknown = build_parser().parse_known_args(words)
    except SystemExit:
        return  # help or the versions, printed; a mistake is a UsageError
    parser: Parser = arguments.parser
    if unknown or (overrides and not parser.takes_overrides):
        raise UsageError(parser.unknown_word((unknown or overrides)[0]))
    arguments.overrides = overrides
    arguments.run(arguments)


def _split_overrides(argv: list[str]) -> tuple[list[str], list[str]]:
    """Take `--section.key value` out: argparse does not know these keys, so it would read their
    values as positional words."""
    words: list[str] = []
    overrides: list[str] = []
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        if not re.match(r"--\w[\w-]*\.", word):
            words.append(word)
            continue
        overrides.append(word)
        if "=" not in word and rest and not rest[0].startswith("--"):
            overrides.append(rest.pop(0))
    return words, overrides


def _report(error: Exception, status: ExitStatus) -> ExitStatus:
    """One line in all, however many ranks meet the same error; one that only another rank sees is
    left where the launcher prints it."""
    message = " ".join(str(error).splitlines())
    _print_on_rank_0(f"mmtrain: error: {message}")
    leave_error(message, status)
    return status


def _print_on_rank_0(line: str) -> None:
    if os.environ.get("RANK", "0") == "0":
        print(line, file=sys.stderr)


def _is_stdout_closed() -> bool:
    """Whether the reader of our output went away (`mmtrain ... | head`), and not another pipe's,
    such as a data worker's. If so, whatever is still buffered goes nowhere."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        # The interpreter flushes once more at exit and would print a warning.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False
