"""Questions about pictures to answers, chosen or written, on one process."""

from collections.abc import Iterator, Sequence

import torch
from PIL import Image
from torch import Tensor

from mmtrain.data.dialogues.tokens import DialogueTokens
from mmtrain.data.images.tiles import Pieces
from mmtrain.data.images.transforms import eval_transform
from mmtrain.data.questions.batches import TextForm
from mmtrain.data.sample_error import SampleError
from mmtrain.errors import UsageError
from mmtrain.eval.questions.answerer import Answerer
from mmtrain.eval.samples import cut_image
from mmtrain.models.dialogues import DialogueGenerator, Told
from mmtrain.models.prefill import Prefilled
from mmtrain.models.vqa import Asked
from mmtrain.parallel.precision import autocast


def see(answerer: Answerer, picture: Image.Image) -> Pieces:
    """What the model sees of a picture, on its device."""
    tiles, device = answerer.model.config.tiles, answerer.device
    if tiles is None:
        return Pieces.whole(eval_transform(answerer.preprocess)(picture)[None].to(device))
    pieces_PCHW, place_P2 = cut_image(picture, answerer.preprocess, tiles)
    return Pieces.joined([(pieces_PCHW.to(device), place_P2.to(device))])


@torch.no_grad()
def answer_texts(
    answerer: Answerer, pieces: Pieces, texts: Sequence[str]
) -> list[tuple[str, float]]:
    """The answer to each of Q = B * N questions, an image's together, and its probability.

    Raises:
        UsageError: a model of dialogues has no room for a question.
    """
    if answerer.chosen_head == "generate":
        return write_answers(answerer, pieces, texts)
    probability_QA = choice_probabilities(answerer, pieces.images_NCHW, texts)
    best_Q = probability_QA.max(1)
    assert answerer.vocabulary is not None
    answers = answerer.vocabulary.answers
    return [
        (answers[place], value)
        for place, value in zip(best_Q.indices.tolist(), best_Q.values.tolist(), strict=True)
    ]


@torch.no_grad()
def choice_probabilities(answerer: Answerer, images_BCHW: Tensor, texts: Sequence[str]) -> Tensor:
    """fp32 [Q, A]: a softmax over the vocabulary's logits."""
    with autocast(answerer.precision, answerer.device):
        logits = answerer.fused.choose(images_BCHW, _asked(answerer, texts))
    return logits.float().softmax(1)


def _asked(answerer: Answerer, texts: Sequence[str]) -> Asked:
    form = TextForm(tokenizer=answerer.tokenizer)
    tokens_QT, question_length_Q, length_Q = form.encode([(text, "") for text in texts])
    return Asked(
        tokens_QT=tokens_QT.to(answerer.device),
        question_length_Q=question_length_Q.to(answerer.device),
        length_Q=length_Q.to(answerer.device),
    )


def write_answers(
    answerer: Answerer, pieces: Pieces, texts: Sequence[str]
) -> list[tuple[str, float]]:
    """Greedily written answers, each with the product of its tokens' probabilities."""
    steps = list(_written(answerer, pieces, texts))
    rows = torch.stack([ids_Q for ids_Q, _ in steps], dim=1).tolist()
    answers = [answerer.tokenizer.decode(row) for row in rows]
    return list(zip(answers, steps[-1][1].exp().tolist(), strict=True))


def stream_answer(answerer: Answerer, pieces: Pieces, text: str) -> Iterator[tuple[str, float]]:
    """The answer to one question about one image as it is written: what there is of it after each
    token, and the probability of that. The last is what `write_answers` gives."""
    ids: list[int] = []
    said, probability = "", 0.0
    for ids_1, log_p_1 in _written(answerer, pieces, [text]):
        ids.append(int(ids_1))
        said, probability = answerer.tokenizer.decode(ids), log_p_1.exp().item()
        # A character may come in several tokens.
        yield said.rstrip("\ufffd"), probability
    if said.endswith("\ufffd"):
        yield said, probability


