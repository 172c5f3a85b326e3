"""`mmtrain data check` of questions about images."""

import sys
from dataclasses import dataclass

from mmtrain.data.questions.check import QuestionReport
from mmtrain.data.questions.source import brings_questions
from mmtrain.errors import FaultsFound
from mmtrain.settings.counted import counted

_MAX_NAMED = 100


@dataclass(frozen=True, kw_only=True)
class QuestionOptions:
    """Where questions are, as [vqa] says it."""

    questions: str | None = None
    """The set's file of questions."""
    annotations: str | None = None
    """The file of answers of VQAv2 or OK-VQA."""
    min_count: int | None = None
    """As vqa.min_count."""

    def is_set(self, data: tuple[str, ...]) -> bool:
        """Whether data and these are a set's own files."""
        brought = len(data) == 1 and brings_questions(data[0])
        return brought or self.questions is not None or self.annotations is not None


def tell_questions(report: QuestionReport) -> None:
    """Say which rows, answers and images cannot be used.

    Raises:
        FaultsFound: there are any.
    """
    for line in report.named[:_MAX_NAMED]:
        print(f"mmtrain: {line}", file=sys.stderr)
    num_bad = sum(report.reasons.values())
    if (more := num_bad - _MAX_NAMED) > 0:
        print(f"mmtrain: and {more:,} more", file=sys.stderr)
    told = (
        f"{counted(report.num_questions, 'question')} about {counted(report.num_images, 'image')}"
    )
    if not num_bad:
        print(f"{told}, all can be used")
        return
    print(f"{told} are well formed")
    reasons = ", ".join(f"{reason}: {count:,}" for reason, count in report.reasons.items())
    raise FaultsFound(f"{num_bad:,} rows, answers or images would not be used ({reasons})")
