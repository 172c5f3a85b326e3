"""What a recipe is in each of its phases: a plain one, for whatever judges or counts plain ones."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from mmtrain.data.phases import Phase
from mmtrain.errors import UsageError
from mmtrain.recipe import TrainRecipe
from mmtrain.tasks.draws import vision_in

_KEYS = {
    "batch_size": "train.batch_size",
    "microbatches": "train.microbatches",
    "image_size": "model.vision.image_size",
}


@dataclass(frozen=True, kw_only=True)
class PhaseRecipe:
    """A recipe as it is in one of its phases, or in all of the run where it has none."""

    recipe: TrainRecipe
    """Without phases, and with steps of the phase where that says them."""
    number: int | None
    """Of the phase; None: the recipe has none."""
    phase: Phase | None
    """As the recipe has it."""

    def key(self, name: str) -> str:
        """The setting that says how large something is in it."""
        if self.phase is None or getattr(self.phase, name) is None:
            return _KEYS[name]
        return f"train.phase[{self.number}]: {name}"


def phase_recipes(recipe: TrainRecipe) -> Iterator[PhaseRecipe]:
    """The recipe in each of its phases.

    Args:
        recipe: resolved.

    Raises:
        UsageError: images that the vision tower cannot take.
    """
    if not recipe.train.phase:
        yield PhaseRecipe(recipe=recipe, number=None, phase=None)
        return
    for number, phase in enumerate(recipe.train.phase):
        try:
            vision = vision_in(phase, recipe.model.vision)
        except ValueError as error:
            raise UsageError(f"train.phase[{number}]: {error}") from error
        text, length = recipe.model.text, phase.context_length
        if length is not None:
            text = replace(text, context_length=length + text.num_context)
        own = {name: getattr(phase, name) for name in ("batch_size", "microbatches")}
        train = replace(
            recipe.train,
            phase=(),
            steps=_steps(phase, recipe),
            **{name: value for name, value in own.items() if value is not None},
        )
        model = replace(recipe.model, vision=vision, text=text)
        whole = replace(recipe, model=model, train=train)
        yield PhaseRecipe(recipe=whole, number=number, phase=phase)


def _steps(phase: Phase, recipe: TrainRecipe) -> int:
    """Its updates; 1 where only the data say how many."""
    size = phase.batch_size or recipe.train.batch_size
    return max(1, phase.num_steps(batch_size=size, per_epoch=0))
