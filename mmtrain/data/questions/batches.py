"""Batches of images with several questions each: every image is there, and encoded, once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Unpack

import torch
from torch import Tensor

from mmtrain.data.batch import SampleBatch
from mmtrain.data.config import DataConfig
from mmtrain.data.images.transforms import TrainTransform
from mmtrain.data.mixture import SourceSettings
from mmtrain.data.numbered import BatchOptions, NumberedData
from mmtrain.data.order.randomness import uniform
from mmtrain.data.questions.answers import AnswerVocabulary, answer_scores, compared_form
from mmtrain.data.questions.question import Question, questions_from_json
from mmtrain.data.questions.source import open_questions
from mmtrain.data.sample_error import SampleError
from mmtrain.data.samples import Sample, SampleReader
from mmtrain.data.sources.source import SampleSource
from mmtrain.data.text.tokenizer import Tokenizer
from mmtrain.errors import UsageError
from mmtrain.limits import check_counts
from mmtrain.settings.paths import PathText

NO_ANSWER = -1
"""Fills the rest of a question's answers."""


@dataclass(frozen=True, kw_only=True)
class VqaDataConfig:
    """Where the questions are, and how many of an image's go into a batch."""

    questions: PathText | None = None
    """The set's file of questions; data.train is then the folder of its images. None: data.train
    brings them (easy_vqa:train, or shards packed by `mmtrain data vqa`)."""
    annotations: PathText | None = None
    """The file of answers of VQAv2 or OK-VQA."""
    per_image: int = 8
    """Questions of an image in a batch. Of more, other ones are drawn in every epoch; fewer leave
    rows that do not count."""
    answer_length: int = 8
    """Tokens of an answer at most, its end token counted (generate)."""
    image_only: bool = False
    """A probe: every question is empty, so that only the image tells."""
    question_only: bool = False
    """A probe: every image is black, so that only the question tells."""

    def __post_init__(self) -> None:
        check_counts(self, "per_image")
        check_counts(self, "answer_length", least=2)
        if self.image_only and self.question_only:
            raise ValueError("image_only and question_only = true leave nothing; keep one")


@dataclass(frozen=True, kw_only=True)
class VqaBatch(SampleBatch):
    """B images with N slots for questions each: Q = B * N rows, those of an image together."""

    tokens_QT: Tensor
    """int64: a question's tokens, then (generate) its answer's; cut to the longest."""
    question_length_Q: Tensor
    """int64, tokens of the question; at least 1, also in an empty slot."""
    length_Q: Tensor
    """int64, tokens of question and answer. The answer's, which are what is learnt, are those from
    question_length_Q up to here: masks come from these lengths, never from reading tokens again."""
    answer_id_QK: Tensor
    """int64, places of right answers in the vocabulary; -1 fills up."""
    answer_score_QK: Tensor
    """fp32 in [0, 1], how right each is."""
    valid_Q: Tensor
    """bool, False in empty slots and on padding rows; such questions count nowhere."""

    @property
    def text_length(self) -> Tensor:
        """The questions'."""
        return self.question_length_Q

    def row_texts(self, decode: Callable[[list[int]], str]) -> list[str]:
        """Each image's questions."""
        rows = zip(
            self.tokens_QT.tolist(),
            self.question_length_Q.tolist(),
            self.valid_Q.tolist(),
            strict=True,
        )
        asked = [decode(ids[:length]) if valid else "" for ids, length, valid in rows]
        each = len(asked) // self.num_rows
        return [
            " | ".join(filter(None, asked[start : start + each]))
            for start in range(0, len(asked), each)
        ]

    @property
    def label_mask_QT(self) -> Tensor:
        """bool, True on the answers' tokens."""
        return label_mask(self.tokens_QT, self.question_length_Q, self.length_Q)


def label_mask(tokens_QT: Tensor, start_Q: Tensor, stop_Q: Tensor) -> Tensor:
    """bool [Q, T]: the tokens of each row from `start_Q` up to `stop_Q`."""
    place_T = torch.arange(tokens_QT.size(1), device=tokens_QT.device)
    return (place_T >= start_Q[:, None]) & (place_T < stop_Q[:, None])


