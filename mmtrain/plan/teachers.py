"""What a model that is learnt from takes on the ranks that have images."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch._subclasses import FakeTensorMode

from mmtrain.models import Clip, ClipConfig
from mmtrain.plan.kept import LiveBytes
from mmtrain.tasks.terms.distill import teacher_features

_FLOAT = 4


@dataclass(frozen=True, kw_only=True)
class PlannedTeacher:
    """A frozen model whose outputs are further rows of a batch."""

    config: ClipConfig
    """Its shape."""
    context_length: int
    """Ids that it takes of a text."""
    image_size: int
    """That it takes images in."""
    autocasts: bool
    """Whether its products are bf16."""

    def features(self, rows: int) -> int:
        """Bytes of its features of so many images and their texts."""
        return 2 * rows * self.config.embed_dim * _FLOAT


@dataclass(frozen=True, kw_only=True)
class TeacherMemory:
    """Bytes of all teachers on a rank."""

    weights: int = 0
    features: int = 0
    """Of the batch; they stay for the step."""
    forward: int = 0
    """At most while one of them runs, with its features."""


def teacher_memory(
    teachers: Sequence[PlannedTeacher], *, rows: int, image_size: int, runs: bool
) -> TeacherMemory:
    """Run each without memory on the whole of a rank's batch.

    Args:
        teachers: of the terms.
        rows: of the rank's batch.
        image_size: of the student's crops.
        runs: whether the rank has images; others are only given the features.
    """
    features = sum(teacher.features(rows) for teacher in teachers)
    if not runs:
        return TeacherMemory(features=features)
    weights, forward, before = 0, 0, 0
    for teacher in teachers:
        size, most = _run(teacher, rows=rows, image_size=image_size)
        weights += size
        forward = max(forward, before + most)
        before += teacher.features(rows)
    return TeacherMemory(weights=weights, features=features, forward=forward)


def _run(teacher: PlannedTeacher, *, rows: int, image_size: int) -> tuple[int, int]:
    """Bytes of its weights, and the most beside them while it runs."""
    with FakeTensorMode(), torch.no_grad():
        model = Clip(teacher.config).eval()
        images = torch.zeros(rows, 3, image_size, image_size, dtype=torch.uint8)
        with (
            LiveBytes([*model.parameters(), *model.buffers(), images]) as live,
            torch.autocast("cpu", torch.bfloat16, enabled=teacher.autocasts),
        ):
            teacher_features(
                model,
                images_BCHW=images,
                tokens_BT=torch.zeros(rows, teacher.context_length, dtype=torch.int64),
                length_B=torch.full((rows,), teacher.context_length),
                image_size=teacher.image_size,
            )
        return sum(p.nbytes for p in model.state_dict().values()), live.peak
