"""Which task a recipe is of, and what of the recipe that task is given."""

from mmtrain.errors import UsageError
from mmtrain.eval.config import EVALUATORS
from mmtrain.recipe import TrainRecipe
from mmtrain.tasks.answering import AnsweringTask
from mmtrain.tasks.config import LossSection
from mmtrain.tasks.contrastive import ContrastiveTask
from mmtrain.tasks.task import Shared, Task


def build_task(recipe: TrainRecipe, shared: Shared) -> Task:
    """The task, with its data and its model.

    Raises:
        UsageError: data or weights are not there or do not fit, or a section is another task's.
    """
    model = recipe.model
    if recipe.vqa is None:
        _refuse_evaluations(recipe, "answers", "needs a [vqa] section, which trains for it")
        return ContrastiveTask(
            shared,
            clip=model.clip,
            loss=recipe.loss,
            init=model.init,
            vision_init=model.vision_init,
        )
    if recipe.loss != LossSection():
        raise UsageError("[loss] has no effect beside [vqa]; leave it out")
    _refuse_evaluations(recipe, "towers", "has no effect beside [vqa]; leave it out")
    return AnsweringTask(shared, clip=model.clip, section=recipe.vqa, init=model.init)


def _refuse_evaluations(recipe: TrainRecipe, judges: str, why: str) -> None:
    for section, kind in EVALUATORS.items():
        if kind.judges == judges and getattr(recipe.eval, section):
            raise UsageError(f"[eval.{section}] {why}")
