"""What a task brings to a run; all else of a run is the same whatever it is trained for."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch.distributed as dist
from torch import Tensor

from mmtrain.data.config import DataConfig
from mmtrain.data.images.transforms import PreprocessConfig
from mmtrain.data.numbered import NumberedData
from mmtrain.data.phases import Phase
from mmtrain.data.text.tokenizer import Tokenizer
from mmtrain.errors import UsageError
from mmtrain.eval import Encoder
from mmtrain.loading.start import Start
from mmtrain.models import Clip
from mmtrain.models.vqa import Vqa
from mmtrain.parallel.mesh import Layout
from mmtrain.parallel.precision import Precision
from mmtrain.ranks import is_alone
from mmtrain.tasks.objective import Objective


@dataclass(frozen=True, kw_only=True)
class Shared:
    """What every task finds: the parts of a run that are not a task's."""

    data: DataConfig
    """The section [data]."""
    tokenizer: Tokenizer
    """Of the run."""
    preprocess: PreprocessConfig
    """What images go through."""
    start: Start | None
    """The model that the run starts from."""
    begun: bool = False
    """Whether all weights come from the run's own checkpoint; nothing is read of a start then."""
    kept: Path
    """The folder of the run that keeps what its start brought, where it has begun."""
    layout: Layout
    """The mesh."""
    seed: int
    """Of the run."""
    batch_size: int
    """Rows of a global batch."""
    phases: tuple[Phase, ...]
    """Of the run; none where it has none."""
    eval_batch_size: int
    """Rows per rank and forward of an evaluation."""
    eval_precision: Precision
    """Of its forward passes."""

    def batches(self) -> dict[str, Any]:
        """What every kind of data takes to deal a run's batches to this rank."""
        return {
            "preprocess": self.preprocess,
            "tokenizer": self.tokenizer,
            "seed": self.seed,
            "batch_size": self.batch_size,
            "phases": self.phases,
            "rank": self.layout.rank("dp"),
            "world_size": self.layout.size("dp"),
            "images": self.layout.is_first_stage,
            "pin_memory": self.layout.device.type == "cuda",
        }

    def evaluator(self) -> dict[str, Any]:
        """What every evaluator takes: the ranks share out the samples."""
        return {
            "tokenizer": self.tokenizer,
            "preprocess": self.preprocess,
            "device": self.layout.device,
            "batch_size": self.eval_batch_size,
            "precision": self.eval_precision,
            "workers": self.data.workers,
            "group": None if is_alone() else dist.group.WORLD,
        }


class Task(Protocol):
    """What is trained for. Made of its own sections of a recipe and of what all runs share."""

    @property
    def data(self) -> NumberedData[Any]:
        """Its batches."""
        ...

    @property
    def model(self) -> Clip | Vqa:
        """With its initial weights; the builder locks, adapts and lays it out."""
        ...

    def sections(self) -> Mapping[str, Any]:
        """Sections with what the data fixed in them filled in: what recipe.toml records."""
        ...

    def objective(self, *, lora_dropout: bool) -> Objective:
        """Its terms, once the model is laid out."""
        ...

    def learning_rates(self) -> Mapping[str, float]:
        """Peak learning rates of parameters, by the beginning of their names; others have
        optim.lr."""
        ...

    def check_adapted(self) -> None:
        """Refuse an adapter beside which something stays as it was drawn.

        Raises:
            UsageError: naming it.
        """
        ...

    def notes(self) -> tuple[str, ...]:
        """Where the recipe contradicts what the run starts from, in lines."""
        ...

    @property
    def judges(self) -> Literal["towers", "answers"]:
        """Which of the recipe's evaluations are of it."""
        ...

    def check_evaluation(self, config: Any) -> None:
        """What an evaluation asks of the model.

        Raises:
            UsageError: the model has it not.
        """
        ...

    def evaluator(self, weights: Mapping[str, Tensor]) -> Any:
        """The plain model with these weights, as evaluations take it; it has it as `model`."""
        ...

    def export(self, folder: Path, evaluator: Any) -> None:
        """Write the model in our form; on one rank."""
        ...

    def keep(self, folder: Path) -> None:
        """Write what a run that goes on without its start will need beside the tokenizer; on one
        rank."""
        ...

    def looks(self, evaluator: Any) -> Encoder | None:
        """What the report's page of attention maps is drawn with, on one rank; None: there is
        none."""
        ...

    @property
    def base(self) -> str:
        """The model that it starts from, for an adapter's folder."""
        ...


def copy_start(key: str, copy: Callable[[], None]) -> None:
    """Copy weights to start from; name the key where they do not fit."""
    try:
        copy()
    except ValueError as error:
        raise UsageError(f"{key}: {error}") from error
