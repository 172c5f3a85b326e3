"""An evaluation by questions, as a recipe and a command have it."""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from mmtrain.data.questions.rows import KNOWN_SETS
from mmtrain.data.sources.source import IMAGE_KEY
from mmtrain.errors import UsageError
from mmtrain.eval.evaluators.evaluator import Evaluator
from mmtrain.files import sha256_of
from mmtrain.settings.paths import PathText

if TYPE_CHECKING:
    from mmtrain.data.images.transforms import PreprocessConfig
    from mmtrain.data.sources.source import SampleSource
    from mmtrain.eval.questions.answerer import Answerer
    from mmtrain.eval.questions.gqa import Choices
    from mmtrain.eval.result import EvalResult

IMAGES = "the folder of images; without --questions, easy_vqa:test or shards of `data vqa`"


class VqaInputs(NamedTuple):
    """What an evaluation by questions reads."""

    source: "SampleSource"
    """Images with questions."""
    choices: "Choices | None"
    """GQA's."""


@dataclass(frozen=True, kw_only=True)
class VqaEvalConfig(Evaluator):
    """One evaluation by questions."""

    data: PathText | tuple[PathText, ...]
    """Images, as data.train takes them."""
    questions: PathText | None = None
    """The set's file of questions, as vqa.data.questions."""
    annotations: PathText | None = None
    """The file of answers of VQAv2 or OK-VQA."""
    choices: PathText | None = None
    """GQA's choices file, for validity and plausibility."""
    head: Literal["classify", "generate"] | None = None
    """classify or generate, of a model that has both. None: classify where it is there."""
    choose: Literal["letter", "text"] | None = None
    """Of multiple choice: take the option whose letter, or whose text, is likeliest. None: write an
    answer, in which the letter is looked for."""

    image_key: str = IMAGE_KEY
    """As data.image_key, of shards."""

    summary = "ask every question of a set"
    judges = "answers"
    shortest = ("accuracy",)

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        """Those of the set and of the head."""
        parser.add_argument("--data", nargs="+", required=True, metavar="DATA", help=IMAGES)
        add_question_files(parser)
        add_head(parser)
        parser.add_argument(
            "--choose",
            choices=("letter", "text"),
            help="of multiple choice: take the option whose letter (text) is likeliest "
            "(an answer is written, in which the letter is looked for)",
        )
        add_choices(parser)

    def open(self) -> VqaInputs:
        """The set, and GQA's choices."""
        from mmtrain.data.questions.source import open_questions
        from mmtrain.eval.questions.gqa import read_choices

        choices = None if self.choices is None else read_choices(Path(self.choices))
        source = open_questions(
            self.data,
            questions=self.questions,
            annotations=self.annotations,
            key="data",
            image_key=self.image_key,
        )
        return VqaInputs(source, choices)

    def identity(self, inputs: VqaInputs) -> dict[str, Any]:
        """The questions, their images and GQA's choices."""
        from mmtrain.eval.features.store import data_identity

        choices = None if self.choices is None else sha256_of(Path(self.choices))
        return {"data": data_identity(inputs.source), "choices": choices}

    def check(self, inputs: VqaInputs, preprocess: "PreprocessConfig") -> None:
        """Read some questions, which must have answers, and their images."""
        from mmtrain.data.questions.source import known_questions, refuse_unanswered
        from mmtrain.eval.questions.answering import read_asked
        from mmtrain.eval.questions.choosing import refuse_no_options
        from mmtrain.eval.questions.figures import check_judged
        from mmtrain.eval.trial import try_samples

        refuse_unanswered(inputs.source)
        for asked in try_samples(inputs.source, read_asked, preprocess, key="data"):
            if bare := [question for question in asked if not question.answers]:
                raise UsageError(
                    f"data: question {bare[0].question_id} has no answers; name a set that has them"
                )
        if known := known_questions(inputs.source):
            if self.choose is not None:
                refuse_no_options(known, self.choose)
            check_judged(known, "official", choices=inputs.choices)

    def run(self, model: "Answerer", inputs: VqaInputs) -> "EvalResult":
        """`evaluate_vqa`, by the head that is asked for."""
        from mmtrain.eval.questions.result import evaluate_vqa

        asked = replace(model, head=self.head, choose=self.choose)
        return evaluate_vqa(asked, inputs.source, choices=inputs.choices)


def add_question_files(parser: argparse.ArgumentParser, *, needed: bool = False) -> None:
    """--questions and --annotations.

    Args:
        parser: the command's.
        needed: whether there are no questions elsewhere.
    """
    of_package = ", or easy_vqa:test" if needed else ""
    parser.add_argument(
        "--questions",
        required=needed,
        metavar="FILE",
        help=f"questions of {KNOWN_SETS}{of_package}",
    )
    parser.add_argument(
        "--annotations", metavar="FILE", help="the file of answers of VQAv2 or OK-VQA"
    )


def add_head(parser: argparse.ArgumentParser) -> None:
    """--head."""
    parser.add_argument(
        "--head",
        choices=("classify", "generate"),
        help="choose among known answers or write one (what the model has)",
    )


def add_choices(parser: argparse.ArgumentParser) -> None:
    """--choices."""
    parser.add_argument(
        "--choices",
        type=Path,
        metavar="FILE",
        help="GQA's choices, for validity and plausibility",
    )
