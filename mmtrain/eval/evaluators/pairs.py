"""Hard negatives: whether an image lies nearer to its caption than to wrong ones made of it."""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from mmtrain.data.sample_error import SampleError
from mmtrain.data.sources.source import IMAGE_KEY
from mmtrain.eval.evaluators.evaluator import Evaluator, Texts
from mmtrain.eval.evaluators.options import add_data
from mmtrain.settings.paths import PathText

if TYPE_CHECKING:
    from torch import Tensor

    from mmtrain.data.images.transforms import PreprocessConfig
    from mmtrain.data.sources.source import SampleSource
    from mmtrain.eval.encode import Encoder
    from mmtrain.eval.result import EvalResult

_NUM_EXAMPLES = 10
_BLOCK = 4096
"""Images whose captions' features are held side by side."""


@dataclass(frozen=True, kw_only=True)
class PairsConfig(Evaluator):
    """One choice between a caption and hard negatives of it."""

    data: PathText | tuple[PathText, ...]
    """As data.train; a manifest of SugarCrepe's form will do."""
    caption: str = "caption"
    """Where the right caption is: a column or field of the .json, or txt for the .txt member."""
    negatives: tuple[str, ...] = ("negative_caption",)
    """Where the wrong ones are; each a text or a list of texts."""
    image_key: str = IMAGE_KEY
    """As data.image_key."""

    summary = "choose each image's caption against wrong ones made of it"
    texts = "captions"
    shortest = ("accuracy",)
    shown: ClassVar[Mapping[str, str]] = {
        "accuracy": ".2%",
        "chance": ".2%",
        "num_samples": ",",
        "num_negatives": ",",
    }

    def __post_init__(self) -> None:
        if not self.negatives:
            raise ValueError("negatives = [] must name one field at least")

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        """Those of the data and of where the texts are."""
        add_data(parser, "--data")
        parser.add_argument(
            "--caption",
            default=cls.caption,
            metavar="NAME",
            help="column or field with the right caption (%(default)s)",
        )
        parser.add_argument(
            "--negatives",
            nargs="+",
            default=[*cls.negatives],
            metavar="NAME",
            help="columns or fields with the wrong ones (negative_caption)",
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
        """Read some images and their texts."""
        from mmtrain.eval.trial import try_samples

        try_samples(inputs, self._read, preprocess, key="data")

    def read_texts(self, inputs: "SampleSource") -> Texts:
        """The right caption of each image."""
        return Texts(inputs, self._read.right, (self.caption,))

    @property
    def _read(self) -> "ReadPair":
        return ReadPair(caption=self.caption, negatives=self.negatives)

    def run(self, model: "Encoder", inputs: "SampleSource") -> "EvalResult":
        """Accuracy: the share of images whose caption scores above all its negatives; an equal
        score is not above. Hsieh et al. 2023, arXiv:2306.14610 (SugarCrepe), Sec. 3."""
        import torch

        from mmtrain.eval.encode import encode_texts
        from mmtrain.eval.examples import pick_examples
        from mmtrain.eval.features.gathered import encode_set
        from mmtrain.eval.outcomes import Outcome, sample_names
        from mmtrain.eval.result import EvalResult, provenance

        names = (self.caption, *self.negatives)
        images_NE, pairs = encode_set(model, inputs, self._read, names=names)
        distinct = list(dict.fromkeys(text for pair in pairs for text in pair))
        scores_NK = _scores(images_NE, encode_texts(model, distinct), pairs, distinct)
        right_N1, wrong_NJ = scores_NK.split([1, scores_NK.size(1) - 1], dim=1)
        is_wrong_N = (wrong_NJ >= right_N1).any(1)
        best, worst = pick_examples(
            model,
            inputs,
            is_wrong_N.long(),  # its place against the best of the wrong ones
            right_N1[:, 0] - wrong_NJ.amax(1),
            num=_NUM_EXAMPLES,
            samples=range(len(pairs)),
            describe=lambda i: (
                pairs[i][0],
                pairs[i][1 + int(wrong_NJ[i].argmax())] if is_wrong_N[i] else pairs[i][0],
            ),
            num_candidates=2,
        )
        figures = {
            "accuracy": int((~is_wrong_N).sum()) / len(pairs),
            "chance": sum(1 / len(pair) for pair in pairs) / len(pairs),
            "num_samples": len(pairs),
            "num_negatives": sum(len(pair) - 1 for pair in pairs),
            "caption": self.caption,
            "negatives": list(self.negatives),
            **provenance(model, inputs),
        }
        outcomes = tuple(
            Outcome(
                metric="accuracy",
                id=name,
                image=name,
                score=float(not is_wrong),
                wanted=pair[0],
                said=pair[first],
            )
            for name, pair, is_wrong, first in zip(
                sample_names(inputs, range(len(pairs))),
                pairs,
                is_wrong_N.tolist(),
                torch.where(is_wrong_N, 1 + wrong_NJ.argmax(1), 0).tolist(),
                strict=True,
            )
        )
        return EvalResult(figures=figures, best=best, worst=worst, outcomes=outcomes)


def _scores(
    images_NE: "Tensor", texts_UE: "Tensor", pairs: list[tuple[str, ...]], distinct: list[str]
) -> "Tensor":
    """Cosines of each image with its texts, the right one first, on CPU: [N, K]. Short rows are
    filled up with their first negative, which changes no maximum."""
    import torch

    number, most = {text: row for row, text in enumerate(distinct)}, max(map(len, pairs))
    rows = [[number[text] for text in (*pair, *[pair[1]] * most)][:most] for pair in pairs]
    scores_NK = images_NE.new_empty(len(rows), most)
    for start in range(0, len(rows), _BLOCK):
        some = slice(start, start + _BLOCK)
        scores_NK[some] = (images_NE[some, None] * texts_UE[torch.tensor(rows[some])]).sum(2)
    return scores_NK.cpu()


class ReadPair(NamedTuple):
    """Sample -> its right caption, then its wrong ones."""

    caption: str
    """Where the right one is."""
    negatives: tuple[str, ...]
    """Where the wrong ones are."""

    def __call__(self, members: dict[str, bytes]) -> tuple[str, ...]:
        """Raises SampleError when the caption or every negative is missing, or one is the
        caption."""
        right = self.right(members)
        wrong = [
            text for name in self.negatives for text in _texts(members, name, setting="negatives")
        ]
        if not wrong:
            raise SampleError(f"it has no negative in {', '.join(self.negatives)}")
        if right in wrong:
            raise SampleError(f"a negative is its caption itself: {right!r}")
        return (right, *wrong)

    def right(self, members: dict[str, bytes]) -> str:
        """The right caption. Raises SampleError when there is none, or several."""
        found = _texts(members, self.caption, setting="caption")
        if len(found) != 1:
            raise SampleError(f"its {self.caption} holds {len(found)} captions, not one")
        return found[0]


def _texts(members: dict[str, bytes], name: str, *, setting: str) -> list[str]:
    """The texts of a member or field; blank ones are none."""
    from mmtrain.eval.samples import read_text_field

    value = read_text_field(members, name, setting=setting)
    texts = value if isinstance(value, list) else [value]
    if not all(isinstance(text, str) for text in texts):
        raise SampleError(f"its {name} is neither a text nor a list of texts")
    return [text.strip() for text in texts if text.strip()]
