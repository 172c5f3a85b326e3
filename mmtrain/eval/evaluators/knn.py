"""Classification by nearest training images, as a recipe and a command have it."""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from mmtrain.errors import UsageError
from mmtrain.eval.evaluators.labelled import ACCURACY, LabelledEvaluator
from mmtrain.settings.numbers import at_least, positive
from mmtrain.settings.paths import PathText

if TYPE_CHECKING:
    from mmtrain.data.images.transforms import PreprocessConfig
    from mmtrain.eval.classify.layouts import LabelledInputs
    from mmtrain.eval.encode import Encoder
    from mmtrain.eval.result import EvalResult


@dataclass(frozen=True, kw_only=True)
class KnnConfig(LabelledEvaluator):
    """One classification by nearest training images."""

    train: PathText | tuple[PathText, ...]
    """The images that vote, as the data of a zero-shot evaluation."""
    test: PathText | tuple[PathText, ...]
    """What the figures are about."""
    neighbours: int = 20
    """How many vote."""
    temperature: float | None = 0.07
    """A vote weighs exp(cosine / temperature). None: all weigh the same."""

    summary = "classify images by their nearest training images"
    sets = ("train", "test")
    reads_texts = False
    shown: ClassVar[Mapping[str, str]] = {**ACCURACY, "num_train": ","}

    def __post_init__(self) -> None:
        if self.neighbours < 1:
            raise ValueError(f"neighbours = {self.neighbours} must be at least 1")
        if self.temperature is not None and self.temperature <= 0:
            raise ValueError(
                f'temperature = {self.temperature} must be above 0; or "none", for equal votes'
            )

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        """Also the votes'."""
        super().add_options(parser)
        parser.add_argument(
            "--neighbours",
            type=at_least(1),
            default=cls.neighbours,
            metavar="K",
            help="voters (%(default)s)",
        )
        weights = parser.add_mutually_exclusive_group()
        weights.add_argument(
            "--temperature",
            type=positive,
            default=cls.temperature,
            metavar="T",
            help="a vote weighs exp(cosine / T) (%(default)s)",
        )
        weights.add_argument(
            "--equal-votes",
            action="store_const",
            dest="temperature",
            const=None,
            help="all votes weigh the same",
        )

    def check(self, inputs: "LabelledInputs", preprocess: "PreprocessConfig") -> None:
        """Also whether so many can vote."""
        super().check(inputs, preprocess)
        most = inputs.sources["train"].num_samples
        if self.neighbours > most:
            raise UsageError(
                f"neighbours = {self.neighbours} must be 1 to {most}, the training images"
            )

    def run(self, model: "Encoder", inputs: "LabelledInputs") -> "EvalResult":
        """`evaluate_knn`."""
        from mmtrain.eval.classify.knn import evaluate_knn

        result = evaluate_knn(
            model,
            **inputs.arguments,
            neighbours=self.neighbours,
            temperature=self.temperature,
            per_class=self.per_class,
            groups=self.groups,
        )
        return self.noted(result, inputs)
