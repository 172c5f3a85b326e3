"""What evaluators by classes have in common."""

import argparse
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

from mmtrain.data.sources.source import IMAGE_KEY
from mmtrain.eval.evaluators.evaluator import Evaluator
from mmtrain.eval.evaluators.options import add_data
from mmtrain.settings.paths import PathText

if TYPE_CHECKING:
    from mmtrain.data.images.transforms import PreprocessConfig
    from mmtrain.eval.classify.layouts import LabelledInputs

ACCURACY: Mapping[str, str] = {
    "top1": ".2%",
    "top5": ".2%",
    "mean_class_top1": ".2%",
    "num_samples": ",",
    "num_classes": ",",
}


@dataclass(frozen=True, kw_only=True)
class LabelledEvaluator(Evaluator):
    """One evaluation by classes."""

    classes: PathText | None = None
    """imagenet, or a file: a JSON list of {"id", "name"} or of names, a .txt of names. None: the
    data name them."""
    label_key: str | None = None
    """Shards: the member, such as cls, or field of the .json with the class id. None: concept."""
    image_key: str = IMAGE_KEY
    """As data.image_key."""
    per_class: bool = False
    """Also list the accuracy of every class."""

    sets: ClassVar[tuple[str, ...]]
    """The fields that name data."""
    shortest = ("top1", "top5")
    shown = ACCURACY

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        """Those of the data and of their classes."""
        needed = {field.name for field in fields(cls) if field.default is MISSING}
        for name in cls.sets:
            add_data(parser, f"--{name}", required=name in needed)
        parser.add_argument(
            "--classes",
            metavar="NAME|FILE",
            help='imagenet, or a JSON list of {"id", "name"} or of names whose ids are their '
            "places from 0, or a .txt of names; shards need it, other layouts name their classes "
            "themselves",
        )
        parser.add_argument(
            "--label-key",
            metavar="KEY",
            help="shards: the member, such as cls, or field of the .json with the class id "
            "(concept)",
        )
        parser.add_argument(
            "--per-class", action="store_true", help="list every class's accuracy too"
        )

    def open(self) -> "LabelledInputs":
        """The sets, all with the same classes."""
        from mmtrain.eval.classify.layouts import open_labelled

        named = {name: getattr(self, name) for name in self.sets}
        return open_labelled(
            {name: data for name, data in named.items() if data is not None},
            classes=self.classes,
            label_key=self.label_key,
            image_key=self.image_key,
        )

    def identity(self, inputs: "LabelledInputs") -> dict[str, Any]:
        """The samples and their classes."""
        from mmtrain.eval.features.store import data_identity

        sets = {name: data_identity(source) for name, source in inputs.sources.items()}
        return {**sets, "classes": inputs.classes.fingerprint, "label_key": inputs.label_key}

    def check(self, inputs: "LabelledInputs", preprocess: "PreprocessConfig") -> None:
        """Read some images of each set and their classes."""
        from mmtrain.eval.trial import try_samples

        for name, source in inputs.sources.items():
            try_samples(source, inputs.read_class, preprocess, key=name)
