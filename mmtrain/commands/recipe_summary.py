"""What `mmtrain summary` says of a recipe: the model that it plans, and what its phases cost."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from mmtrain.build.resolve import resolve, run_tokenizer
from mmtrain.build.tasks import task_sections
from mmtrain.build.workload import flops_by_phase, model_workload, phase_workloads
from mmtrain.loading.start import read_start
from mmtrain.models import Clip, ClipConfig
from mmtrain.models.flops import clip_flops
from mmtrain.models.vqa import Vqa
from mmtrain.recipe import TrainRecipe, load_recipe
from mmtrain.tasks.answering_sections import AnsweringSections
from mmtrain.train.utilisation import training_work


@dataclass(frozen=True, kw_only=True)
class PlannedModel:
    """What a recipe trains; one of `clip` and `answers` is there."""

    clip: ClipConfig | None = None
    """Two towers."""
    answers: Vqa | None = None
    """A model that answers, without values."""
    phases: tuple[str, ...] = ()
    """A line for each phase of the run of two towers, where it has some."""


def planned_model(path: Path) -> PlannedModel:
    """Of a recipe.

    Raises:
        UsageError: it cannot be read, or what it starts from.
    """
    recipe = load_recipe(path)
    if isinstance(task_sections(recipe), AnsweringSections):
        with torch.device("meta"):
            model = model_workload(recipe).whole_model()
        assert isinstance(model, Vqa), "of its own workload"
        return PlannedModel(answers=model)
    start = read_start(recipe.model.init, name=recipe.model.name)
    clip = resolve(recipe, run_tokenizer(recipe, start)).model.clip
    return PlannedModel(clip=clip, phases=tuple(_phases(recipe)))


def _phases(recipe: TrainRecipe) -> Iterator[str]:
    """What each phase of a recipe costs; nothing where it has none."""
    workload = model_workload(recipe)
    if not workload.train.phase:
        return
    with torch.device("meta"):
        model = workload.build_model()
    assert isinstance(model, Clip), "of its own workload"
    image, text = (
        training_work(tower, tower.transformer.blocks, embed=tower.embed)
        for tower in (model.vision, model.text)
    )
    ones = [
        clip_flops(part.clip, num_patches=part.clip.vision.num_kept)
        for part in phase_workloads(workload)
    ]
    flops = [image * one.image + text * one.text for one in ones]
    yield from flops_by_phase(workload, flops)
