"""What a run's steps cost in operations, for MFU and HFU."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from mmtrain.build.run import Run
from mmtrain.build.task_workloads import planned_teachers
from mmtrain.data.batch import ImageTextBatch
from mmtrain.errors import UsageError
from mmtrain.models import Clip
from mmtrain.models.flops import clip_flops, stack_flops
from mmtrain.nn import Transformer, TransformerConfig
from mmtrain.nn.flops import FlopCount
from mmtrain.parallel.recompute import RecomputeConfig, apply_recompute
from mmtrain.plan.teachers import PlannedTeacher
from mmtrain.ranks import num_ranks
from mmtrain.tasks.draws import vision_in
from mmtrain.train.utilisation import (
    RowFlops,
    Utilisation,
    peak_flops,
    training_work,
    wanted_blocks,
)


@dataclass(frozen=True, kw_only=True)
class _TowerWork:
    """A step on a tower, in its forwards."""

    needed: float
    """With the gradients that are asked for."""
    again: float
    """What a backward computes again, in forwards of its blocks."""
    core: TransformerConfig
    """Of its blocks."""

    def row(self, flops: float, *, num_tokens: int, passes: int) -> RowFlops:
        """Of so many FLOPs forward; of a tower of which nothing trains there is one pass."""
        model = self.needed * flops
        if self.needed == 1:
            return RowFlops(model=model, hardware=model)
        again = self.again * stack_flops(self.core, num_tokens)
        return RowFlops(model=model, hardware=model + (passes - 1) * flops + again)


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
    image, text = _works(model, run)
    visions = [vision_in(phase, config.vision) for phase in run.data.phases.phases]
    teachers = planned_teachers(run.recipe.loss).values()

    def flops(batch: ImageTextBatch) -> RowFlops:
        passes = run.state.objective.num_passes(run.state.schedule)
        vision = visions[batch.phase]
        num_tokens = vision.num_prefix + vision.num_kept
        own = replace(config, vision=vision)
        images = clip_flops(own, num_patches=vision.num_kept).image
        found = [image.row(images, num_tokens=num_tokens, passes=passes)]
        shares = [1.0]
        for length, rows in _text_lengths(batch, run, model.text.num_groups):
            num_tokens = length + config.text.num_context
            texts = clip_flops(own, text_length=num_tokens).text
            found.append(text.row(texts, num_tokens=num_tokens, passes=passes))
            shares.append(rows / batch.num_rows)
        taught = sum(_teacher_flops(one, batch.tokens_BT.size(1)) for one in teachers)
        each = [*zip(shares, found, strict=True)]
        return RowFlops(
            model=sum(share * one.model for share, one in each),
            hardware=sum(share * one.hardware for share, one in each) + taught,
        )

    return Utilisation(flops, peak=peak * num_ranks())


def _teacher_flops(teacher: PlannedTeacher, longest: int) -> float:
    """Of a row whose texts it reads about as long as the student."""
    text = teacher.config.text
    length = min(teacher.context_length, longest) if text.cuts_padding else text.context_length
    one = clip_flops(teacher.config, text_length=length)
    return one.image + one.text


def _text_lengths(batch: ImageTextBatch, run: Run, num_groups: int) -> Iterable[tuple[int, int]]:
    """How long the text tower takes texts, and of how many rows."""
    if num_groups == 1:
        return [(batch.tokens_BT.size(1), batch.num_rows)]
    return grouped_lengths(batch.text_length, run.state.schedule.num_microbatches, num_groups)


def grouped_lengths(
    length_B: Tensor, microbatches: int, num_groups: int
) -> Iterator[tuple[int, int]]:
    """The longest text and the rows of each group that a text tower makes of a batch."""
    for part in length_B.clamp(min=1).chunk(microbatches):
        for group in part.sort().values.chunk(num_groups):
            yield int(group[-1]), len(group)


def _works(model: Clip, run: Run) -> Iterator[_TowerWork]:
    """What a step computes of the image tower, and of the text tower."""
    recompute, early = run.recipe.parallel.recompute, run.layout.size("tp") == 1
    for tower, num_tokens in (
        (model.vision, model.config.vision.num_tokens),
        (model.text, model.config.text.context_length),
    ):
        core, blocks = tower.transformer.config, tower.transformer.blocks
        wanted = wanted_blocks(blocks, embed=tower.embed)
        again = sum(one for layer, one in enumerate(wanted) if layer % recompute.every == 0)
        share = 0.0
        if again and recompute.kind != "none":
            share = _share_again(core, recompute, num_tokens=num_tokens, early_stop=early)
            share *= again / len(blocks)
        needed = training_work(tower, blocks, embed=tower.embed)
        yield _TowerWork(needed=needed, again=share, core=core)


def _share_again(
    core: TransformerConfig, recompute: RecomputeConfig, *, num_tokens: int, early_stop: bool
) -> float:
    """The share of a block's products that its backward computes again, counted as it does: the
    last one of a block is not, where nothing asks for its result."""
    with FakeTensorMode():
        stack = Transformer(replace(core, num_layers=1))
        apply_recompute(stack, replace(recompute, every=1), early_stop=early_stop)
        x_BTD = torch.zeros(1, num_tokens, core.dim, requires_grad=True)
        mask = stack.build_mask(num_tokens, device=x_BTD.device)
        keep_BL2 = torch.ones(1, 1, 2) if core.stochastic_depth else None
        with FlopCount() as count:
            out = stack(x_BTD, mask=mask, keep_BL2=keep_BL2)
            forward = count.total
            out.sum().backward()
    return count.again / forward
