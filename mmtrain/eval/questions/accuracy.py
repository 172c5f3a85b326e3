"""How right answers are: the official VQAv2 accuracy with its quirks, EvalAI's, and exact match.

Goyal et al. 2017, arXiv:1612.00837; Antol et al. 2015, arXiv:1505.00468, section 5.
"""

from collections.abc import Sequence
from typing import Literal, get_args

from mmtrain.data.questions.wording import clean_whitespace, normalize_answer, normalize_textvqa

Mode = Literal["official", "evalai", "exact"]
MODES = get_args(Mode)


def vqa_accuracy(prediction: str, answers: Sequence[str], mode: Mode = "official") -> float:
    """The accuracy of one answer, within 0 and 1.

    `official`, the published evaluation: newlines and tabs become spaces; *only where the
    annotators do not all say the same* are punctuation, articles, numbers and contractions
    normalised, of both sides. Each annotator in turn is left out, and the prediction gets
    min(1, matches among the others / 3); the result is the mean. So 0, 1, 2, 3 and more matches of
    10 give 0, .3, .6, .9 and 1.

    `evalai`, the server: the same, but both sides are normalised in any case. `exact`: 1 where the
    normalised prediction is the normalised answer of any annotator.

    The official code leaves out by comparing whole annotations, which their `answer_id` makes
    distinct; here each counts by its place, which is the same.

    Raises:
        ValueError: there are no answers, or the mode is unknown.
    """
    if mode not in MODES:
        raise ValueError(f"mode = {mode!r} is unknown; use {', '.join(MODES)}")
    if not answers:
        raise ValueError("answers = () leave nothing to compare with")
    if mode == "exact":
        return float(normalize_answer(prediction) in {normalize_answer(a) for a in answers})
    said = clean_whitespace(prediction)
    right = [clean_whitespace(answer) for answer in answers]
    if mode == "evalai" or len(set(right)) > 1:
        said, right = normalize_answer(said), [normalize_answer(answer) for answer in right]
    return _leave_one_out(said, right)


def textvqa_accuracy(prediction: str, answers: Sequence[str], mode: Mode = "official") -> float:
    """The accuracy of one answer to TextVQA, within 0 and 1.

    `official`, the published rule (Singh et al. 2019, arXiv:1904.08920): each annotator in turn is
    left out, as VQAv2's, but both sides are normalised in any case, and by its own rules. `exact`:
    1 where it is the answer of any annotator.

    Raises:
        ValueError: there are no answers, or the mode is another one.
    """
    if mode not in ("official", "exact"):
        raise ValueError(f"mode = {mode!r} is VQAv2's; use official or exact")
    if not answers:
        raise ValueError("answers = () leave nothing to compare with")
    said, right = normalize_textvqa(prediction), [normalize_textvqa(one) for one in answers]
    return float(said in right) if mode == "exact" else _leave_one_out(said, right)


def _leave_one_out(said: str, right: Sequence[str]) -> float:
    """The mean over annotators of min(1, matches among the others / 3)."""
    matches = [answer == said for answer in right]
    total = sum(matches)
    # In thirds, which are whole: a sum of floats differs in its last bit from Python 3.12 on.
    return sum(min(3, total - match) for match in matches) / (3 * len(matches))
