"""Questions as rows of tokens, and the decoder that reads them behind their images.

An image is read once for all its questions where the decoder's mask shows it none of them; a
dialogue's beginning up to the image's end is then read with it. With fixed shapes, rows of like
widths stand together in forwards of so many rows, filled up: nothing of one depends on the others.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmtrain.data.dialogues.dialogue import Turn
from mmtrain.data.dialogues.tokens import DialogueTokens
from mmtrain.data.questions.batches import TextForm
from mmtrain.data.sample_error import SampleError
from mmtrain.errors import UsageError
from mmtrain.eval.forward_size import alike, filled_up, fixed_rows, fixed_width
from mmtrain.eval.questions.answerer import Answerer
from mmtrain.eval.questions.seeing import Seen
from mmtrain.models.answer_cache import (
    read_behind,
    read_images,
    read_together,
    serves_all_questions,
)
from mmtrain.models.dialogues import DialogueGenerator, Told
from mmtrain.models.generate_answers import AnswerGenerator
from mmtrain.models.prefill import Prefilled
from mmtrain.parallel.precision import autocast


@dataclass(frozen=True, kw_only=True)
class Asking:
    """A question about one of the images that were seen."""

    image: int
    """The image's number among them."""
    ids: tuple[int, ...]
    """The question's tokens; of a dialogue all of them, up to where the answer begins."""
    is_image: tuple[bool, ...] = ()
    """Where a dialogue has an image's tokens."""
    start: int = 0
    """Tokens of a dialogue that are read with the image: up to its end, but never the last."""

    @property
    def length(self) -> int:
        """Tokens behind the image."""
        return len(self.ids) - self.start


def as_asked(
    answerer: Answerer,
    seen: Seen,
    asked: Sequence[tuple[int, str]],
    *,
    max_new_tokens: int = 0,
    earlier: Sequence[Turn] = (),
) -> list[Asking]:
    """Questions, each with its image's number, as rows; `earlier` turns stand before each of them
    where the model reads dialogues.

    Raises:
        UsageError: a model of dialogues has no room for one and so many tokens more.
    """
    if answerer.model.config.reads_dialogues:
        return [_as_dialogue(answerer, seen, *one, max_new_tokens, earlier) for one in asked]
    assert not earlier, "a question is asked by itself"
    form = TextForm(tokenizer=answerer.tokenizer)
    tokens_QT, length_Q, _ = form.encode([(text, "") for _, text in asked])
    rows = zip(asked, tokens_QT.tolist(), length_Q.tolist(), strict=True)
    return [Asking(image=image, ids=tuple(ids[:length])) for (image, _), ids, length in rows]


def _as_dialogue(
    answerer: Answerer,
    seen: Seen,
    image: int,
    text: str,
    max_new_tokens: int,
    earlier: Sequence[Turn],
) -> Asking:
    """A dialogue up to where the answer begins, its image first."""
    one = dialogue_of(answerer, text, seen.counts[image], earlier=earlier)
    length, most = len(one.ids), _room(answerer, max_new_tokens)
    if length > most:
        raise UsageError(f"{_no_room(text, length, max_new_tokens, most)}; ask more briefly")
    end = length - one.image[::-1].index(True)
    return Asking(image=image, ids=one.ids, is_image=one.image, start=min(end, length - 1))


def _no_room(text: str, length: int, max_new_tokens: int, most: int) -> str:
    return (
        f"the question {text[:40]!r} and its image are {length:,} tokens, and an answer of "
        f"{max_new_tokens} leaves room for {most:,} (vqa.dialogues.max_length of the training)"
    )


def why_not_asked(
    answerer: Answerer, text: str, num_pieces: int, *, max_new_tokens: int
) -> str | None:
    """Why a model of dialogues cannot be asked a question about an image of so many pieces, and
    answer with so many tokens; None: it can."""
    try:
        one = answerer.dialogue_text.ask(text, [num_pieces])
    except SampleError as error:
        return f"the question {text[:40]!r}: {error.told}"
    length, most = len(one.ids), _room(answerer, max_new_tokens)
    return _no_room(text, length, max_new_tokens, most) if length > most else None


