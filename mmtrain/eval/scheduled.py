"""Evaluations that a recipe names: tried before the training, run while it lasts."""

from typing import Any

from mmtrain.data.images.transforms import PreprocessConfig
from mmtrain.errors import UsageError
from mmtrain.eval.config import command_of
from mmtrain.eval.evaluators.evaluator import Evaluator
from mmtrain.eval.evaluators.options import option_words
from mmtrain.eval.result import EvalResult
from mmtrain.eval.together import on_all_ranks


def check_evaluation(config: Evaluator, preprocess: PreprocessConfig) -> None:
    """Open everything that it will need, and read a handful of its samples.

    Raises:
        UsageError: something of it is not there, or cannot be.
    """
    try:
        config.check(config.open(), preprocess)
    except UsageError as error:
        raise UsageError(f"eval {config.name}: {error}") from error


def run_evaluation(model: Any, config: Evaluator) -> tuple[EvalResult, tuple[str, ...]]:
    """Its result, the same on every rank, and the figures that say it shortest.

    Args:
        model: the Encoder or Answerer that it judges.
        config: the evaluation.

    Raises:
        UsageError: on every rank, as of the evaluation itself.
    """
    with on_all_ranks(model.group, model.device):
        with on_all_ranks(model.group, model.device):
            inputs = config.open()
        result = config.run(model, inputs)
    return result, config.shortest


def command_words(config: Evaluator) -> list[str]:
    """What `mmtrain` takes to do the same evaluation; the model and the result's place lack."""
    return ["eval", command_of(type(config)), *option_words(config)]
