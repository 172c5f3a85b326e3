"""Choosing among a question's options by their likelihood, in place of writing an answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from mmtrain.data.dialogues.dialogue import Turn
from mmtrain.data.questions.letters import LETTERS
from mmtrain.data.questions.options import options_of
from mmtrain.data.questions.question import Question
from mmtrain.data.questions.wording import normalize_answer, normalize_textvqa
from mmtrain.errors import UsageError
from mmtrain.eval.questions.answerer import Answerer, Choose
from mmtrain.eval.questions.asking import Reply, choice_logits
from mmtrain.eval.questions.reading import as_asked, read_rows
from mmtrain.eval.questions.seeing import Seen
from mmtrain.parallel.precision import autocast

_SIDE_BY_SIDE = 128
"""Answers of one's own that are read at once: each has a copy of what was read before it."""


@dataclass(frozen=True, kw_only=True)
class Likelihood:
    """Of tokens that follow a question."""

    log_prob: float
    """The sum over the tokens."""
    num_tokens: int
    """How many there are."""
    is_greedy: bool
    """Whether each is the likeliest one."""


def refuse_no_options(questions: Sequence[Question], choose: Choose) -> None:
    """Nothing to choose among.

    Raises:
        UsageError: a question has no options.
    """
    if bare := [one.question_id for one in questions if not options_of(one)]:
        raise UsageError(
            f"choose = {choose}: {len(bare)} of {len(questions)} questions have no options, the "
            f"first is question_id {bare[0]}; leave it out, or name a set of multiple choice"
        )


@torch.no_grad()
def choose_options(
    answerer: Answerer,
    seen: Seen,
    asked: Sequence[tuple[int, str]],
    questions: Sequence[Question],
) -> list[Reply]:
    """The likeliest option's letter for each question, and how likely among them.

    A letter's likelihood is that of its tokens; a text's the mean over its tokens and the end
    token, since options differ in length. Each question is computed by itself behind its image, so
    that no other one changes a bit.

    Args:
        answerer: the model, which writes.
        seen: the images.
        asked: the number of each question's image, and its text.
        questions: with their options.

    Raises:
        UsageError: a question has no options, or they cannot be written.
    """
    assert answerer.chosen_head == "generate", "others are refused"
    seen = replace(seen, is_fixed=False)  # a row by itself has its own shape: nothing fills it up
    chosen: list[Reply] = []
    for (image, text), question in zip(asked, questions, strict=True):
        ids = _written(answerer, question)
        try:
            found = likelihoods(answerer, seen, text, ids, image=image)
        except ValueError as error:
            told = f"choose = {answerer.choose}: question_id {question.question_id}"
            raise UsageError(f"{told}: {error}") from error
        by_text = answerer.choose == "text"
        scores = torch.tensor([one.log_prob / (one.num_tokens if by_text else 1) for one in found])
        best = int(scores.argmax())
        chosen.append(Reply(LETTERS[best], float(scores.softmax(0)[best])))
    return chosen


def longest_reply(answerer: Answerer, question: Question) -> int:
    """Tokens that there must be room for behind a question: of an answer that is written, or of
    the longest of the options that are judged.

    Raises:
        UsageError: as `choose_options`.
    """
    if answerer.choose is None:
        return answerer.answer_length
    return max(map(len, _written(answerer, question)))


def _written(answerer: Answerer, question: Question) -> list[list[int]]:
    """The tokens by which each option is judged.

    Raises:
        UsageError: it has no options, or the tokenizer writes two of their letters alike.
    """
    by, tokenizer = answerer.choose, answerer.tokenizer
    assert by is not None, "nobody asks otherwise"
    refuse_no_options([question], by)
    told = f"choose = {by}: question_id {question.question_id}"
    options = options_of(question)
    if by == "letter":
        ids = [tokenizer.reply_ids(letter) for letter in LETTERS[: len(options)]]
        if len({tuple(some) for some in ids}) < len(ids):
            raise UsageError(f"{told}: the tokenizer writes two of its letters alike; use text")
        return ids
    try:
        return _whole_ids(answerer, options)
    except UsageError as error:
        raise UsageError(f"{told}: {error}; use letter") from error


def _whole_ids(answerer: Answerer, texts: Sequence[str]) -> list[list[int]]:
    """The tokens of whole answers, the end token last.

    Raises:
        UsageError: one is longer than any text of the model.
    """
    tokenizer = answerer.tokenizer
    if cut := [text for text in texts if tokenizer.is_cut(text)]:
        raise UsageError(f"{cut[0][:40]!r} is longer than any text of the model")
    assert tokenizer.eot_id is not None, "a model that writes has one"
    return [[*tokenizer.reply_ids(text), tokenizer.eot_id] for text in texts]


