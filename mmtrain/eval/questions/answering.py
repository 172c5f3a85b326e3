"""Asking a VQA model every question of a set, over all ranks."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Literal

import torch
from PIL import Image
from torch import Tensor
from torch.distributed import ProcessGroup

from mmtrain.collectives import rank_and_size
from mmtrain.data.dialogues.config import DialogueDataConfig
from mmtrain.data.dialogues.tokens import DialogueText, DialogueTokens
from mmtrain.data.images.tiles import Pieces
from mmtrain.data.images.transforms import PreprocessConfig, eval_transform
from mmtrain.data.questions.answers import AnswerVocabulary
from mmtrain.data.questions.batches import TextForm
from mmtrain.data.questions.question import Question, Said, questions_from_json
from mmtrain.data.sample_error import SampleError
from mmtrain.data.samples import json_fields
from mmtrain.data.sources.source import SampleSource
from mmtrain.data.text.tokenizer import Tokenizer
from mmtrain.data.workers import iterate_batches
from mmtrain.errors import UsageError
from mmtrain.eval.encode import own_batches
from mmtrain.eval.forward_size import FIXED_BATCH
from mmtrain.eval.questions.choosing import Choose, choose_options
from mmtrain.eval.samples import EvalBatch, EvalBatches, Members, cut_image, spans
from mmtrain.eval.together import gather_all, on_all_ranks
from mmtrain.models.connector import num_image_tokens
from mmtrain.models.dialogues import DialogueGenerator, Told
from mmtrain.models.fused import fused_vqa
from mmtrain.models.prefill import Prefilled
from mmtrain.models.vqa import Asked, Head, Vqa
from mmtrain.parallel.precision import Precision, autocast, product_dtype

Probe = Literal["question", "image"]
_CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Answerer:
    """A model and how it is asked."""

    model: Vqa
    """In eval mode; its weights do not change any more."""
    tokenizer: Tokenizer
    """Of questions and answers."""
    preprocess: PreprocessConfig
    """What images go through."""
    vocabulary: AnswerVocabulary | None
    """What `classify` chooses among."""
    answer_length: int
    """Tokens of a written answer at most."""
    head: Head | None = None
    """Which head answers. None: classify where it is there."""
    choose: Choose | None = None
    """Choose among a question's options by their likelihood. None: write an answer."""
    device: torch.device = _CPU
    """Where the model is."""
    precision: Precision = "fp32"
    """Number format of the forward passes."""
    batch_size: int = FIXED_BATCH
    """Images per rank and forward pass."""
    workers: int = 0
    """Processes per rank that read and decode."""
    group: ProcessGroup | None = None
    """The ranks, which share out the images. None: one process."""

    @property
    def chosen_head(self) -> Head:
        """The head that answers.

        Raises:
            UsageError: the model has not the one asked for.
        """
        has = [name for name in ("classify", "generate") if getattr(self.model, name) is not None]
        head = self.head or ("generate" if self.choose else has[0])
        if self.choose and (head, *has).count("generate") < 2:
            raise UsageError(
                f"choose = {self.choose} is by likelihood, which only the head generate tells; "
                f"leave it out{'' if 'generate' in has else ', the model has not that head'}"
            )
        if head not in has:
            raise UsageError(f"head = {head}: the model has only {has[0]}")
        return head  # pyright: ignore[reportReturnType]

    @cached_property
    def fused(self) -> Vqa:
        """The model as it answers: with fused blocks, where they are whole ones."""
        return fused_vqa(self.model, dtype=product_dtype(self.precision))

    @cached_property
    def dialogue_text(self) -> DialogueText:
        """What makes tokens of a question to a model of dialogues."""
        config = self.model.config
        assert config.generate is not None and config.generate.text_length is not None
        return DialogueText(
            self.tokenizer,
            DialogueDataConfig(max_length=config.generate.text_length),
            tokens_per_piece=self.tokens_per_piece,
        )

    @property
    def tokens_per_piece(self) -> int:
        """That an image, or a piece of one, becomes."""
        return num_image_tokens(self.model.config.connector, self.model.clip.vision)

    @property
    def is_main(self) -> bool:
        """Whether this rank writes."""
        return rank_and_size(self.group)[0] == 0