@torch.no_grad()
def _written(
    answerer: Answerer, pieces: Pieces, texts: Sequence[str]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Each step's ids [Q], padding where a row has ended, and the rows' log-probabilities."""
    generator = answerer.fused.generate
    assert generator is not None, "the head was looked up"
    with autocast(answerer.precision, answerer.device):
        start = read_texts(answerer, pieces, texts, answerer.answer_length)
    logits_QV = start.logits_BV
    going_Q = torch.ones(len(texts), dtype=torch.bool, device=answerer.device)
    total_Q = torch.zeros(len(texts), device=answerer.device)
    for step in range(answerer.answer_length):
        best_Q = logits_QV.float().log_softmax(1).max(1)
        total_Q = total_Q + best_Q.values * going_Q
        going_Q = going_Q & (best_Q.indices != answerer.tokenizer.eot_id)
        yield best_Q.indices.masked_fill(~going_Q, answerer.tokenizer.pad_id), total_Q
        if not going_Q.any() or step + 1 == answerer.answer_length:
            return
        # Not around the yield, where whoever takes the steps would compute under it.
        with autocast(answerer.precision, answerer.device):
            logits_QV = generator.decoder(best_Q.indices[:, None], cache=start.cache)[:, 0]


@torch.no_grad()
def read_texts(
    answerer: Answerer, pieces: Pieces, texts: Sequence[str], max_new_tokens: int
) -> Prefilled:
    """Images and Q = B * N questions in the decoder's cache, as the model was trained to read them,
    with room for so many tokens more.

    Raises:
        UsageError: a model of dialogues has no room for a question.
    """
    model, most = answerer.fused, max_new_tokens
    generator = model.generate
    assert generator is not None, "the head was looked up"
    image_NTD = model.vision(pieces.images_NCHW)
    if not isinstance(generator, DialogueGenerator):
        asked = _asked(answerer, texts)
        return generator.read(
            image_NTD, asked.tokens_QT, asked.question_length_Q, max_new_tokens=most
        )
    told, length_Q = _as_dialogues(answerer, pieces.counts, texts, max_new_tokens=most)
    return generator.read_on(image_NTD, pieces.place_N2, told, length_Q, max_new_tokens=most)


def _asked_alone(answerer: Answerer, text: str, num_pieces: int) -> DialogueTokens:
    try:
        return answerer.dialogue_text.ask(text, [num_pieces])
    except SampleError as error:
        raise UsageError(f"the question {text[:40]!r}: {error.told}; ask otherwise") from error


def _as_dialogues(
    answerer: Answerer, counts: Sequence[int], texts: Sequence[str], *, max_new_tokens: int
) -> tuple[Told, Tensor]:
    """Questions as dialogues of one turn, its image first, and their lengths [Q].

    Raises:
        UsageError: one of them leaves no room for its answer.
    """
    num_slots, per_piece = len(texts) // len(counts), answerer.tokens_per_piece
    assert answerer.model.generate is not None
    most = answerer.model.generate.decoder.config.context_length - max_new_tokens
    asked, first, at = [], [], 0
    for image, count in enumerate(counts):
        for text in texts[image * num_slots : (image + 1) * num_slots]:
            asked.append(_asked_alone(answerer, text, count))
            first.append(at)
            if (length := len(asked[-1].ids)) > most:
                raise UsageError(
                    f"the question {text[:40]!r} and its image are {length:,} tokens, and an "
                    f"answer of {max_new_tokens} leaves room for {most:,} "
                    "(vqa.dialogues.max_length of the training); ask more briefly"
                )
        at += count * per_piece
    length_Q = torch.tensor([len(one.ids) for one in asked])
    tokens_QT = torch.full((len(asked), int(length_Q.max())), answerer.tokenizer.pad_id)
    image_QT = torch.zeros(tokens_QT.shape, dtype=torch.bool)
    for row, one in enumerate(asked):
        tokens_QT[row, : len(one.ids)] = torch.tensor(one.ids)
        image_QT[row, : len(one.ids)] = torch.tensor(one.image)
    device = answerer.device
    told = Told(
        tokens_BT=tokens_QT.to(device),
        image_BT=image_QT.to(device),
        first_B=torch.tensor(first).to(device),
    )
    return told, length_Q.to(device)
