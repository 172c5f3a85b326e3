"""Which task a recipe is of, and what of the recipe that task is given."""

from typing import Any

from mmtrain.build.task_workloads import Answering, Matching, Talking, planned_teachers
from mmtrain.errors import UsageError
from mmtrain.eval.config import EVALUATORS
from mmtrain.plan.workload import Workload
from mmtrain.recipe import TrainRecipe
from mmtrain.tasks.answering import AnsweringTask
from mmtrain.tasks.answering_sections import AnsweringSections
from mmtrain.tasks.config import LossSection
from mmtrain.tasks.contrastive import ContrastiveTask
from mmtrain.tasks.contrastive_sections import ContrastiveSections
from mmtrain.tasks.dialogues import DialogueTask
from mmtrain.tasks.sections import Sections
from mmtrain.tasks.task import Shared, Task


def task_sections(recipe: TrainRecipe) -> Sections:
    """What the task's own sections say before there is data or a model."""
    if recipe.vqa is None:
        return ContrastiveSections(loss=recipe.loss)
    return AnsweringSections(vqa=recipe.vqa, vision=recipe.model.vision)


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
    build = AnsweringTask if recipe.vqa.dialogues is None else DialogueTask
    return build(shared, clip=model.clip, section=recipe.vqa, init=model.init)


def build_workload(recipe: TrainRecipe) -> Workload:
    """The workload of a recipe.

    Args:
        recipe: resolved; a classifier knows how many answers it has, a decoder its vocabulary.

    Raises:
        UsageError: a teacher is not there.
    """
    given: dict[str, Any] = {
        "clip": recipe.model.clip,
        "train": recipe.train,
        "optim": recipe.optim,
        "lock": recipe.lock,
        "parallel": recipe.parallel,
        "peft": recipe.peft,
    }
    if recipe.vqa is None:
        return Matching(**given, loss=recipe.loss, by_path=planned_teachers(recipe.loss))
    build = Answering if recipe.vqa.dialogues is None else Talking
    return build(**given, section=recipe.vqa)


def _refuse_evaluations(recipe: TrainRecipe, judges: str, why: str) -> None:
    for section, kind in EVALUATORS.items():
        if kind.judges == judges and getattr(recipe.eval, section):
            raise UsageError(f"[eval.{section}] {why}")
