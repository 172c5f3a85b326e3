"""What a layout is judged by: a model, what comes with its images, and how it trains."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from mmtrain.errors import UsageError
from mmtrain.models import Clip, ClipConfig
from mmtrain.models.parameters import LockConfig
from mmtrain.models.vqa import Vqa
from mmtrain.optim.config import OptimConfig
from mmtrain.parallel.mesh import Layout, ParallelConfig
from mmtrain.peft import PeftConfig
from mmtrain.plan.teachers import PlannedTeacher
from mmtrain.tasks.terms.term import Comparison
from mmtrain.train.adapting import adapt, lock_parts
from mmtrain.train.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Workload(ABC):
    """What a run asks of its ranks; a task makes one of its sections."""

    clip: ClipConfig
    """The towers' shapes."""
    train: TrainConfig
    """Batch, microbatches, number format and device."""
    optim: OptimConfig
    """What an update keeps of every weight."""
    lock: LockConfig
    """What does not train."""
    parallel: ParallelConfig
    """The layout asked for."""
    peft: PeftConfig | None = None
    """The adapter that trains, whatever it starts from."""

    @property
    @abstractmethod
    def num_ids(self) -> int:
        """Token ids that come with an image."""

    @property
    @abstractmethod
    def comparisons(self) -> tuple[Comparison, ...]:
        """What the loss compares over the whole batch. Nothing: each row has a loss of its own."""

    @property
    def images_per_row(self) -> int:
        """That go through the tower: pieces of images, where they are cut."""
        return 1

    def with_images(self, num: int) -> "Workload":
        """The same of rows with so many images each.

        Raises:
            UsageError: a row has one.
        """
        raise UsageError(f"--images {num} is of dialogues ([vqa.dialogues]); leave it out")

    @property
    def row_told(self) -> str:
        """What is counted as a row, in words."""
        return "texts at full length"

    @property
    def sums_over_images(self) -> bool:
        """Whether one pass does that has all texts and takes the images by microbatch."""
        return False

    @property
    def teachers(self) -> tuple[PlannedTeacher, ...]:
        """Models that are learnt from."""
        return ()

    @abstractmethod
    def rows(self, num_images: int) -> dict[str, Tensor]:
        """What every stage is given beside so many images, as the task's objective makes it: ids
        and lengths of texts at full length, random choices."""

    @abstractmethod
    def prepare(self, model: Any, stages: Sequence[Any], layout: Layout) -> None:
        """Give the stages what the task gives them before a step, in place."""

    @abstractmethod
    def whole_model(self) -> Clip | Vqa:
        """The model on torch's present device; all of it trains."""

    def build_model(self) -> Clip | Vqa:
        """The model on torch's present device, locked parts frozen, or all but its adapter.

        Raises:
            UsageError: what is locked or adapted is not there.
        """
        model = self.whole_model()
        lock_parts(model, self.lock)
        if self.peft is not None:
            # An adapter of peft.init is of the very shape that is trained.
            adapt(model, replace(self.peft, init=None), seed=0)
        return model
