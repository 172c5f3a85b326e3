"""Asking about images that were encoded once: the same bits in any company, counted passes."""

import copy
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from mmtrain.data.questions.question import Question
from mmtrain.errors import UsageError
from mmtrain.eval.questions.answerer import Answerer
from mmtrain.eval.questions.asking import Reply, answer_texts, stream_answer, write_answers
from mmtrain.eval.questions.choosing import choose_options
from mmtrain.eval.questions.reading import as_asked, read_rows
from mmtrain.eval.questions.seeing import Seen, see_pieces
from mmtrain.models.decoder import Decoder
from mmtrain.models.dialogues import DialogueGenerator, Told
from mmtrain.models.vision import VisionTower
from tests.eval.questions.answerers import (
    ANSWER_LENGTH,
    PATCHES,
    READS,
    drawn,
    make_answerer,
)

TEXTS = ("is it red?", "what is the big thing on the left of it?", "", "why?", "and how many?")
ASKED = [(image, text) for image in range(5) for text in TEXTS[: 1 + image]]
"""Several questions of an image, of one to ten tokens and more."""


def seen_of(answerer: Answerer, numbers: Sequence[int], *, is_fixed: bool = True) -> Seen:
    in_tiles = answerer.model.config.tiles is not None
    return see_pieces(answerer, drawn(list(numbers), in_tiles=in_tiles), is_fixed=is_fixed)


@pytest.mark.parametrize(
    ("reads", "precision"), [*((reads, "fp32") for reads in READS), ("causal", "bf16")]
)
def test_an_answer_is_the_same_to_the_bit_in_any_company(reads: str, precision: str):
    answerer = make_answerer(reads, precision=precision)
    whole = write_answers(answerer, seen_of(answerer, range(5)), ASKED)
    assert len({reply.probability for reply in whole}) > 10
    found = dict(zip(ASKED, whole, strict=True))
    # Questions and images the other way round; each image by itself; each question by itself.
    order = [4, 2, 0, 3, 1]
    turned = [(order.index(image), text) for image, text in ASKED[::-1]]
    assert write_answers(answerer, seen_of(answerer, order), turned) == whole[::-1]
    for image in range(5):
        own = [one for one in ASKED if one[0] == image]
        said = write_answers(answerer, seen_of(answerer, [image]), [(0, text) for _, text in own])
        assert said == [found[one] for one in own]
    for image, text in ASKED[3:6]:
        assert write_answers(answerer, seen_of(answerer, [image]), [(0, text)]) == [
            found[image, text]
        ]
    # Among more images than a forward takes, of an image that comes twice.
    many = seen_of(answerer, [*range(10, 80), 4, 4])
    asked = [*((row, "where is it?") for row in range(70)), (70, TEXTS[1]), (71, TEXTS[1])]
    assert write_answers(answerer, many, asked)[-2:] == [found[4, TEXTS[1]]] * 2


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_choice_is_the_same_to_the_bit_in_any_company(precision: str):
    answerer = make_answerer(head="classify", precision=precision)
    whole = answer_texts(answerer, seen_of(answerer, range(5)), ASKED)
    order = [4, 2, 0, 3, 1]
    turned = [(order.index(image), text) for image, text in ASKED[::-1]]
    assert answer_texts(answerer, seen_of(answerer, order), turned) == whole[::-1]
    for (image, text), said in zip(ASKED, whole, strict=True):
        assert answer_texts(answerer, seen_of(answerer, [image]), [(0, text)]) == [said]


@pytest.mark.parametrize("reads", READS)
def test_options_are_judged_the_same_to_the_bit_in_any_company(reads: str):
    answerer = make_answerer(reads, choose="text")
    options = ["red", "a blue one", "no"]

    def chosen(numbers: Sequence[int], asked: Sequence[tuple[int, str]]) -> list[Reply]:
        questions = [
            Question(question_id=place, question=text, answers=(), extra={"options": options})
            for place, (_, text) in enumerate(asked)
        ]
        return choose_options(answerer, seen_of(answerer, numbers), asked, questions)

    whole = chosen(range(5), ASKED)
    assert chosen([4, 3, 2, 1, 0], [(4 - image, text) for image, text in ASKED]) == whole
    for (image, text), said in list(zip(ASKED, whole, strict=True))[::3]:
        assert chosen([image], [(0, text)]) == [said]


@pytest.mark.parametrize("reads", READS)
def test_asked_one_after_another_an_answer_is_that_of_one_alone(reads: str):
    answerer = make_answerer(reads)
    together = seen_of(answerer, [1], is_fixed=False)
    whole = write_answers(answerer, seen_of(answerer, [1]), [(0, text) for text in TEXTS])
    for text, (said, value, _) in zip(TEXTS, whole, strict=True):
        (alone,) = write_answers(answerer, seen_of(answerer, [1], is_fixed=False), [(0, text)])
        assert write_answers(answerer, together, [(0, text)]) == [alone]
        *_, last = stream_answer(answerer, together, text)
        assert last == alone
        assert alone[0] == said and alone[1] == pytest.approx(value, rel=1e-4)


