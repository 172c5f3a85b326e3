"""Zero-shot classification, as a recipe and a command have it."""

import argparse
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mmtrain.eval.evaluators.evaluator import Texts
from mmtrain.eval.evaluators.labelled import LabelledEvaluator
from mmtrain.settings.paths import PathText

if TYPE_CHECKING:
    from mmtrain.eval.classify.layouts import LabelledInputs
    from mmtrain.eval.encode import Encoder
    from mmtrain.eval.result import EvalResult


@dataclass(frozen=True, kw_only=True)
class ZeroShotConfig(LabelledEvaluator):
    """One zero-shot evaluation."""

    data: PathText | tuple[PathText, ...]
    """Shards, or another source of data.train; a layout may name its classes and prompts."""
    templates: PathText | None = None
    """Prompt templates by name (name, simple, imagenet) or a file, one a line. None: the data's
    own, or name."""

    summary = "classify images by the names of their classes"
    sets = ("data",)
    texts = "class names"

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        """Also the prompts'."""
        super().add_options(parser)
        parser.add_argument(
            "--templates",
            metavar="NAME|FILE",
            help="prompts: name, simple, imagenet, or a file with one a line (the data's own, or "
            "name)",
        )

    def open(self) -> "LabelledInputs":
        """Also read the prompts: a typo must not wait for the model."""
        from mmtrain.eval.classify.prompts import load_templates

        inputs = super().open()
        load_templates(self._prompts(inputs))
        return inputs

    def identity(self, inputs: "LabelledInputs") -> dict[str, Any]:
        """Also the prompts."""
        from mmtrain.eval.classify.prompts import load_templates

        return {**super().identity(inputs), "prompts": load_templates(self._prompts(inputs))}

    def run(self, model: "Encoder", inputs: "LabelledInputs") -> "EvalResult":
        """`evaluate_zero_shot`."""
        from mmtrain.eval.classify.zero_shot import evaluate_zero_shot

        prompts = self._prompts(inputs)
        result = evaluate_zero_shot(
            model,
            **inputs.arguments,
            templates=prompts,
            per_class=self.per_class,
            groups=self.groups,
        )
        return self.noted(result, inputs)

    def read_texts(self, inputs: "LabelledInputs") -> Texts:
        """The class of each image."""
        from mmtrain.eval.classify.classification import ReadName

        read_name = ReadName(read_class=inputs.read_class, names=inputs.classes.names)
        return Texts(inputs.sources["data"], read_name, (inputs.label_key,))

    def _prompts(self, inputs: "LabelledInputs") -> str | tuple[str, ...]:
        from mmtrain.eval.classify.prompts import DEFAULT_TEMPLATES

        return self.templates or inputs.templates or DEFAULT_TEMPLATES
