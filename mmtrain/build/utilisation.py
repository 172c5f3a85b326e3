"""What a run's steps cost in operations, for MFU and HFU."""

from dataclasses import replace

from mmtrain.build.run import Run
from mmtrain.data.batch import ImageTextBatch
from mmtrain.errors import UsageError
from mmtrain.models import Clip
from mmtrain.models.flops import clip_flops
from mmtrain.ranks import num_ranks
from mmtrain.tasks.draws import vision_in
from mmtrain.train.utilisation import RowFlops, Utilisation, peak_flops, training_work


def build_utilisation(run: Run) -> Utilisation | None:
    """What says MFU and HFU of two towers; None where a device's peak is not known."""
    given, device = run.recipe.run.peak_tflops, run.layout.device
    peak = peak_flops(device, precision=run.recipe.train.precision, peak_tflops_given=given)
    model = run.task.model
    if peak is None or not isinstance(model, Clip):
        if given is not None:
            raise UsageError(
                f"run.peak_tflops = {given} has no effect: the FLOPs of a recipe with [vqa] are "
                "not counted as it trains; mmtrain profile counts them"
            )
        return None
    config = model.config
    towers = (model.vision, model.text)
    works = [training_work(tower, tower.transformer.blocks) for tower in towers]
    visions = [vision_in(phase, config.vision) for phase in run.data.phases.phases]

    def flops(batch: ImageTextBatch) -> RowFlops:
        passes = run.state.objective.num_passes(run.state.schedule)
        again = [
            passes - 1 + (run.recipe.parallel.recompute.forwards_again if work > 1 else 0)
            for work in works
        ]
        vision = visions[batch.phase]
        one = clip_flops(
            replace(config, vision=vision),
            text_length=batch.tokens_BT.size(1),
            num_patches=vision.num_kept,
        )
        both = (one.image, one.text)
        needed = sum(work * each for work, each in zip(works, both, strict=True))
        more = sum(times * each for times, each in zip(again, both, strict=True))
        return RowFlops(model=needed, hardware=needed + more)

    return Utilisation(flops, peak=peak * num_ranks())