def dialogue_of(
    answerer: Answerer, text: str, num_pieces: int, *, earlier: Sequence[Turn] = ()
) -> DialogueTokens:
    """A question about an image of so many pieces, behind the turns before it.

    Raises:
        UsageError: it cannot be asked so.
    """
    try:
        return answerer.dialogue_text.ask(text, [num_pieces], earlier=earlier)
    except SampleError as error:
        raise UsageError(f"the question {text[:40]!r}: {error.told}; ask otherwise") from error


def _room(answerer: Answerer, max_new_tokens: int) -> int:
    """Tokens that a model of dialogues has before so many others."""
    assert answerer.model.generate is not None
    return answerer.model.generate.decoder.config.context_length - max_new_tokens


def refuse_cut(answerer: Answerer, question: str) -> None:
    """Refuse a question whose end the model would not read; of dialogues `turns_with_room` does.

    Raises:
        UsageError: it is too long.
    """
    tokenizer = answerer.tokenizer
    if not answerer.model.config.reads_dialogues and tokenizer.is_cut(question):
        raise UsageError(
            f"the question is longer than {tokenizer.context_length} tokens; ask more briefly"
        )


def turns_with_room(
    answerer: Answerer, num_pieces: int, text: str, earlier: Sequence[Turn]
) -> Sequence[Turn]:
    """The latest of the turns before a question that there is room for beside its image, the oldest
    question left out with its answer, as training shortens a dialogue.

    Raises:
        UsageError: it cannot be asked so.
    """
    room = _room(answerer, answerer.answer_length)

    def fits(left_out: int) -> bool:
        kept = earlier[left_out:]
        return len(dialogue_of(answerer, text, num_pieces, earlier=kept).ids) <= room

    return earlier[bisect_left(range(0, len(earlier), 2), True, key=fits) * 2 :]


def by_forwards(seen: Seen, rows: Sequence[Asking]) -> Iterator[list[int]]:
    """The rows' numbers, those together that go through the model together."""

    def key(row: Asking) -> tuple[int, int, int]:
        width = fixed_width(row.length) if seen.is_fixed else 0
        return seen.counts[row.image], row.start, width

    size = (lambda row: fixed_rows(seen.counts[row.image])) if seen.is_fixed else None
    return alike(rows, key, size=size)


def as_forward(seen: Seen, rows: Sequence[Asking]) -> tuple[list[Asking], int]:
    """The rows of one forward, filled up where it is of a fixed shape, and its width."""
    longest = max(row.length for row in rows)
    if not seen.is_fixed:
        return list(rows), longest
    return filled_up(rows, fixed_rows(seen.counts[rows[0].image])), fixed_width(longest)


def row_tensors(answerer: Answerer, rows: Sequence[Asking], width: int) -> tuple[Tensor, Tensor]:
    """Ids of what stands behind the images [Q, width], padding behind them, and lengths [Q]."""
    tokens_QT = _padded([row.ids[row.start :] for row in rows], width, answerer.tokenizer.pad_id)
    length_Q = torch.tensor([row.length for row in rows])
    return tokens_QT.to(answerer.device), length_Q.to(answerer.device)


def _padded(rows: Sequence[Sequence[int]], width: int, filler: int) -> Tensor:
    return torch.tensor([[*row, *[filler] * (width - len(row))] for row in rows])


