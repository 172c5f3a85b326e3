"""Choosing among a question's options by their likelihood, in place of writing an answer."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from mmtrain.data.questions.letters import LETTERS
from mmtrain.data.questions.options import options_of
from mmtrain.data.questions.question import Question
from mmtrain.errors import UsageError
from mmtrain.eval.questions.answerer import Answerer, Choose
from mmtrain.eval.questions.reading import as_asked, read_rows
from mmtrain.eval.questions.seeing import Seen
from mmtrain.parallel.precision import autocast


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
) -> list[tuple[str, float]]:
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
    chosen: list[tuple[str, float]] = []
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
        chosen.append((LETTERS[best], float(scores.softmax(0)[best])))
    return chosen


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
    if cut := [option for option in options if tokenizer.is_cut(option)]:
        raise UsageError(
            f"{told}: {cut[0][:40]!r} is longer than any text of the model; use letter"
        )
    assert tokenizer.eot_id is not None, "a model that writes has one"
    return [[*tokenizer.reply_ids(option), tokenizer.eot_id] for option in options]


@torch.no_grad()
def likelihoods(
    answerer: Answerer, seen: Seen, text: str, ids: Sequence[Sequence[int]], *, image: int = 0
) -> list[Likelihood]:
    """How likely each of several continuations of one question is.

    Args:
        answerer: the model, which writes.
        seen: the images.
        text: the question.
        ids: the continuations' tokens.
        image: the number of the question's image.

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
    (row,) = as_asked(answerer, seen, [(image, text)], max_new_tokens=longest)
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
