"""Choosing among a question's options by their likelihood, in place of writing an answer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from mmtrain.data.images.tiles import Pieces
from mmtrain.data.questions.letters import LETTERS
from mmtrain.data.questions.options import options_of
from mmtrain.data.questions.question import Question
from mmtrain.errors import UsageError
from mmtrain.eval.questions.answerer import Answerer, Choose
from mmtrain.models.prefill import Prefilled
from mmtrain.parallel.precision import autocast

Read = Callable[[Pieces, Sequence[str], int], Prefilled]
"""Reads the questions about images into a decoder's cache, with room for so many tokens more."""


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
    pieces: Pieces,
    texts: Sequence[str],
    questions: Sequence[Question | None],
    *,
    read: Read,
) -> list[tuple[str, float]]:
    """The likeliest option's letter for each of Q = B * N questions, and how likely among them.

    A letter's likelihood is that of its tokens; a text's the mean over its tokens and the end
    token, since options differ in length. Each question is computed by itself, so that neither the
    batch nor the other questions of its image change a bit.

    Args:
        answerer: the model, which writes.
        pieces: of the images.
        texts: as they are asked.
        questions: with their options; None in an empty slot.
        read: reads questions, as the model was trained to.

    Raises:
        UsageError: a question has no options, or they cannot be written.
    """
    assert answerer.chosen_head == "generate", "others are refused"
    images, num_slots = _alone(pieces), len(texts) // len(pieces.counts)
    chosen: list[tuple[str, float]] = []
    for place, (text, question) in enumerate(zip(texts, questions, strict=True)):
        if question is None:
            chosen.append(("", 0.0))
            continue
        ids = _written(answerer, question)
        try:
            found = likelihoods(answerer, images[place // num_slots], text, ids, read=read)
        except ValueError as error:
            told = f"choose = {answerer.choose}: question_id {question.question_id}"
            raise UsageError(f"{told}: {error}") from error
        by_text = answerer.choose == "text"
        scores = torch.tensor([one.log_prob / (one.num_tokens if by_text else 1) for one in found])
        best = int(scores.argmax())
        chosen.append((LETTERS[best], float(scores.softmax(0)[best])))
    return chosen


def _alone(pieces: Pieces) -> list[Pieces]:
    """Each image's."""
    counts = list(pieces.counts)
    parts = zip(pieces.images_NCHW.split(counts), pieces.place_N2.split(counts), strict=True)
    return [
        Pieces(images_NCHW=images, place_N2=place, counts=(len(place),)) for images, place in parts
    ]


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
    answerer: Answerer, pieces: Pieces, text: str, ids: Sequence[Sequence[int]], *, read: Read
) -> list[Likelihood]:
    """How likely each of several continuations of one question is.

    Args:
        answerer: the model, which writes.
        pieces: of the question's image.
        text: the question.
        ids: the continuations' tokens.
        read: as choose_options takes it.

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
    with autocast(answerer.precision, answerer.device):
        start = read(pieces, [text] * num, longest)
        logits_QV = start.logits_BV
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
