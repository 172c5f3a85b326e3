"""What a recipe asks of the ranks that train it, for `mmtrain plan`."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from mmtrain.build.resolve import resolve, run_tokenizer
from mmtrain.build.tasks import build_workload, task_sections
from mmtrain.errors import UsageError
from mmtrain.loading.start import read_start
from mmtrain.plan.workload import Workload
from mmtrain.recipe import TrainRecipe
from mmtrain.tasks.draws import vision_in


def read_workload(recipe: TrainRecipe) -> Workload:
    """The workload of a recipe as it was read, with the tokenizer that its run would take.

    Raises:
        UsageError: an adapter has dropout or is cut by parallel.tp, the recipe contradicts its
            tokenizer, or the questions of a recipe with [vqa.classify], which fix its answers, are
            not there.
    """
    if recipe.peft is not None:
        if recipe.parallel.tp > 1:
            raise UsageError(
                f"plan counts no adapter in layers cut by parallel.tp = {recipe.parallel.tp}; set "
                "it to 1, or leave [peft] out for the plan of training all weights"
            )
        if recipe.peft.dropout:
            raise UsageError(
                f"plan counts no peft.dropout ({recipe.peft.dropout}), for which an adapted layer "
                "keeps its input once more; leave it out, or let mmtrain profile measure a step"
            )
    workload = model_workload(recipe)
    for name in ("vision", "text"):
        if (trunk := getattr(workload.clip, name).trunk) is not None:
            raise UsageError(
                f"plan counts what our blocks keep and send, and model.{name}.trunk ({trunk.kind}) "
                "has none; mmtrain profile measures a step"
            )
    return workload


def phase_workloads(workload: Workload) -> list[Workload]:
    """The workload of each phase of a run; of a run without phases the one that it is.

    Raises:
        UsageError: images that the vision tower cannot take.
    """
    if not workload.train.phase:
        return [workload]
    found = []
    for number, phase in enumerate(workload.train.phase):
        clip, text = workload.clip, workload.clip.text
        try:
            vision = vision_in(phase, clip.vision)
        except ValueError as error:
            raise UsageError(f"train.phase[{number}]: {error}") from error
        if phase.context_length is not None:
            text = replace(text, context_length=phase.context_length + text.num_context)
        own = {name: getattr(phase, name) for name in ("batch_size", "microbatches")}
        train = replace(
            workload.train, **{name: value for name, value in own.items() if value is not None}
        )
        found.append(replace(workload, clip=replace(clip, vision=vision, text=text), train=train))
    return found


def phase_samples(workload: Workload) -> list[int | None]:
    """Samples of each phase of a run; None where only the data say how many."""
    sizes = [phase.batch_size or workload.train.batch_size for phase in workload.train.phase]
    return [
        None if phase.epochs is not None else size * phase.num_steps(batch_size=size, per_epoch=0)
        for phase, size in zip(workload.train.phase, sizes, strict=True)
    ]


def flops_by_phase(workload: Workload, flops: Sequence[float]) -> Iterator[str]:
    """A line for each phase of a run: what a sample of it costs, and what of the run it is.

    Args:
        workload: of the whole run.
        flops: of a training step on one sample in each phase.
    """
    samples = phase_samples(workload)
    total = sum(one * num for one, num in zip(flops, samples, strict=True) if num is not None)
    for number, (phase, one, num) in enumerate(
        zip(workload.train.phase, flops, samples, strict=True)
    ):
        told = f"phase {number}: {one / 1e9:,.4g} GFLOPs to train on a sample"
        if num is None or None in samples:
            yield f"{told}, {phase.length}"
        else:
            part = one * num / total
            yield f"{told}, {num:,} samples: {one * num / 1e15:,.4g} PFLOPs, {part:.1%} of the run"


def model_workload(recipe: TrainRecipe) -> Workload:
    """The same of the model alone, an adapter beside it or not.

    Raises:
        UsageError: as `read_workload`.
    """
    start = read_start(recipe.model.init, name=recipe.model.name)
    tokenizer = run_tokenizer(recipe, start)
    recipe = resolve(recipe, tokenizer)
    return build_workload(replace(recipe, **task_sections(recipe).sizes(recipe.data, tokenizer)))
