"""The command line: train | eval | data | export | convert | models | summary |
report | serve | demo.

Each command imports its room when it runs, so that help and mistakes answer without torch.
"""

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Callable, Sequence

from mmtrain.command_line import Parser, build_parser
from mmtrain.errors import UsageError

USAGE_STATUS = 2
INTERRUPT_STATUS = 130  # 128 + SIGINT, as a shell reports it
BROKEN_PIPE_STATUS = 141  # 128 + SIGPIPE


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status.

    A user's mistake is one line on stderr and status 2; a defect of ours keeps its traceback.
    """
    try:
        _run(list(sys.argv[1:] if argv is None else argv))
        # Here and not at exit, where a closed pipe could no longer be told from success.
        sys.stdout.flush()
    except UsageError as error:
        _report_mistake(" ".join(str(error).splitlines()))
        return USAGE_STATUS
    except KeyboardInterrupt:
        _print_on_rank_0("mmtrain: interrupted")
        return INTERRUPT_STATUS
    except BrokenPipeError:
        if not _is_stdout_closed():
            raise
        return BROKEN_PIPE_STATUS
    return 0


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
    _COMMANDS[arguments.command](arguments)


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


def _train(arguments: argparse.Namespace) -> None:
    from mmtrain.run import train_command

    train_command(
        recipe=arguments.recipe,
        overrides=arguments.overrides,
        run_dir=arguments.run_dir,
        resume=arguments.resume,
    )


def _eval_zero_shot(arguments: argparse.Namespace) -> None:
    from mmtrain.commands import eval_zero_shot_command

    eval_zero_shot_command(
        model=arguments.model,
        data=tuple(arguments.data),
        classes=arguments.classes,
        templates=arguments.templates,
        label_key=arguments.label_key,
        batch_size=arguments.batch_size,
        workers=arguments.workers,
        device=arguments.device,
        out=arguments.out,
    )


def _eval_retrieval(arguments: argparse.Namespace) -> None:
    from mmtrain.commands import eval_retrieval_command

    eval_retrieval_command(
        model=arguments.model,
        data=tuple(arguments.data),
        captions=tuple(arguments.captions),
        batch_size=arguments.batch_size,
        workers=arguments.workers,
        device=arguments.device,
        out=arguments.out,
    )


def _data_index(arguments: argparse.Namespace) -> None:
    from mmtrain.commands import data_index_command

    data_index_command(data=tuple(arguments.data), index_dir=arguments.index_dir)


def _data_check(arguments: argparse.Namespace) -> None:
    from mmtrain.commands import data_check_command

    data_check_command(data=tuple(arguments.data), index_dir=arguments.index_dir)


def _export(arguments: argparse.Namespace) -> None:
    from mmtrain.commands import export_command

    export_command(model=arguments.model, out=arguments.out, form=arguments.format)


def _models(arguments: argparse.Namespace) -> None:
    from mmtrain.commands import models_command

    models_command()


def _summary(arguments: argparse.Namespace) -> None:
    from mmtrain.commands import summary_command

    summary_command(model=arguments.model, graph=arguments.graph)


def _report(arguments: argparse.Namespace) -> None:
    from mmtrain.report import write_report

    write_report(tuple(arguments.runs), out=arguments.out)


def _serve(arguments: argparse.Namespace) -> None:
    from mmtrain.serve import serve_command

    serve_command(
        model=arguments.model,
        index=tuple(arguments.index),
        host=arguments.host,
        port=arguments.port,
        device=arguments.device,
    )


def _demo(arguments: argparse.Namespace) -> None:
    from mmtrain.demo.demo import run_demo

    run_demo(
        out=arguments.out,
        overrides=arguments.overrides,
        fresh=arguments.fresh,
        data_only=arguments.data_only,
    )


_COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "train": _train,
    "eval zero-shot": _eval_zero_shot,
    "eval retrieval": _eval_retrieval,
    "data index": _data_index,
    "data check": _data_check,
    "export": _export,
    "convert": _export,
    "models": _models,
    "summary": _summary,
    "report": _report,
    "serve": _serve,
    "demo": _demo,
}


def _report_mistake(message: str) -> None:
    """One line in all, however many ranks make the same mistake.

    A mistake that only another rank sees must not be lost: torchrun names the file where each
    rank may leave its error, and prints the first one's.
    """
    _print_on_rank_0(f"mmtrain: error: {message}")
    if error_file := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        with open(error_file, "w", encoding="utf-8") as file:
            json.dump({"message": message, "timestamp": int(time.time())}, file)


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