class QuestionReader(SampleReader):
    """Samples that have questions, with an answer to each; others are bad samples."""

    def read(
        self, sample: int, *, caption_draws: Sequence[float], transform_draws: Tensor
    ) -> Sample:
        read = super().read(sample, caption_draws=caption_draws, transform_draws=transform_draws)
        try:
            questions = questions_from_json(read.meta.fields)
        except ValueError as error:
            raise SampleError(str(error)) from error
        for question in questions:
            if not question.answers:
                told = f"question_id {question.question_id}"
                raise SampleError("question without answers", detail=told)
        return read


@dataclass(frozen=True, kw_only=True)
class TextForm:
    """How questions and answers become tokens."""

    tokenizer: Tokenizer
    """For both."""
    with_answers: bool = False
    """Whether an answer follows its question (generate)."""
    answer_length: int = 8
    """Tokens of an answer at most, its end token counted."""
    fixed: bool = False
    """Pad to the longest that there can be, where shapes must be static."""
    blank: bool = False
    """Leave every question out (the image-only probe)."""

    @property
    def longest(self) -> int:
        """Tokens of a question and its answer at most."""
        return self.tokenizer.context_length + self.answer_length * self.with_answers

    def encode(self, pairs: Sequence[tuple[str, str]]) -> tuple[Tensor, Tensor, Tensor]:
        """Questions and answers -> ids [Q, T], lengths of the questions and of both [Q]."""
        asked = ["" if self.blank else question for question, _ in pairs]
        question_QT, question_Q = self.tokenizer.encode(asked)
        question_Q = question_Q.clamp(min=1)
        total_Q = question_Q.clone()
        rows = [question_QT[row, :n] for row, n in enumerate(question_Q.tolist())]
        if self.with_answers:
            answers = [self.answer_ids(answer) for _, answer in pairs]
            rows = [torch.cat([row, ids]) for row, ids in zip(rows, answers, strict=True)]
            total_Q = question_Q + torch.tensor([ids.numel() for ids in answers])
        width = self.longest if self.fixed else int(total_Q.max())
        tokens_QT = torch.full((len(rows), width), self.tokenizer.pad_id)
        for row, ids in enumerate(rows):
            tokens_QT[row, : ids.numel()] = ids
        return tokens_QT, question_Q, total_Q

    def answer_ids(self, answer: str) -> Tensor:
        """An answer's tokens and the end token, no start token.

        Raises:
            UsageError: the tokenizer has no end token.
        """
        end = self.tokenizer.eot_id
        if end is None:
            raise UsageError("tokenizer: an answer needs an end token, which the model has not")
        ids = self.tokenizer.reply_ids(answer)
        return torch.tensor([*ids[: self.answer_length - 1], end])


