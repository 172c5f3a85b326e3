"""Associations: which of several images a word goes with."""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from mmtrain.data.sources.source import IMAGE_KEY
from mmtrain.eval.evaluators.evaluator import Evaluator
from mmtrain.eval.evaluators.options import add_data
from mmtrain.files import sha256_of
from mmtrain.settings.paths import PathText

if TYPE_CHECKING:
    from mmtrain.data.images.transforms import PreprocessConfig
    from mmtrain.data.sources.source import SampleSource
    from mmtrain.eval.associations import Association
    from mmtrain.eval.encode import Encoder
    from mmtrain.eval.result import EvalResult


class AssociationInputs(NamedTuple):
    """What an evaluation by associations reads."""

    source: "SampleSource"
    """The images."""
    asked: "tuple[Association, ...]"
    """Words, each with its images by their numbers in the source."""


@dataclass(frozen=True, kw_only=True)
class AssociationsConfig(Evaluator):
    """One evaluation by associations."""

    data: PathText | tuple[PathText, ...]
    """The images, a folder of them or as data.train; each is known by its file's name."""
    cues: PathText
    """WinoGAViL's table (.csv), or rows of the same fields (.jsonl): a cue, the names of the images
    that it is asked about (candidates) and of those that it goes with (associations)."""
    image_key: str = IMAGE_KEY
    """As data.image_key."""

    summary = "choose the images that a word goes with (WinoGAViL)"
    shortest = ("jaccard",)
    shown: ClassVar[Mapping[str, str]] = {
        "jaccard": ".2%",
        "chance": ".2%",
        "num_samples": ",",
        "num_images": ",",
    }

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        """Those of the images and of the words."""
        add_data(parser, "--data")
        parser.add_argument(
            "--cues",
            required=True,
            metavar="FILE",
            help="WinoGAViL's .csv, or .jsonl of cue, candidates and associations, names of images",
        )

    def open(self) -> AssociationInputs:
        """The images and the words."""
        from mmtrain.data.sources.open import open_source
        from mmtrain.eval.associations import read_associations

        source = open_source(self.data, image_key=self.image_key, key="data")
        return AssociationInputs(source, read_associations(Path(self.cues), source))

    def identity(self, inputs: AssociationInputs) -> dict[str, Any]:
        """The images and the words."""
        from mmtrain.eval.features.store import data_identity

        return {"data": data_identity(inputs.source), "cues": sha256_of(Path(self.cues))}

    def check(self, inputs: AssociationInputs, preprocess: "PreprocessConfig") -> None:
        """Read some images."""
        from mmtrain.eval.trial import try_samples

        try_samples(inputs.source, lambda _: None, preprocess, key="data")

    def run(self, model: "Encoder", inputs: AssociationInputs) -> "EvalResult":
        """`evaluate_associations`."""
        from mmtrain.eval.associations import evaluate_associations

        return evaluate_associations(model, inputs.source, inputs.asked)

    def remark(self, figures: Mapping[str, Any]) -> str:
        """By the number of candidates."""
        told = [
            f"{name.replace('jaccard_', '').replace('_', ' to ')} candidates {figures[name]:.2%}"
            for name in ("jaccard_5_6", "jaccard_10_12")
            if name in figures
        ]
        return ", ".join(told)
