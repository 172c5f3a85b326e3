"""What of a batch is learnt, token by token: for people who want to see it before they train."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from mmtrain.data.batch import ImageTextBatch, SampleBatch
from mmtrain.data.dialogues.batches import DialogueBatch
from mmtrain.data.images.tiles import WHOLE
from mmtrain.data.questions.batches import NO_ANSWER, VqaBatch
from mmtrain.data.text.tokenizer import Tokenizer
from mmtrain.limits import MOST

Kind = Literal["trained", "context", "image", "cut"]
_CHARACTER_TOKENS = 4
"""Tokens that one character may be spread over, as bytes."""
_BROKEN = "\ufffd"


class Shown(NamedTuple):
    """What is drawn as one: a token, or several where one alone is no character."""

    text: str
    ids: tuple[int, ...]
    is_special: bool = False


class Stretch(NamedTuple):
    """Tokens that stand together and are of one kind."""

    kind: Kind
    tokens: tuple[Shown, ...] = ()
    num_pieces: int = 0
    """Of an image."""
    per_piece: int = 0
    """Tokens of each."""

    @property
    def text(self) -> str:
        """What it says, an image as `[image 3 x 64]`."""
        if self.kind == "image":
            return f"[image {self.num_pieces} x {self.per_piece}]"
        return "".join(token.text for token in self.tokens)


@dataclass(frozen=True, kw_only=True)
class LabelledRow:
    """One text of a batch."""

    key: str
    """Its sample's."""
    stretches: tuple[Stretch, ...]
    """In order; what was cut off comes last."""
    pieces: tuple[int, int] = (0, 0)
    """Which of the batch's images are its own, from one up to another."""
    note: str = ""
    """What else is learnt of it."""


@dataclass(frozen=True, kw_only=True)
class LabelledBatch:
    """What of one batch is learnt."""

    rows: tuple[LabelledRow, ...]
    """Without rows that do not count."""
    num_tokens: int
    """Of all rows, padding and images counted."""
    num_trained: int
    num_image: int
    num_padding: int
    note: str = ""
    """What is learnt where no token is."""

    def share(self, number: int) -> float:
        """Of all tokens."""
        return number / max(1, self.num_tokens)


def label_batch(
    batch: SampleBatch, tokenizer: Tokenizer, *, image_tokens: int, answers: Sequence[str] = ()
) -> LabelledBatch:
    """Say what of a batch is learnt.

    Args:
        batch: of dialogues, of questions, or of images with captions.
        tokenizer: that the batch was made with.
        image_tokens: tokens of an image, or a piece of one, that stand in a decoder's row.
        answers: what a classifier chooses among.
    """
    if isinstance(batch, DialogueBatch):
        return _of_dialogues(batch, tokenizer, image_tokens)
    if isinstance(batch, VqaBatch):
        return _of_questions(batch, tokenizer, image_tokens, answers)
    assert isinstance(batch, ImageTextBatch)
    return _of_captions(batch, tokenizer)