class VqaData(NumberedData[VqaBatch]):
    """Batches of images with their questions.

    A sample is an image; which of its questions stand in a batch, and which annotator's answer is
    written behind one, are functions of (seed, epoch, position) as crops are.

    Args:
        config: the recipe's section; captions and labels have no meaning here.
        vqa: where the questions are.
        vocabulary: the answers that a classifier chooses among; None: there is no classifier.
        with_answers: write an answer behind each question (generate).
        source: the samples, where they are open already.
        common: as NumberedData takes them.

    Raises:
        UsageError: the files cannot be read or do not fit each other, or a setting has no effect.
    """

    def __init__(
        self,
        config: DataConfig,
        *,
        vqa: VqaDataConfig,
        vocabulary: AnswerVocabulary | None,
        with_answers: bool,
        source: SampleSource | None = None,
        **common: Unpack[BatchOptions],
    ) -> None:
        config.refuse_captions("questions")
        self.vqa = vqa
        self._source = source
        self.answers: tuple[str, ...] = () if vocabulary is None else vocabulary.answers
        """What a classifier chooses among."""
        self._answer_ids = {} if vocabulary is None else vocabulary.ids()
        self.text = TextForm(
            tokenizer=common["tokenizer"],
            with_answers=with_answers,
            answer_length=vqa.answer_length,
            fixed=common.get("fixed_length") is not None,
            blank=vqa.image_only,
        )
        self._world_size = common.get("world_size", 1)
        super().__init__(config, **common)

    def _open_source(self, settings: SourceSettings) -> SampleSource:
        if self._source is not None:
            return self._source
        return open_questions(
            settings.train,
            questions=self.vqa.questions,
            annotations=self.vqa.annotations,
            config=self.config,
            world_size=self._world_size,
        )

    def _build_reader(
        self, source: SampleSource, settings: SourceSettings, transform: TrainTransform | None
    ) -> SampleReader:
        config = self.config
        return QuestionReader(
            source,
            transform=transform,
            captions={},
            max_pixels=config.max_image_pixels,
            at_least=config.decoded_at_least(self._preprocess.image_size),
            keep_fields=True,
            retry_seconds=config.retry_seconds,
        )

    def batch(self, number: int) -> VqaBatch:
        """This rank's images of a global batch, with their questions."""
        rows, phase = self.plan.rows(number), self.phases.at(number)
        samples, bad = self._samples(rows, phase)
        draw = partial(
            uniform, seed=self.seed, epoch=rows.epoch, position_B=torch.from_numpy(rows.position_B)
        )
        num_slots = self.vqa.per_image
        answer_BN = draw(purpose="answer", num=num_slots).tolist()
        asked: list[Question | None] = []
        pairs: list[tuple[str, str]] = []
        for row, own in enumerate(self._drawn(samples, draw)):
            for slot in range(num_slots):
                question = own[slot] if slot < len(own) else None
                asked.append(question)
                pairs.append(_pair(question, answer_BN[row][slot]))
        tokens_QT, question_length_Q, length_Q = self.text.encode(pairs)
        answer_id_QK, answer_score_QK = self._targets(asked)
        images_BCHW = self._stacked(samples, phase)
        return VqaBatch(
            images_BCHW=torch.zeros_like(images_BCHW) if self.vqa.question_only else images_BCHW,
            tokens_QT=tokens_QT,
            question_length_Q=question_length_Q,
            length_Q=length_Q,
            answer_id_QK=answer_id_QK,
            answer_score_QK=answer_score_QK,
            valid_Q=torch.tensor([question is not None for question in asked]),
            **self._account(number, rows, samples, bad),
        )

    def _drawn(
        self, samples: Sequence[Sample | None], draw: Callable[..., Tensor]
    ) -> list[list[Question]]:
        """Of each sample's questions as many as have a slot, in their order."""
        asked = [[*questions_from_json(s.meta.fields)] if s is not None else [] for s in samples]
        num_slots, most = self.vqa.per_image, max(map(len, asked))
        if most <= num_slots:
            return asked
        draw_BN = draw(purpose="questions", num=most)
        orders = [draw_N[: len(own)].argsort() for draw_N, own in zip(draw_BN, asked, strict=True)]
        return [
            [own[place] for place in sorted(order[:num_slots].tolist())]
            for own, order in zip(asked, orders, strict=True)
        ]

    def _targets(self, asked: Sequence[Question | None]) -> tuple[Tensor, Tensor]:
        """Places and scores of the vocabulary's right answers, [Q, K]."""
        found = [
            []
            if question is None
            else [
                (self._answer_ids[answer], score)
                for answer, score in answer_scores(question).items()
                if answer in self._answer_ids
            ]
            for question in asked
        ]
        width = max(1, *map(len, found))
        id_QK = torch.full((len(found), width), NO_ANSWER)
        score_QK = torch.zeros(len(found), width)
        for row, pairs in enumerate(found):
            for place, (answer, score) in enumerate(pairs):
                id_QK[row, place], score_QK[row, place] = answer, score
        return id_QK, score_QK


def _pair(question: Question | None, draw: float) -> tuple[str, str]:
    """A question and one of its answers, each annotator's as likely as the others'."""
    if question is None:
        return "", ""
    answer = question.answers[int(draw * len(question.answers))]
    return question.question, compared_form(question, answer)