@dataclass(frozen=True, kw_only=True)
class Answered(Said):
    """A question and what the model said."""

    probability: float
    """What the model gives it (of the whole answer, where it is written)."""
    image_key: str
    """The image's key in its source."""
    sample: int
    """The image's number in its source."""


def answer_all(
    answerer: Answerer, source: SampleSource, *, probe: Probe | None = None
) -> list[Answered]:
    """The model's answers to every question of a set, in the set's order, on every rank.

    Args:
        answerer: the model.
        source: images with questions.
        probe: `question`: every image is black, so that only the question tells; `image`: every
            question is empty.

    Raises:
        UsageError: on every rank, a sample cannot be used.
    """
    every = spans(source.num_samples, answerer.batch_size)
    numbers = [n for n in own_batches(len(every), answerer.group) if n is not None]
    batches = EvalBatches(
        source,
        answerer.preprocess,
        read_value=read_asked,
        names=("json",),
        spans=[every[number] for number in numbers],
        tiles=answerer.model.config.tiles,
    )
    own: list[tuple[int, list[Answered]]] = []
    faults: list[str] = []
    made = iterate_batches(
        batches,
        0,
        len(numbers),
        workers=answerer.workers,
        prefetch=2,
        pin_memory=answerer.device.type == "cuda",
    )
    with on_all_ranks(answerer.group, answerer.device), contextlib.closing(made):
        for number, batch in zip(numbers, made, strict=True):
            faults += [str(fault) for fault in batch.faults]
            if not faults:
                own.append((number, _answer_batch(answerer, source, batch, probe)))
    held = gather_all((own, faults), group=answerer.group, device=answerer.device)
    told = [fault for _, some in held for fault in some]
    if told:
        more = f" (and {len(told) - 1} more)" if len(told) > 1 else ""
        raise UsageError(f"evaluation data: {told[0]}{more}; mend or leave out such samples")
    parts = sorted((part for some, _ in held for part in some), key=lambda part: part[0])
    return [answered for _, some in parts for answered in some]


def read_asked(members: Members) -> tuple[Question, ...]:
    """A sample's questions.

    Raises:
        SampleError: its .json holds none.
    """
    try:
        return questions_from_json(json_fields(members.get("json")))
    except ValueError as error:
        raise SampleError(str(error)) from error


def _answer_batch(
    answerer: Answerer,
    source: SampleSource,
    batch: EvalBatch[tuple[Question, ...]],
    probe: Probe | None,
) -> list[Answered]:
    pieces = Pieces.whole(batch.images_BCHW) if batch.pieces is None else batch.pieces
    images_NCHW = pieces.images_NCHW.to(answerer.device, non_blocking=True)
    if probe == "question":
        images_NCHW = torch.zeros_like(images_NCHW)
    pieces = replace(pieces, images_NCHW=images_NCHW, place_N2=pieces.place_N2.to(answerer.device))
    num_slots = max(len(questions) for questions in batch.values)
    slots: list[Question | None] = []
    for questions in batch.values:
        slots += [*questions, *[None] * (num_slots - len(questions))]
    texts = ["" if one is None or probe == "image" else one.question for one in slots]
    if answerer.choose is None:
        said = answer_texts(answerer, pieces, texts)
    else:
        said = choose_options(answerer, pieces, texts, slots, read=partial(read_texts, answerer))
    return [
        Answered(
            question=question,
            prediction=said[row * num_slots + slot][0],
            probability=said[row * num_slots + slot][1],
            image_key=source.key(batch.first + row),
            sample=batch.first + row,
        )
        for row, questions in enumerate(batch.values)
        for slot, question in enumerate(questions)
    ]


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