@torch.no_grad()
def choose_among(
    answerer: Answerer,
    seen: Seen,
    text: str,
    answers: Sequence[str],
    *,
    earlier: Sequence[Turn] = (),
) -> list[Reply]:
    """Answers of one's own to a question about one image, the likeliest first: how likely each is
    among them alone.

    What is written is judged by the mean log-probability of its tokens and the end token, as an
    option's text; of a classifier it is the part of its own probability.

    Args:
        answerer: the model.
        seen: the image.
        text: the question.
        answers: no two the same.
        earlier: the turns before it, of a model that reads dialogues.

    Raises:
        UsageError: one cannot be judged, or two are the same to the model.
    """
    if answerer.chosen_head == "classify":
        places = _places(answerer, answers)
        # Not of the probabilities: all of them may be too small for a number, and 0 / 0 is none.
        scores_A = choice_logits(answerer, seen, [(0, text)])[0][places].double()
    else:
        ids = _whole_ids(answerer, answers)
        _refuse_alike(dict(zip(answers, map(tuple, ids), strict=True)))
        if bare := [answer for answer, some in zip(answers, ids, strict=True) if len(some) == 1]:
            raise UsageError(f"the answer {bare[0][:40]!r} has no words that the model writes")
        found = [
            one
            for first in range(0, len(ids), _SIDE_BY_SIDE)
            for one in likelihoods(
                answerer, seen, text, ids[first : first + _SIDE_BY_SIDE], earlier=earlier
            )
        ]
        means = [one.log_prob / one.num_tokens for one in found]
        scores_A = torch.tensor(means, dtype=torch.float64)
    replies = [
        Reply(answer, float(share))
        for answer, share in zip(answers, scores_A.softmax(0), strict=True)
    ]
    return [replies[int(place)] for place in scores_A.argsort(descending=True, stable=True)]


def _places(answerer: Answerer, answers: Sequence[str]) -> list[int]:
    """Those of a classifier's answers."""
    assert answerer.vocabulary is not None, "a classifier has answers"
    known = answerer.vocabulary.ids()
    places: dict[str, int] = {}
    for answer in answers:
        forms = (answer, normalize_answer(answer), normalize_textvqa(answer))
        place = next((known[form] for form in forms if form in known), None)
        if place is None:
            raise UsageError(
                f"{answer[:40]!r} is none of the {len(known):,} answers that the model chooses "
                "among; leave it out"
            )
        places[answer] = place
    _refuse_alike(places)
    return list(places.values())


def _refuse_alike(known_as: Mapping[str, Any]) -> None:
    first: dict[Any, str] = {}
    for answer, key in known_as.items():
        if (other := first.setdefault(key, answer)) != answer:
            raise UsageError(f"{other[:40]!r} and {answer[:40]!r} are one answer; keep one of them")


@torch.no_grad()
def likelihoods(
    answerer: Answerer,
    seen: Seen,
    text: str,
    ids: Sequence[Sequence[int]],
    *,
    image: int = 0,
    earlier: Sequence[Turn] = (),
) -> list[Likelihood]:
    """How likely each of several continuations of one question is.

    Args:
        answerer: the model, which writes.
        seen: the images.
        text: the question.
        ids: the continuations' tokens.
        image: the number of the question's image.
        earlier: the turns before it, of a model that reads dialogues.

    Raises:
        ValueError: one has no tokens, or more than the model has room for.
    """
    if not all(ids):
        raise ValueError("an empty text has no likelihood")
    generator = answerer.fused.generate
    assert generator is not None, "the head was looked up"
    longest, num = max(map(len, ids)), len(ids)
    padded = [[*some, *[answerer.tokenizer.pad_id] * (longest - len(some))] for some in ids]
    target_QT = torch.tensor(padded, device=answerer.device)
    length_Q = torch.tensor([len(some) for some in ids], device=answerer.device)
    total_Q = torch.zeros(num, device=answerer.device)
    greedy_Q = torch.ones(num, dtype=torch.bool, device=answerer.device)
    (row,) = as_asked(answerer, seen, [(image, text)], max_new_tokens=longest, earlier=earlier)
    start = read_rows(answerer, seen, [row], longest)
    with autocast(answerer.precision, answerer.device):
        # The question is read once; its options follow it side by side.
        first_Q = torch.zeros(num, dtype=torch.int64, device=answerer.device)
        start.cache.select(first_Q)
        logits_QV = start.logits_BV[first_Q]
        for step in range(longest):
            log_QV = logits_QV.float().log_softmax(1)
            target_Q, counts_Q = target_QT[:, step], step < length_Q
            total_Q += log_QV.gather(1, target_Q[:, None])[:, 0] * counts_Q
            greedy_Q &= (log_QV.argmax(1) == target_Q) | ~counts_Q
            if step + 1 < longest:
                logits_QV = generator.decoder(target_Q[:, None], cache=start.cache)[:, 0]
    return [
        Likelihood(log_prob=total, num_tokens=len(some), is_greedy=greedy)
        for total, some, greedy in zip(total_Q.tolist(), ids, greedy_Q.tolist(), strict=True)
    ]
