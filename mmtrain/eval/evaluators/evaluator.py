"""What an evaluator is: a section of a recipe, which its command's options fill in just as well.

A new one is a file in this folder and a field of `mmtrain.eval.config.EvalConfig`; the recipe's
section `[[eval.NAME]]`, the command `mmtrain eval NAME`, the try before a training, the evaluations
during it and the line that repeats one come from there.

These files are read to show help, so what computes is imported where it is called: torch takes
seconds.
"""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

if TYPE_CHECKING:
    from mmtrain.data.images.transforms import PreprocessConfig
    from mmtrain.data.sources.source import SampleSource
    from mmtrain.eval.result import EvalResult


class Texts(NamedTuple):
    """Images with a text each, for a page that shows both."""

    source: "SampleSource"
    """The images."""
    read_text: Callable[[dict[str, bytes]], str]
    """A sample's files -> its text; raises SampleError where it has none."""
    names: tuple[str, ...]
    """The files or fields that `read_text` looks at."""


@dataclass(frozen=True, kw_only=True)
class Evaluator:
    """One evaluation of a model."""

    name: str
    """Names the result: eval/NAME.json."""

    summary: ClassVar[str]
    """What the command does, in a line of help."""
    judges: ClassVar[Literal["towers", "answers"]] = "towers"
    """What it is about: an Encoder's two towers, or an Answerer's answers to questions."""
    reads_texts: ClassVar[bool] = True
    """Of two towers the text tower is asked too; if not, a model that answers has features too."""
    shortest: ClassVar[tuple[str, ...]]
    """The figures that say the result shortest, all of them shares."""
    shown: ClassVar[Mapping[str, str]]
    """The figures that the command prints, each with its format."""
    texts: ClassVar[Literal["captions", "class names"] | None] = None
    """What stands beside an image in its data, which `read_texts` finds. None: nothing."""

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        """Add an option for each field but `name` and `image_key`, to which it is a place."""
        raise NotImplementedError

    def open(self) -> Any:
        """What `check` and `run` read.

        Raises:
            UsageError: something is not there, or does not fit.
        """
        raise NotImplementedError

    def identity(self, inputs: Any) -> dict[str, Any]:
        """What `inputs` are, in words that change when a result of them would.

        Args:
            inputs: what `open` gave.
        """
        raise NotImplementedError

    def check(self, inputs: Any, preprocess: "PreprocessConfig") -> None:
        """Try what a run would need hours later: a handful of samples, and numbers that fit them.

        Args:
            inputs: what `open` gave.
            preprocess: what images go through.

        Raises:
            UsageError: `run` would fail.
        """
        raise NotImplementedError

    def run(self, model: Any, inputs: Any) -> "EvalResult":
        """Judge a model over all ranks -> the same result on each.

        Args:
            model: what is judged, see `judges`.
            inputs: what `open` gave.

        Raises:
            UsageError: on every rank, as of the evaluation itself.
        """
        raise NotImplementedError

    def read_texts(self, inputs: Any) -> Texts:
        """The images of `inputs` and the text of each, where there are `texts`."""
        raise NotImplementedError

    def remark(self, figures: Mapping[str, Any]) -> str:
        """What the command says below the figures; empty: nothing."""
        del figures
        return ""