@torch.no_grad()
def read_rows(
    answerer: Answerer, seen: Seen, rows: Sequence[Asking], max_new_tokens: int
) -> Prefilled:
    """The rows of one forward in the decoder's cache, as the model was trained to read them, with
    room for so many tokens more; further rows, which fill it up, are nobody's.

    Raises:
        UsageError: what the model says of the next token is no number.
    """
    generator = answerer.fused.generate
    assert generator is not None, "the head was looked up"
    rows, width = as_forward(seen, rows)
    with autocast(answerer.precision, answerer.device):
        text_QTD, length_Q = _vectors(answerer, seen, rows, width)
        if not serves_all_questions(generator):
            image_QPD = seen.token_NPD[[row.image for row in rows]]
            start = read_together(
                generator, image_QPD, text_QTD, length_Q, max_new_tokens=max_new_tokens
            )
        else:
            begin(answerer, seen, rows)
            images = [seen.begun[_begin_of(row)] for row in rows]
            start = read_behind(
                generator, images, text_QTD, length_Q, max_new_tokens=max_new_tokens
            )
    refuse_no_numbers(start.logits_BV)
    return start


def refuse_no_numbers(logits: Tensor) -> None:
    """Refuse an answer that would be one of chance: the first token or answer that there is.

    Raises:
        UsageError: logits are no numbers.
    """
    if bool(logits.isnan().any()):
        raise UsageError(
            "the model's answers are not finite: its weights or the precision overflow; train it "
            "again, or use --precision fp32"
        )


def _begin_of(row: Asking) -> tuple[int, tuple[int, ...]]:
    return row.image, row.ids[: row.start]


@torch.no_grad()
def begin(answerer: Answerer, seen: Seen, rows: Sequence[Asking]) -> None:
    """Have the decoder read the rows' images that it has not read, where they serve all questions:
    those of all rows at once, so that forwards are full."""
    generator = answerer.fused.generate
    assert generator is not None, "the head was looked up"
    if not serves_all_questions(generator):
        return
    new = list({_begin_of(row): row for row in rows if _begin_of(row) not in seen.begun}.values())
    size = (lambda row: fixed_rows(seen.counts[row.image])) if seen.is_fixed else None
    for numbers in alike(new, lambda row: (seen.counts[row.image], row.start), size=size):
        some = [new[number] for number in numbers]
        filled = filled_up(some, None if size is None else size(some[0]))
        with autocast(answerer.precision, answerer.device):
            cache = read_images(generator, _beginnings(answerer, generator, seen, filled))
        seen.begun.update({_begin_of(row): (cache, at) for at, row in enumerate(some)})


def _beginnings(
    answerer: Answerer, generator: AnswerGenerator, seen: Seen, rows: Sequence[Asking]
) -> Tensor:
    """What the decoder reads of the rows' images, [Q, P, D]."""
    if not isinstance(generator, DialogueGenerator):
        return seen.token_NPD[[row.image for row in rows]]
    parts = [slice(0, row.start) for row in rows]
    return generator.placed(seen.token_NPD, _told(answerer, seen, rows, parts, rows[0].start))


def _vectors(
    answerer: Answerer, seen: Seen, rows: Sequence[Asking], width: int
) -> tuple[Tensor, Tensor]:
    """What the decoder reads behind the rows' images, [Q, width, D], and tokens of each."""
    generator = answerer.fused.generate
    assert generator is not None and generator.decoder.embed is not None
    tokens_QT, length_Q = row_tensors(answerer, rows, width)
    if not isinstance(generator, DialogueGenerator):
        return generator.decoder.embed.token(tokens_QT), length_Q
    parts = [slice(row.start, None) for row in rows]
    return generator.placed(seen.token_NPD, _told(answerer, seen, rows, parts, width)), length_Q


def _told(
    answerer: Answerer, seen: Seen, rows: Sequence[Asking], parts: Sequence[slice], width: int
) -> Told:
    """A part of each row's tokens, whose images' tokens are among those of all that were seen."""
    cut = list(zip(rows, parts, strict=True))
    per_piece = answerer.tokens_per_piece
    first = [
        seen.first_piece(row.image) * per_piece + sum(row.is_image[: part.start])
        for row, part in cut
    ]
    pad_id, device = answerer.tokenizer.pad_id, answerer.device
    return Told(
        tokens_BT=_padded([row.ids[part] for row, part in cut], width, pad_id).to(device),
        image_BT=_padded([row.is_image[part] for row, part in cut], width, False).to(device),
        first_B=torch.tensor(first).to(device),
    )
