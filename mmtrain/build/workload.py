"""What a recipe asks of the ranks that train it, for `mmtrain plan`."""

from dataclasses import replace

from mmtrain.build.resolve import resolve, run_tokenizer
from mmtrain.build.tasks import build_workload, task_sections
from mmtrain.errors import UsageError
from mmtrain.loading.start import read_start
from mmtrain.plan.workload import Workload
from mmtrain.recipe import TrainRecipe


def read_workload(recipe: TrainRecipe) -> Workload:
    """The workload of a recipe as it was read, with the tokenizer that its run would take.

    Raises:
        UsageError: an adapter trains, the recipe contradicts its tokenizer, or the questions of a
            recipe with [vqa.classify], which fix its answers, are not there.
    """
    if recipe.peft is not None:
        raise UsageError(
            "plan counts no adapter, and the recipe has a section [peft]; without it the plan is "
            "of training all weights"
        )
    return model_workload(recipe)


def model_workload(recipe: TrainRecipe) -> Workload:
    """The same of the model alone, an adapter beside it or not.

    Raises:
        UsageError: as `read_workload`.
    """
    start = read_start(recipe.model.init, name=recipe.model.name)
    tokenizer = run_tokenizer(recipe, start)
    recipe = resolve(recipe, tokenizer)
    return build_workload(replace(recipe, **task_sections(recipe).sizes(recipe.data, tokenizer)))
