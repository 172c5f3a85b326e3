"""What a step needs on a rank beside weights and moments, when it needs the most."""

from collections.abc import Callable, Mapping, Sequence

import torch

from mmtrain.losses import block_shape
from mmtrain.parallel.mesh import Layout
from mmtrain.parallel.pipeline import interleaves, num_stages
from mmtrain.plan.kept import StageMemory
from mmtrain.plan.order import Action
from mmtrain.plan.ranks import held_stages
from mmtrain.plan.stages import StageRun, attention_of
from mmtrain.plan.teachers import TeacherMemory, teacher_memory
from mmtrain.plan.workload import Workload

_FLOAT = 4


Held = Callable[[int], int]
"""Bytes that lie on a rank of so many bytes of whole gradients that a step has made so far."""


def step_memory(
    workload: Workload,
    layout: Layout,
    runs: Sequence[StageRun],
    order: Sequence[Action],
    *,
    rows: int,
    passes: int,
    gradients: Held,
) -> int:
    """Bytes on a rank at the fullest moment of a step: its stages' activations, the pipeline's
    buffers, the batch, the loss and the gradients so far.

    Args:
        workload: what trains.
        layout: whose rank it is.
        runs: of all stages, in order.
        order: what the rank does in a step.
        rows: of a microbatch.
        passes: 2 where the features are computed without gradients first.
        gradients: what counts of them.
    """
    held = held_stages(layout)
    last = (num_stages(layout) if layout.size("pp") > 1 else 1) - 1
    microbatches = workload.train.microbatches
    always = _batch(workload, rows * microbatches, images=0 in held)
    for index in held:
        # Tokens that come in have a buffer for every microbatch of each pass, gradients one.
        always += passes * microbatches * runs[index].received
        always += microbatches * runs[index].handed_on if index < last else 0
    memories = {index: runs[index].memory for index in held}
    sent = dict.fromkeys(held, 0)
    if layout.size("pp") > 1 and interleaves(layout):
        # torch waits for what these schedules send at the end of a step only.
        for index in held:
            sent[index] += runs[index].handed_on if index < last and index + 1 not in held else 0
            sent[index] += runs[index].received if index - 1 not in held else 0
    teachers = workload_teachers(workload, layout, rows=rows * microbatches)
    always += teachers.features
    during_loss = loss = 0
    if workload.comparisons and last in held:
        by_parts = runs[last].text is not None
        at_once = rows if by_parts else rows * microbatches
        loss, features = _batch_loss(workload, layout, rows=rows * microbatches, images=at_once)
        during_loss = always + features + loss
        if passes == 2 or by_parts:
            always += 2 * features
        else:
            during_loss += memories[last].kept
    if (text := runs[0].text) is not None:
        # All texts first; their graph stays for the end, after the last part of the images.
        order = [*(Action(1, "F", i) for i in range(microbatches)), *order]
        order += [Action(1, "B", i) for i in range(microbatches)]
        memories[1], sent[1] = text, 0
        always += loss
    given = _batch(workload, rows * microbatches, images=0 in held)
    return max(
        given + teachers.forward,
        during_loss,
        always + fullest(order, memories, sent, gradients),
    )


def workload_teachers(workload: Workload, layout: Layout, *, rows: int) -> TeacherMemory:
    """Of the rank that is looked at, which has so many rows of a batch."""
    size, runs = workload.clip.vision.image_size, 0 in held_stages(layout)
    with attention_of(workload.train.device):
        return teacher_memory(workload.teachers, rows=rows, image_size=size, runs=runs)


def fullest(
    order: Sequence[Action],
    memories: Mapping[int, StageMemory],
    sent: Mapping[int, int],
    gradients: Held,
) -> int:
    """The most bytes that a rank's stages need at a time.

    Args:
        order: what the rank does in a step.
        memories: of its stages.
        sent: of what a stage sends for a microbatch, the bytes that stay to the end of the step.
        gradients: what counts of the weights' gradients, which the first backward makes.
    """
    held = peak = made = 0
    begun: set[int] = set()
    for action in order:
        one = memories[action.stage]
        split = one.split if action.work in ("I", "W") else None
        if action.work == "F":
            peak = max(peak, held + gradients(made) + one.forward)
            held += one.kept
        elif action.work == "W" and split is None:
            pass  # all was done with the inputs
        elif action.work == "I" and split is not None:
            peak = max(peak, held - one.kept + gradients(made) + split.inputs)
            held += sent[action.stage] + split.waits - one.kept
        else:
            needs = gradients(made) + (one.backward if split is None else split.weights)
            if action.stage not in begun:
                begun.add(action.stage)
                moments = one.first_backward
                if split is not None:
                    moments = ((split.weights, one.gradients),)
                needs = max(most + gradients(made + new) for most, new in moments)
                made += one.gradients
            before = one.kept if split is None else split.waits
            peak = max(peak, held - before + needs)
            held -= before
            held += sent[action.stage] if split is None else 0
    return peak


def _batch(workload: Workload, rows: int, *, images: bool) -> int:
    """The rank's share of a batch: bytes of images where they are decoded, ids of texts."""
    pixels = workload.images_per_row * 3 * workload.clip.vision.image_size**2
    return rows * (8 * workload.num_ids + images * pixels)


def _batch_loss(workload: Workload, layout: Layout, *, rows: int, images: int) -> tuple[int, int]:
    """What the loss needs beside the features of this rank's rows, and those.

    Of each comparison its own copy of them and all ranks' texts stay, or its gradients; blocks of
    logits, of so many images at a time, and the gradients that it makes are there while it runs.
    """
    item = _FLOAT * (2 if workload.train.precision == "fp64" else 1)
    columns = rows * layout.size("dp")
    device = torch.device("cpu" if workload.train.device == "cpu" else "cuda")
    block_rows, block_columns = block_shape(images, columns, device)
    kept = most = 0
    for one in workload.comparisons:
        row, others = item * one.width, columns if layout.size("dp") > 1 else 0
        passing = one.blocks * item * block_rows * block_columns
        passing += row * (rows + columns) + 2 * row * rows
        stays = 2 * row * rows * (1 + one.copied) + row * others
        if (teacher := one.teacher_width) is not None:
            # Copies of the teacher's features, and both models' images times their multiplier.
            passing += _FLOAT * teacher * (3 * rows + others) + row * (rows + others)
            stays = 2 * row * rows
        kept += stays
        most = max(most, passing)
    return kept + most, 2 * item * workload.comparisons[0].width * rows
