"""The recipe's section [eval]: its fields are the list of evaluators."""

from dataclasses import dataclass, fields
from typing import Literal

from mmtrain.eval.evaluators.associations import AssociationsConfig
from mmtrain.eval.evaluators.evaluator import Evaluator
from mmtrain.eval.evaluators.knn import KnnConfig
from mmtrain.eval.evaluators.linear_probe import LinearProbeConfig
from mmtrain.eval.evaluators.pairs import PairsConfig
from mmtrain.eval.evaluators.retrieval import RetrievalConfig
from mmtrain.eval.evaluators.vqa import VqaEvalConfig
from mmtrain.eval.evaluators.zero_shot import ZeroShotConfig
from mmtrain.eval.forward_size import FAST_BATCH
from mmtrain.settings.describe import annotations, section_in


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """What is evaluated during and after training, over all ranks."""

    every: int | None = None
    """Steps between evaluations. None: only at the end."""
    fast: bool = False
    """Forwards of batch_size samples, on which the last digits of a result then depend. False: of
    64, and every result is the same to the bit whatever the batch size, ranks and workers."""
    batch_size: int = FAST_BATCH
    """Samples per rank and forward, where fast = true."""
    precision: Literal["fp32", "bf16", "tf32"] = "fp32"
    """Of the forward passes, whatever train.precision is: bf16 is autocast, tf32 is of GPUs. A
    result says which."""
    zero_shot: tuple[ZeroShotConfig, ...] = ()
    """Zero-shot evaluations."""
    retrieval: tuple[RetrievalConfig, ...] = ()
    """Retrieval evaluations."""
    linear_probe: tuple[LinearProbeConfig, ...] = ()
    """Linear probes of the image features."""
    knn: tuple[KnnConfig, ...] = ()
    """Classifications by nearest training images."""
    pairs: tuple[PairsConfig, ...] = ()
    """Choices between captions and hard negatives of them."""
    associations: tuple[AssociationsConfig, ...] = ()
    """Choices of the images that a word goes with."""
    vqa: tuple[VqaEvalConfig, ...] = ()
    """Evaluations by questions, where there is a [vqa] section."""

    @property
    def all(self) -> tuple[Evaluator, ...]:
        """Every evaluation, a kind after the other."""
        return tuple(one for section in EVALUATORS for one in getattr(self, section))

    @property
    def running(self) -> tuple[str, ...]:
        """What `mmtrain eval` takes to run a model as this section does."""
        fast = ("--fast", "--batch-size", str(self.batch_size)) if self.fast else ()
        return fast if self.precision == "fp32" else ("--precision", self.precision, *fast)

    def of(self, judged: Literal["towers", "answers"]) -> tuple[Evaluator, ...]:
        """Those of one sort of model."""
        return tuple(one for one in self.all if one.judges == judged)


def _evaluators() -> dict[str, type[Evaluator]]:
    kinds = {f.name: section_in(annotations(EvalConfig)[f.name])[0] for f in fields(EvalConfig)}
    return {section: kind for section, kind in kinds.items() if kind is not None}


EVALUATORS = _evaluators()
"""Every evaluator by its section, such as zero_shot; its command is zero-shot."""


def command_of(config: type[Evaluator]) -> str:
    """The word behind `mmtrain eval`."""
    (section,) = (section for section, kind in EVALUATORS.items() if kind is config)
    return section.replace("_", "-")