def _of_dialogues(batch: DialogueBatch, tokenizer: Tokenizer, per_piece: int) -> LabelledBatch:
    rows, first = [], 0
    for row, num_pieces in enumerate(batch.num_pieces):
        if not batch.valid_B[row]:
            continue
        last = first + num_pieces
        images = _images(batch.place_N2[first:last])
        length = int(batch.length_B[row])
        stretches: list[Stretch] = []
        kinds = torch.where(batch.image_BT[row], 2, batch.trained_BT[row].int())[:length].tolist()
        ids = batch.tokens_BT[row, :length].tolist()
        place = 0
        for kind, group in groupby(kinds):
            stop = place + len([*group])
            if kind == 2:
                stretches += _next_images(images, (stop - place) // per_piece, per_piece)
            else:
                shown = tuple(shown_tokens(tokenizer, ids[place:stop], before=ids[:place]))
                stretches.append(Stretch("trained" if kind else "context", shown))
            place = stop
        rows.append(
            LabelledRow(key=batch.keys[row], stretches=tuple(stretches), pieces=(first, last))
        )
        first = last
    return LabelledBatch(
        rows=tuple(rows),
        num_tokens=batch.tokens_BT.numel(),
        num_trained=int(batch.trained_BT.sum()),
        num_image=int(batch.image_BT.sum()),
        num_padding=int((~batch.real_BT | ~batch.valid_B[:, None]).sum()),
    )


def _images(place_P2: Tensor) -> Iterator[int]:
    """Pieces of each image of a dialogue: another one begins with its first tile, or where the one
    before was whole and no thumbnail."""
    places = place_P2.tolist()
    num = 0
    for number, place in enumerate(places):
        num += 1
        behind = places[number + 1] if number + 1 < len(places) else None
        is_thumbnail = behind == [WHOLE, WHOLE] and place != behind
        if behind is None or behind == [0, 0] or (not is_thumbnail and WHOLE in behind):
            yield num
            num = 0


def _next_images(images: Iterator[int], num_pieces: int, per_piece: int) -> Iterator[Stretch]:
    while num_pieces > 0:
        pieces = next(images)
        num_pieces -= pieces
        yield Stretch("image", num_pieces=pieces, per_piece=per_piece)


def _of_questions(
    batch: VqaBatch, tokenizer: Tokenizer, image_tokens: int, answers: Sequence[str]
) -> LabelledBatch:
    """A question's answer is written behind it, or chosen among others."""
    rows = []
    slots = batch.valid_Q.size(0) // batch.num_rows
    for row in batch.valid_Q.nonzero().flatten().tolist():
        asked, length = int(batch.question_length_Q[row]), int(batch.length_Q[row])
        ids = batch.tokens_QT[row, :length].tolist()
        image = (Stretch("image", num_pieces=1, per_piece=image_tokens),) if image_tokens else ()
        question = tuple(shown_tokens(tokenizer, ids[:asked]))
        parts = [Stretch("context", question)]
        if length > asked:
            answer = tuple(shown_tokens(tokenizer, ids[asked:], before=ids[:asked]))
            parts.append(Stretch("trained", answer))
        number = row // slots
        rows.append(
            LabelledRow(
                key=batch.keys[number],
                stretches=(*image, *parts),
                pieces=(number, number + 1),
                note=_chosen(batch.answer_id_QK[row], batch.answer_score_QK[row], answers),
            )
        )
    num_rows, width = batch.tokens_QT.shape
    real = int(batch.length_Q[batch.valid_Q].sum())
    images = image_tokens * len(rows)
    total = num_rows * (width + image_tokens)
    return LabelledBatch(
        rows=tuple(rows),
        num_tokens=total,
        num_trained=int(batch.label_mask_QT[batch.valid_Q].sum()),
        num_image=images,
        num_padding=total - images - real,
        note=""
        if not answers
        else f"an answer is chosen among {len(answers):,} by the whole question, as each row says",
    )


def _chosen(id_K: Tensor, score_K: Tensor, answers: Sequence[str]) -> str:
    if not answers:
        return ""
    found = [
        f"{answers[answer]} {score:.2f}"
        for answer, score in zip(id_K.tolist(), score_K.tolist(), strict=True)
        if answer != NO_ANSWER
    ]
    return f"chosen: {', '.join(found) or 'none of the answers is right'}"


def _of_captions(batch: ImageTextBatch, tokenizer: Tokenizer) -> LabelledBatch:
    """A caption is matched as a whole; what does not fit is cut off before its end token."""
    rows = []
    whole = tokenizer.at_length(MOST)
    for row in batch.valid_B.nonzero().flatten().tolist():
        length = int(batch.text_length_B[row])
        ids = batch.tokens_BT[row, :length].tolist()
        stretches = [Stretch("context", tuple(shown_tokens(tokenizer, ids)))]
        full = whole.encode([batch.texts[row]])[0][0].tolist()
        if len(full) > length:
            behind = len(tokenizer.turn_ends[1])
            kept = length - behind
            lost = full[kept : len(full) - behind]
            shown = tuple(shown_tokens(tokenizer, lost, before=full[:kept]))
            stretches.append(Stretch("cut", shown))
        rows.append(
            LabelledRow(key=batch.keys[row], stretches=tuple(stretches), pieces=(row, row + 1))
        )
    return LabelledBatch(
        rows=tuple(rows),
        num_tokens=batch.tokens_BT.numel(),
        num_trained=0,
        num_image=0,
        num_padding=batch.tokens_BT.numel() - int(batch.text_length_B[batch.valid_B].sum()),
        note="no token is trained by itself: captions are matched with images as a whole",
    )


def shown_tokens(
    tokenizer: Tokenizer, ids: Sequence[int], *, before: Sequence[int] = ()
) -> Iterator[Shown]:
    """Tokens as people read them: special ones as they are spelled, the others as what they add to
    the text before them."""
    known = list(before[-_CHARACTER_TOKENS:])
    group: list[int] = []
    for number, token in enumerate(ids):
        special = tokenizer.spelled(token)
        if special is not None:
            yield Shown(special, (token,), is_special=True)
            known = []
            continue
        group.append(token)
        behind = ids[number + 1] if number + 1 < len(ids) else None
        is_last = behind is None or tokenizer.spelled(behind) is not None
        text = tokenizer.continued(known, group)
        if _BROKEN in text and not is_last and len(group) < _CHARACTER_TOKENS:
            continue
        yield Shown(text, tuple(group))
        known = [*known, *group][-_CHARACTER_TOKENS:]
        group = []
