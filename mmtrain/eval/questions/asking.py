"""Questions about pictures to answers, chosen or written, on one process."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mmtrain.data.dialogues.dialogue import Turn
from mmtrain.eval.questions.answerer import Answerer
from mmtrain.eval.questions.reading import (
    Asking,
    as_asked,
    as_forward,
    begin,
    by_forwards,
    read_rows,
    refuse_no_numbers,
    row_tensors,
)
from mmtrain.eval.questions.seeing import Seen
from mmtrain.models.vqa_stage import Asked
from mmtrain.parallel.precision import autocast


class Reply(NamedTuple):
    """An answer, or what there is of it."""

    answer: str
    """Its text, of a cut one as far as it came."""
    probability: float
    """What the model gives it; of one that is written the product of its tokens'."""
    is_cut: bool = False
    """Whether it took all tokens that it may have and did not end."""


@torch.no_grad()
def answer_texts(answerer: Answerer, seen: Seen, asked: Sequence[tuple[int, str]]) -> list[Reply]:
    """The answer to each question, asked of an image by its number.

    Raises:
        UsageError: a model of dialogues has no room for a question.
    """
    if answerer.chosen_head == "generate":
        return write_answers(answerer, seen, asked)
    probability_QA = choice_probabilities(answerer, seen, asked)
    best_Q = probability_QA.max(1)
    assert answerer.vocabulary is not None
    answers = answerer.vocabulary.answers
    return [
        Reply(answers[place], value)
        for place, value in zip(best_Q.indices.tolist(), best_Q.values.tolist(), strict=True)
    ]


def likeliest_answers(answerer: Answerer, seen: Seen, text: str, *, most: int) -> list[Reply]:
    """A classifier's answers to a question about one image, the likeliest first, `most` at most."""
    assert answerer.vocabulary is not None, "a classifier has answers"
    # By the logits, since all but one of the probabilities may be too small for fp32.
    logit_A = choice_logits(answerer, seen, [(0, text)])[0]
    share_A, places = logit_A.softmax(0), logit_A.topk(min(most, logit_A.numel())).indices
    return [Reply(answerer.vocabulary.answers[n], float(share_A[n])) for n in places.tolist()]


def choice_probabilities(
    answerer: Answerer, seen: Seen, asked: Sequence[tuple[int, str]]
) -> Tensor:
    """fp32 [Q, A]: a softmax over the vocabulary's logits."""
    return choice_logits(answerer, seen, asked).softmax(1)


@torch.no_grad()
def choice_logits(answerer: Answerer, seen: Seen, asked: Sequence[tuple[int, str]]) -> Tensor:
    """fp32 [Q, A], of a classifier's vocabulary.

    Raises:
        UsageError: they are no numbers.
    """
    rows = as_asked(answerer, seen, asked)
    found: dict[int, Tensor] = {}
    for numbers in by_forwards(seen, rows):
        some, width = as_forward(seen, [rows[number] for number in numbers])
        # No wider than the question encoder, in which every question has its place.
        width = min(width, answerer.tokenizer.context_length)
        tokens_QT, length_Q = row_tensors(answerer, some, width)
        questions = Asked(tokens_QT=tokens_QT, question_length_Q=length_Q, length_Q=length_Q)
        with autocast(answerer.precision, answerer.device):
            image_QPD = seen.token_NPD[[row.image for row in some]]
            logits_QA = answerer.fused.choose(image_QPD, questions)
        refuse_no_numbers(logits_QA)
        found.update(zip(numbers, logits_QA.float(), strict=False))
    return torch.stack([found[number] for number in range(len(rows))])


def write_answers(answerer: Answerer, seen: Seen, asked: Sequence[tuple[int, str]]) -> list[Reply]:
    """Greedily written answers.

    Raises:
        UsageError: as `read_rows`.
    """
    rows = as_asked(answerer, seen, asked, max_new_tokens=answerer.answer_length)
    begin(answerer, seen, rows)
    found: dict[int, Reply] = {}
    for numbers in by_forwards(seen, rows):
        steps = list(_written(answerer, seen, [rows[number] for number in numbers]))
        written = torch.stack([step.ids_Q for step in steps], dim=1).tolist()
        probability, cut = steps[-1].log_p_Q.exp().tolist(), steps[-1].going_Q.tolist()
        for number, ids, value, is_cut in zip(numbers, written, probability, cut, strict=False):
            found[number] = Reply(answerer.tokenizer.decode(ids), value, is_cut)
    return [found[number] for number in range(len(rows))]


def stream_answer(
    answerer: Answerer,
    seen: Seen,
    text: str,
    *,
    image: int = 0,
    earlier: Sequence[Turn] = (),
) -> Iterator[Reply]:
    """The answer to one question as it is written: what there is of it after each token. The last
    is what `write_answers` gives.

    Args:
        answerer: the model.
        seen: the images.
        text: the question.
        image: which one it is about.
        earlier: the turns before it, of a model that reads dialogues.
    """
    length = answerer.answer_length
    asked = as_asked(answerer, seen, [(image, text)], max_new_tokens=length, earlier=earlier)
    ids: list[int] = []
    reply = Reply("", 0.0)
    for step in _written(answerer, seen, asked):
        ids.append(int(step.ids_Q[0]))
        said, probability = answerer.tokenizer.decode(ids), step.log_p_Q[0].exp().item()
        reply = Reply(said, probability, len(ids) == length and bool(step.going_Q[0]))
        # A character may come in several tokens.
        yield reply._replace(answer=said.rstrip("\ufffd"))
    if reply.answer.endswith("\ufffd"):
        yield reply


class _Step(NamedTuple):
    ids_Q: Tensor
    """A token of each row, padding where one has ended."""
    log_p_Q: Tensor
    """The rows' log-probabilities so far."""
    going_Q: Tensor
    """Those that have not ended."""


@torch.no_grad()
def _written(answerer: Answerer, seen: Seen, rows: Sequence[Asking]) -> Iterator[_Step]:
    """The rows of one forward, a token a step; those that fill it up stand behind them."""
    generator = answerer.fused.generate
    assert generator is not None, "the head was looked up"
    start = read_rows(answerer, seen, rows, answerer.answer_length)
    logits_QV = start.logits_BV
    going_Q = torch.ones(len(logits_QV), dtype=torch.bool, device=answerer.device)
    total_Q = torch.zeros(len(logits_QV), device=answerer.device)
    for step in range(answerer.answer_length):
        best_Q = logits_QV.float().log_softmax(1).max(1)
        total_Q = total_Q + best_Q.values * going_Q
        going_Q = going_Q & (best_Q.indices != answerer.tokenizer.eot_id)
        ids_Q = best_Q.indices.masked_fill(~going_Q, answerer.tokenizer.pad_id)
        yield _Step(ids_Q, total_Q, going_Q)
        if not going_Q.any() or step + 1 == answerer.answer_length:
            return
        # Not around the yield, where whoever takes the steps would compute under it.
        with autocast(answerer.precision, answerer.device):
            logits_QV = generator.decoder(best_Q.indices[:, None], cache=start.cache)[:, 0]
