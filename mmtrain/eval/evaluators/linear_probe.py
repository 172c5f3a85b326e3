"""A linear probe, as a recipe and a command have it."""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from mmtrain.eval.evaluators.labelled import ACCURACY, LabelledEvaluator
from mmtrain.settings.numbers import positive
from mmtrain.settings.paths import PathText

if TYPE_CHECKING:
    from mmtrain.data.images.transforms import PreprocessConfig
    from mmtrain.eval.classify.layouts import LabelledInputs
    from mmtrain.eval.encode import Encoder
    from mmtrain.eval.result import EvalResult


@dataclass(frozen=True, kw_only=True)
class LinearProbeConfig(LabelledEvaluator):
    """One linear probe of the image features."""

    train: PathText | tuple[PathText, ...]
    """What the classifier is fitted to, as the data of a zero-shot evaluation."""
    test: PathText | tuple[PathText, ...]
    """What the figures are about."""
    validation: PathText | tuple[PathText, ...] | None = None
    """What its regularisation is chosen on. None: one of ten training samples."""
    strengths: tuple[float, ...] | None = None
    """Values of C, scikit-learn's, to choose among; one is taken as it is. None: a search."""

    summary = "fit a linear classifier to the image features"
    sets = ("train", "test", "validation")
    reads_texts = False
    shown: ClassVar[Mapping[str, str]] = {**ACCURACY, "num_train": ",", "strength": "g"}

    def __post_init__(self) -> None:
        if self.strengths is not None and not (self.strengths and min(self.strengths) > 0):
            raise ValueError(
                f"strengths = {list(self.strengths)} must be positive numbers, at least one"
            )

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        """Also the strengths'."""
        super().add_options(parser)
        parser.add_argument(
            "--strengths",
            nargs="+",
            type=positive,
            metavar="C",
            help="values of C, scikit-learn's, to choose among; one is taken as it is (a search)",
        )

    def check(self, inputs: "LabelledInputs", preprocess: "PreprocessConfig") -> None:
        """Also whether there is enough to choose on."""
        from mmtrain.eval.classify.linear_probe import check_enough_to_hold_out, holds_out

        super().check(inputs, preprocess)
        if self.validation is None and holds_out(self.strengths):
            check_enough_to_hold_out(inputs.sources["train"].num_samples)

    def run(self, model: "Encoder", inputs: "LabelledInputs") -> "EvalResult":
        """`evaluate_linear_probe`."""
        from mmtrain.eval.classify.linear_probe import evaluate_linear_probe

        result = evaluate_linear_probe(
            model,
            **inputs.arguments,
            strengths=self.strengths,
            per_class=self.per_class,
            groups=self.groups,
        )
        return self.noted(result, inputs)