@pytest.mark.parametrize("reads", ["prefix", "block", "tiles"])
def test_an_answer_is_cut_that_did_not_end(reads: str):
    """At the last token that there is room for, of a set's answers and of one as it is written."""
    answerer = make_answerer(reads)
    tokenizer, written = copy.copy(answerer.tokenizer), []
    tokenizer.decode = lambda ids: written.append(list(ids)) or "said"
    answerer = replace(answerer, tokenizer=tokenizer)
    seen, asked = seen_of(answerer, [1]), [(0, text) for text in TEXTS]
    assert all(reply.is_cut for one in asked for reply in write_answers(answerer, seen, [one]))
    rows = written[:]
    assert all(len(row) == ANSWER_LENGTH for row in rows)
    for end in (rows[0][0], rows[1][2], rows[2][-1]):  # an end token of theirs
        tokenizer.eot_id = end
        whole = [end in row for row in rows]
        replies = write_answers(answerer, seen, asked)
        assert [reply.is_cut for reply in replies] == [not one for one in whole] and any(whole)
        for text, row in zip(TEXTS, rows, strict=True):
            steps = list(stream_answer(answerer, seen, text))
            assert [reply.is_cut for reply in steps[:-1]] == [False] * (len(steps) - 1)
            assert steps[-1].is_cut == (end not in row)


@pytest.mark.parametrize("reads", READS)
@torch.no_grad()
def test_a_row_is_read_as_in_training(reads: str):
    answerer = make_answerer(reads)
    generator, seen = answerer.model.generate, seen_of(answerer, range(3))
    assert generator is not None
    for image, text in ((0, TEXTS[1]), (1, TEXTS[3]), (2, TEXTS[0])):
        (row,) = as_asked(answerer, seen, [(image, text)])
        start = read_rows(answerer, seen, [row], 2)
        alone = drawn([image], in_tiles=reads == "tiles")
        image_NTD, tokens = answerer.model.vision(alone.images_NCHW), torch.tensor([row.ids])
        if isinstance(generator, DialogueGenerator):
            told = Told(tokens_BT=tokens, image_BT=torch.tensor([row.is_image]))
            assert row.start > 0 and sum(row.is_image) == PATCHES * alone.counts[0]
            want = generator(image_NTD, alone.place_N2, told)[:, -1]
        else:
            length = torch.tensor([len(row.ids)])
            want = generator(image_NTD, tokens, length, length)[:, -1]
        torch.testing.assert_close(start.logits_BV[:1], want, rtol=1e-4, atol=1e-4)


class Counted:
    """Images that the tower takes, and tokens that the decoder does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.images, self.tokens = 0, 0
        see_images, write = VisionTower.forward, Decoder.forward

        def vision(tower: VisionTower, x: torch.Tensor, **options: object):
            self.images += x.size(0)
            return see_images(tower, x, **options)  # pyright: ignore[reportArgumentType]

        def decoder(module: Decoder, x: torch.Tensor, **options: object):
            self.tokens += x.size(0) * x.size(1)
            return write(module, x, **options)  # pyright: ignore[reportArgumentType]

        monkeypatch.setattr(VisionTower, "forward", vision)
        monkeypatch.setattr(Decoder, "forward", decoder)


@pytest.mark.parametrize("way", ["written", "streamed", "letter", "text", "classify"])
def test_what_is_no_number_is_no_answer(way: str) -> None:
    """The first token, or answer, that there is would be taken for it, without a word."""
    answerer = make_answerer("causal", head="classify" if way == "classify" else "generate")
    next(answerer.model.vision.parameters()).data.fill_(torch.nan)
    seen, options = seen_of(answerer, range(2)), ["yes", "no"]
    question = Question(question_id=1, question="why?", extra={"options": options})
    with pytest.raises(UsageError, match="the model's answers are not finite"):
        if way == "streamed":
            list(stream_answer(answerer, seen, "why?"))
        elif way in ("letter", "text"):
            choose_options(replace(answerer, choose=way), seen, [(0, "why?")], [question])
        else:
            answer_texts(answerer, seen, [(0, "why?"), (1, "is it?")])


@pytest.mark.parametrize("reads", READS)
def test_an_image_is_read_once_for_its_questions(reads: str, monkeypatch: pytest.MonkeyPatch):
    answerer = make_answerer(reads)
    counted = Counted(monkeypatch)
    seen = seen_of(answerer, [1], is_fixed=False)
    for text in TEXTS:
        write_answers(answerer, seen, [(0, text)])
    rows = as_asked(answerer, seen, [(0, text) for text in TEXTS])
    assert counted.images == sum(seen.counts)
    # All tokens of an answer but the last are read again.
    answers = len(TEXTS) * (ANSWER_LENGTH - 1)
    images = PATCHES * len(TEXTS) if reads == "prefix" else rows[0].start or PATCHES
    assert counted.tokens == images + sum(row.length for row in rows) + answers
