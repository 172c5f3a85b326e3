"""`mmtrain eval`."""

import argparse
from pathlib import Path
from typing import Any

from mmtrain.cli.model_options import add_model, add_running, model_options
from mmtrain.cli.parser import add_command, add_group
from mmtrain.cli.suite import add_eval_suite
from mmtrain.cli.vqa import add_eval_answers, add_eval_vqa
from mmtrain.errors import UsageError
from mmtrain.eval.config import EVALUATORS, command_of
from mmtrain.eval.evaluators.evaluator import Evaluator
from mmtrain.eval.evaluators.options import read_options


def add_eval(commands: Any) -> None:
    """The commands that evaluate: one of each evaluator, and one that needs no model."""
    kinds = add_group(commands, "eval", "evaluate a model", metavar="KIND")
    for config in EVALUATORS.values():
        if config.judges == "towers":
            _add(kinds, config)
    add_eval_vqa(kinds)
    add_eval_answers(kinds)
    add_eval_suite(kinds)


def _add(kinds: Any, config: type[Evaluator]) -> None:
    def run(arguments: argparse.Namespace) -> None:
        from mmtrain.commands.evaluate import eval_command

        try:
            evaluation = read_options(config, arguments, name=command_of(config))
        except ValueError as error:
            raise UsageError(f"eval: {error}") from error
        eval_command(model=model_options(arguments), evaluation=evaluation, out=arguments.out)

    command = add_command(kinds, command_of(config), config.summary, run)
    add_model(command)
    config.add_options(command)
    command.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="where the result goes, as JSON"
    )
    add_running(command)
