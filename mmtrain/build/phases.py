"""Whether the phases of a recipe can be trained here, and be gone on with."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmtrain.build.tasks import task_sections
from mmtrain.data.phases import LENGTHS, Phase, Phases
from mmtrain.errors import UsageError
from mmtrain.models import VisionConfig
from mmtrain.parallel.mesh import Layout
from mmtrain.recipe import TrainRecipe
from mmtrain.settings.decode import decode
from mmtrain.train.config import TrainConfig, total_steps
from mmtrain.train.resume import Change
from mmtrain.train.step import check_microbatches

_SHAPES = ("batch_size", "microbatches", "patch_dropout", "image_size", "context_length")
"""What changes the shapes of a step."""
_OWN = ("train.phase", "train.steps", "train.epochs")
"""Keys that say how long a run is, and in which phases."""


def check_phases(recipe: TrainRecipe, phases: Phases, layout: Layout) -> None:
    """Refuse a phase that cannot be trained on this layout.

    Args:
        recipe: resolved.
        phases: of it, laid out.
        layout: the mesh.

    Raises:
        UsageError: naming the phase's key and what it does not fit.
    """
    if not phases.are_given:
        return
    if recipe.model.init_training:
        raise UsageError(
            "model.init_training = true goes on where another training stopped, which had no "
            "[[train.phase]]; leave out one of them"
        )
    for number, phase in enumerate(phases.phases):
        key, train = f"train.phase[{number}]", recipe.train
        _refuse_other_towers(key, recipe.train.phase[number], recipe)
        has_own = phase.microbatches is not None
        check_microbatches(
            (f"{key}: microbatches", phase.microbatches or 1)
            if has_own
            else ("train.microbatches", train.microbatches),
            (phases.size_keys[number], phases.sizes.parts[number].batch_size),
            layout=layout,
        )
        if layout.size("pp") > 1:
            _refuse_other_shapes(key, phase, phases.phases[0], layout)


def phase_notes(recipe: TrainRecipe, phases: Phases) -> Iterator[str]:
    """That the last phase is not of what the model is used with."""
    last, vision = phases.phases[-1], recipe.model.vision
    length = recipe.model.text.max_ids
    for name, value, whole in (
        ("image_size", last.image_size, vision.image_size),
        ("context_length", last.context_length, length),
    ):
        if phases.are_given and value != whole:
            yield (
                f"the last phase has {name} = {value}, and the model is used with "
                f"{whole}: a short phase of that behind it is worth its samples"
            )


def _refuse_other_towers(key: str, phase: Phase, recipe: TrainRecipe) -> None:
    """Refuse images or texts of another size where the towers cannot take them."""
    vision, text = recipe.model.vision, recipe.model.text
    size, length = phase.image_size, phase.context_length
    if size not in (None, vision.image_size) and vision.positions in ("sinusoidal", "rope"):
        raise UsageError(
            f'{key}: image_size = {size}: model.vision.positions = "{vision.positions}" counts '
            "patches row by row, so that one of another size would have other places; use "
            '"learned", "rope_2d" or "none", or one image size'
        )
    if vision.trunk is not None and phase.patch_dropout:
        raise UsageError(
            f"{key}: patch_dropout = {phase.patch_dropout}: model.vision.trunk sees whole images; "
            "leave it out"
        )
    why = task_sections(recipe).why_one_size
    if why is not None and size not in (None, vision.image_size):
        raise UsageError(f"{key}: image_size = {size}: {why}; leave it out")
    if length is None or length == text.max_ids:
        return
    if why is None and text.num_context:
        why = "learned vectors of [peft] stand in the texts"
    elif why is None and not text.cuts_padding:
        why = "this text tower sees its padding, and texts are padded to all of it"
    if why is not None:
        raise UsageError(f"{key}: context_length = {length}: {why}; leave it out")


def _refuse_other_shapes(key: str, phase: Phase, first: Phase, layout: Layout) -> None:
    for name in _SHAPES:
        value, before = getattr(phase, name), getattr(first, name)
        if value != before:
            raise UsageError(
                f"{key}: {name} = {value}, but a pipeline (parallel.pp = {layout.size('pp')}) "
                f"fixes all shapes in its first step, with {name} = {before}; use the same in all "
                "phases, or parallel.pp = 1"
            )


def told_changes(
    changes: Sequence[Change],
    recipe: TrainRecipe,
    *,
    saved: Mapping[str, Any],
    data: Any,
    step: int,
    path: Path,
) -> list[Change]:
    """The changes without those that only say the same phases in other words.

    Args:
        changes: from `find_changes`.
        recipe: this run's, resolved.
        saved: the checkpoint's recipe.
        data: of the run, which lay phases out.
        step: of the checkpoint.
        path: the checkpoint, for messages.

    Raises:
        UsageError: steps behind would be of another phase.
    """
    if not any(change.key == "train.phase" for change in changes):
        return list(changes)
    train = decode(TrainConfig, saved["train"], path="train")
    now, before = data.phases, data.lay_out(train.phase, batch_size=train.batch_size)
    lengths = [
        phases.total_steps or total_steps(config, data)
        for phases, config in ((before, train), (now, recipe.train))
    ]
    vision = recipe.model.vision
    for first, (old, new) in _differences(before, now, vision, until=step):
        raise UsageError(
            f"train.phase: step {first + 1} has {new} now, but {path} was saved behind {step} "
            f"steps, of which that one had {old}: phases that are done, and the beginning of the "
            "one that is under way, must stay; change those ahead, or start a new run in another "
            "--run-dir"
        )
    until = max(lengths)
    is_same = lengths[0] == lengths[1] and not any(_differences(before, now, vision, until=until))
    return [change for change in changes if not (is_same and change.key in _OWN)]


def _differences(
    before: Phases, now: Phases, vision: VisionConfig, *, until: int
) -> list[tuple[int, tuple[str, str]]]:
    """Steps below `until` where a phase of either begins and what they say differs."""
    firsts = sorted({first for first in (*before.firsts, *now.firsts) if first < until})
    told = [(first, (_told(before, first, vision), _told(now, first, vision))) for first in firsts]
    return [(first, pair) for first, pair in told if pair[0] != pair[1]]


def _told(phases: Phases, step: int, vision: VisionConfig) -> str:
    """What a step is of, where it is not free."""
    phase = phases.at(step)
    found = {
        name: value for name, value in vars(phase).items() if name not in (*LENGTHS, "microbatches")
    }
    if found["patch_dropout"] is None:
        found["patch_dropout"] = vision.patch_dropout
    return ", ".join(f"{name} = {value:g}" for name, value in found.items())
