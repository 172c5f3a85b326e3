"""Retrieval, as a recipe and a command have it."""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from mmtrain.data.sources.source import IMAGE_KEY
from mmtrain.eval.evaluators.evaluator import Evaluator, Texts
from mmtrain.eval.evaluators.options import add_data
from mmtrain.settings.paths import PathText

if TYPE_CHECKING:
    from mmtrain.data.images.transforms import PreprocessConfig
    from mmtrain.data.sources.source import SampleSource
    from mmtrain.eval.encode import Encoder
    from mmtrain.eval.result import EvalResult


@dataclass(frozen=True, kw_only=True)
class RetrievalConfig(Evaluator):
    """One retrieval evaluation."""

    data: PathText | tuple[PathText, ...]
    """Shards, as data.train takes them."""
    captions: tuple[str, ...] = ("txt",)
    """Where captions are: the .txt member or fields of the .json."""
    caption_lines: bool | None = None
    """true: every line of a text is a caption, as in CLIP benchmark's shards. false: the whole text
    is one. None: a text of several lines is refused, since it may be either."""
    image_key: str = IMAGE_KEY
    """As data.image_key."""

    summary = "find captions by image and images by caption"
    texts = "captions"
    shortest = ("i2t_recall@1", "t2i_recall@1")
    shown: ClassVar[Mapping[str, str]] = {
        **{f"{way}_recall@{k}": ".2%" for way in ("i2t", "t2i") for k in (1, 5, 10)},
        "num_images": ",",
        "num_texts": ",",
    }

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        """Those of the data and their captions."""
        add_data(parser, "--data")
        parser.add_argument(
            "--captions",
            nargs="+",
            default=[*cls.captions],
            metavar="NAME",
            help="where captions are: txt for the .txt member, else a field of the .json (txt)",
        )
        lines = parser.add_mutually_exclusive_group()
        lines.add_argument(
            "--caption-lines",
            action="store_true",
            default=None,
            help="every line of a text is a caption, as in CLIP benchmark's shards",
        )
        lines.add_argument(
            "--one-caption",
            dest="caption_lines",
            action="store_false",
            default=None,
            help="a text of several lines is one caption (it is refused)",
        )

    def open(self) -> "SampleSource":
        """The data."""
        from mmtrain.data.sources.open import open_source

        return open_source(self.data, image_key=self.image_key, key="data")

    def identity(self, inputs: "SampleSource") -> dict[str, Any]:
        """The samples."""
        from mmtrain.eval.features.store import data_identity

        return {"data": data_identity(inputs)}

    def check(self, inputs: "SampleSource", preprocess: "PreprocessConfig") -> None:
        """Read some images and their captions."""
        from mmtrain.eval.captions import ReadCaptions
        from mmtrain.eval.trial import try_samples

        read_captions = ReadCaptions(fields=self.captions, lines=self.caption_lines)
        try_samples(inputs, read_captions, preprocess, key="data")

    def run(self, model: "Encoder", inputs: "SampleSource") -> "EvalResult":
        """`evaluate_retrieval`."""
        from mmtrain.eval.retrieval import evaluate_retrieval

        return evaluate_retrieval(
            model, data=inputs, captions=self.captions, caption_lines=self.caption_lines
        )

    def read_texts(self, inputs: "SampleSource") -> Texts:
        """The first caption of each image."""
        from mmtrain.eval.captions import FirstCaption, ReadCaptions

        read_captions = ReadCaptions(fields=self.captions, lines=self.caption_lines)
        return Texts(inputs, FirstCaption(read_captions=read_captions), self.captions)

    def remark(self, figures: Mapping[str, Any]) -> str:
        """Which reading of the data the figures are of."""
        names = ("min_captions", "max_captions", "num_images")
        least, most, images = (figures[name] for name in names)
        told = f"{least}" if least == most else f"{least} to {most}"
        told = f"{told} caption{'s' if most > 1 else ''} an image"
        if (different := figures["num_different_images"]) < images:
            told += (
                f"; only {different:,} of {images:,} images differ, and each counts on its own: "
                "give the captions of one image to one sample"
            )
        return told
