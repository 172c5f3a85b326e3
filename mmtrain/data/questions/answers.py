"""The answers that a classifier chooses among, and how right each of them is."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from mmtrain.data.members import json_fields
from mmtrain.data.questions.question import Question, questions_from_json
from mmtrain.data.questions.wording import normalize_answer, normalize_textvqa
from mmtrain.data.sample_error import SampleError
from mmtrain.data.sources.source import SampleSource
from mmtrain.errors import UsageError


def compared_form(question: Question, answer: str) -> str:
    """An answer as the question's official evaluation compares it: GQA's and letters as they are,
    else normalised."""
    if question.form in ("gqa", "scienceqa", "choice"):
        return answer
    return normalize_textvqa(answer) if question.form == "textvqa" else normalize_answer(answer)


def answer_scores(question: Question) -> dict[str, float]:
    """What each answer, in the form that is compared, would score: its official accuracy where
    there are several annotators, 1 where there is one answer.

    With n of k annotators behind it, an answer meets n - 1 others in n of the k leave-one-out sets
    and n in the rest (Goyal et al. 2017, arXiv:1612.00837); for k = 10 that is 0.3, 0.6, 0.9, 1.
    """
    counts = Counter(compared_form(question, answer) for answer in question.answers)
    total = counts.total()
    if total == 1:
        return dict.fromkeys(counts, 1.0)
    return {
        answer: (n * min(1.0, (n - 1) / 3) + (total - n) * min(1.0, n / 3)) / total
        for answer, n in counts.items()
    }


@dataclass(frozen=True, kw_only=True)
class AnswerVocabulary:
    """The answers of a classifier, in the order of its logits."""

    answers: tuple[str, ...]
    """In the form that is compared, the most frequent first."""

    def __post_init__(self) -> None:
        if not self.answers:
            raise ValueError("answers = () leaves nothing to choose from")

    def ids(self) -> dict[str, int]:
        """The place of each answer."""
        return {answer: place for place, answer in enumerate(self.answers)}


def build_vocabulary(questions: Iterable[Question], *, min_count: int) -> AnswerVocabulary:
    """The answers that are the most frequent one of at least `min_count` questions.

    Teney et al. 2017, arXiv:1708.02711, section 3.2; 9 on VQAv2's train and val leave about 3,100.

    Raises:
        ValueError: no answer is so frequent.
        UsageError: there is none at all.
    """
    counts: Counter[str] = Counter()
    for question in questions:
        given = Counter(compared_form(question, answer) for answer in question.answers)
        if given:
            counts[given.most_common(1)[0][0]] += 1
    if not counts:
        raise UsageError(
            "data.train: none of its questions has an answer; name a split that has some"
        )
    kept = [(answer, n) for answer, n in counts.items() if n >= min_count]
    if not kept:
        raise ValueError(
            f"min_count = {min_count}: no answer is that of so many questions; lower it"
        )
    return AnswerVocabulary(
        answers=tuple(answer for answer, _ in sorted(kept, key=lambda pair: (-pair[1], pair[0])))
    )


def ceiling(questions: Iterable[Question], vocabulary: AnswerVocabulary) -> float:
    """The mean score of whoever always chooses the best answer of the vocabulary."""
    known = set(vocabulary.answers)
    best = [
        max((score for a, score in answer_scores(q).items() if a in known), default=0.0)
        for q in questions
    ]
    return sum(best) / len(best)


def every_question(
    source: SampleSource, samples: Iterable[int] | None = None
) -> Iterator[Question]:
    """All questions of a source, or of some samples; of those that cannot be used none."""
    for sample in range(source.num_samples) if samples is None else samples:
        try:
            yield from questions_from_json(json_fields(source.read(sample, {"json"}).get("json")))
        except (SampleError, ValueError):
            continue
