"""The task of answering: questions about images, their answers chosen or written."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from mmtrain.data.numbered import NumberedData
from mmtrain.data.phases import Phase
from mmtrain.data.questions.answers import (
    AnswerVocabulary,
    build_vocabulary,
    ceiling,
    every_question,
)
from mmtrain.data.questions.batches import VqaBatch, VqaData
from mmtrain.data.questions.question import Question
from mmtrain.data.questions.source import known_questions, open_questions, refuse_unanswered
from mmtrain.errors import UsageError
from mmtrain.eval.questions.answerer import Answerer
from mmtrain.eval.questions.answering import refuse_unaskable
from mmtrain.loading.decoder_start import read_decoder
from mmtrain.loading.hub_models import model_folder
from mmtrain.loading.vqa import (
    VqaModel,
    load_vqa,
    read_decoder_files,
    save_vqa,
    write_decoder_files,
)
from mmtrain.losses.config import AnswerLossConfig
from mmtrain.losses.vocabulary import VocabularyShares
from mmtrain.models import ClipConfig
from mmtrain.models.vqa import Vqa
from mmtrain.models.vqa_stage import Asked
from mmtrain.parallel.mesh import Layout
from mmtrain.peft import baked
from mmtrain.tasks.answering_sections import with_sizes
from mmtrain.tasks.answering_start import build_started_model, refuse_other_answers, start_notes
from mmtrain.tasks.config import VqaSection
from mmtrain.tasks.dictionaries import fill_dictionaries, refuse_shut_doors
from mmtrain.tasks.draws import Draws, question_positions
from mmtrain.tasks.objective import Objective
from mmtrain.tasks.task import Shared
from mmtrain.tasks.terms.answers import ChoiceTerm, WritingTerm
from mmtrain.tasks.terms.term import Rows, Term

_RATES = {
    "vision.": "vision_lr",
    "text.": "text_lr",
    "classify.connector.": "connector_lr",
    "generate.connector.": "connector_lr",
}
"""The key of a part's own learning rate, by the start of its parameters' names."""


class AnsweringTask:
    """A vision tower, a question encoder, and heads that choose or write answers.

    Args:
        shared: what all tasks find.
        clip: the towers, resolved.
        section: [vqa].
        init: model.init.

    Raises:
        UsageError: the data, or the models that it starts from, do not fit.
    """

    judges: Literal["answers"] = "answers"

    def __init__(
        self, shared: Shared, *, clip: ClipConfig, section: VqaSection, init: str | None
    ) -> None:
        _refuse_padding(clip, section)
        self._shared, self._clip = shared, clip
        begins = None if section.generate is None else section.generate.init
        self.base = section.init or init or begins or ""
        self.vocabulary: AnswerVocabulary | None = None
        """What the classifier chooses among."""
        self.ceiling: float | None = None
        """What whoever always chooses the vocabulary's best answer would score in training."""
        build_data = self._data_of(section)
        pipelined = shared.layout.size("pp") > 1
        self.data = build_data(
            fixed_length=shared.tokenizer.context_length if pipelined else None, **shared.batches()
        )
        self.section = self._filled_in(section)
        """[vqa] with what the data fixed in it."""
        self._whole = None
        if section.init is not None and not shared.begun:
            self._whole = load_vqa(model_folder(section.init, key="vqa.init"), key="vqa.init")
        found = None if self._whole is None else self._whole.model.state_dict()
        decoder = None if begins is None or shared.begun else read_decoder(begins)
        self._decoder_files = read_decoder_files(shared.kept) if decoder is None else decoder.files
        self.model = build_started_model(clip, self.section, shared, found, decoder=decoder)
        if shared.begun:
            return
        # As one process has them, so that every rank finds the same centres.
        alone = {"rank": 0, "world_size": 1, "images": True, "pin_memory": False}
        all_data = build_data(**shared.batches() | alone)
        fill_dictionaries(self.model, all_data, self._look_at, seed=shared.seed, given=found or ())

    def _data_of(self, section: VqaSection) -> Callable[..., NumberedData[Any]]:
        """What makes the batches, of what all data take; the answers that a classifier chooses
        among are known then."""
        shared = self._shared
        source = open_questions(
            shared.data.only_train,
            questions=section.data.questions,
            annotations=section.data.annotations,
            config=shared.data,
            world_size=shared.layout.size("dp"),
        )
        refuse_unanswered(source)
        if section.classify is not None:
            questions = list(every_question(source))
            self.vocabulary = _vocabulary(section, questions)
            self.ceiling = ceiling(questions, self.vocabulary)
        return partial(
            VqaData,
            shared.data,
            vqa=section.data,
            vocabulary=self.vocabulary,
            with_answers=section.generate is not None,
            source=source,
        )

    def _look_at(self, batch: Any) -> None:
        """Let the model see a batch, through all its front doors."""
        asked = Asked(
            tokens_QT=batch.tokens_QT,
            question_length_Q=batch.question_length_Q,
            length_Q=batch.length_Q,
        )
        self.model.logits(batch.images_BCHW, asked)

    def _text_length(self) -> int:
        """Tokens of a text of the decoder's at most."""
        assert isinstance(self.data, VqaData)
        return self.data.text.longest

    def sections(self) -> Mapping[str, Any]:
        """[vqa], with answers and lengths."""
        return {"vqa": self.section}

    def objective(self, *, lora_dropout: bool) -> Objective:
        """A term for each head."""
        return answer_objective(
            self.model,
            self.section.loss,
            layout=self._shared.layout,
            seed=self._shared.seed,
            phases=self._shared.phases,
            lora_dropout=lora_dropout,
        )

    def learning_rates(self) -> Mapping[str, float]:
        """Of towers and connectors, where the section gives them their own."""
        rates = {start: getattr(self.section, key) for start, key in _RATES.items()}
        return {start: lr for start, lr in rates.items() if lr is not None}

    def check_adapted(self) -> None:
        """Refuse an adapter beside which a head stays as it was drawn, a front door stays shut, or
        a rate has no use."""
        if not self._shared.begun:
            refuse_shut_doors(self.model)
        trains = {name for name, p in self.model.named_parameters() if p.requires_grad}
        generate = self.section.generate
        is_begun = generate is not None and generate.init is not None
        brought = "generate.decoder." if is_begun else None
        drawn = [n for n in self.model.state_dict() if brought is None or not n.startswith(brought)]
        for head in ("classify", "generate"):
            frozen = [n for n in drawn if n.startswith(f"{head}.") and n not in trains]
            if self.section.init is None and frozen:
                part = head if brought is None else ".".join(frozen[0].split(".")[:2])
                raise UsageError(
                    f"[peft] leaves parts of vqa.{head} as they were drawn; name a trained model "
                    f'in vqa.init, or set peft.also_train = ["{part}.*"]'
                )
        given = {_RATES[start] for start in self.learning_rates()}
        for key in sorted(given):
            starts = tuple(start for start, other in _RATES.items() if other == key)
            if not any(name.startswith(starts) for name in trains):
                raise UsageError(
                    f"vqa.{key} has no effect: nothing of that part trains beside [peft]; leave it "
                    "out"
                )

    def notes(self) -> tuple[str, ...]:
        """Where the recipe contradicts the models that it starts from."""
        if self._whole is not None:
            refuse_other_answers(
                self._whole, self.vocabulary, key=f"vqa.init = {self.section.init}"
            )
        return start_notes(self._clip, self.section, self._whole, shared=self._shared)

    def check_evaluation(self, config: Any) -> None:
        """A head that it names must be there, and room for the questions that are known."""
        if config.head is not None and getattr(self.section, config.head) is None:
            raise UsageError(
                f'eval.vqa {config.name!r}: head = "{config.head}" has no [vqa.{config.head}]; '
                "leave it out"
            )
        answerer = replace(self._answerer(), head=config.head, choose=config.choose)
        if answerer.model.config.reads_dialogues:
            try:
                refuse_unaskable(answerer, known_questions(config.open().source))
            except UsageError as error:
                raise UsageError(f"eval {config.name}: {error}") from error

    def evaluator(self, weights: Mapping[str, Tensor]) -> Answerer:
        """The model with these weights."""
        answerer = self._answerer()
        answerer.model.load_state_dict(weights, assign=True)
        return answerer

    def _answerer(self) -> Answerer:
        """The model without its weights."""
        with torch.device("meta"):
            model = Vqa(self._clip, self.section.model)
        return Answerer(
            model=model.eval(),
            vocabulary=self.vocabulary,
            answer_length=self.section.data.answer_length,
            **self._shared.evaluator(),
        )

    def export(self, folder: Path, evaluator: Answerer) -> None:
        """Write the model in our form, learned tokens as what their network made of them."""
        saved = VqaModel(
            model=_without_network(evaluator.model),
            tokenizer=self._shared.tokenizer,
            preprocess=self._shared.preprocess,
            vocabulary=self.vocabulary,
            answer_length=self.section.data.answer_length,
            decoder_files=self._decoder_files,
        )
        save_vqa(folder, saved)

    def keep(self, folder: Path) -> None:
        """The files of the decoder's folder but for the weights."""
        write_decoder_files(folder, self._decoder_files)

    def looks(self, evaluator: Answerer) -> None:
        """A report has the evaluations' own pictures."""

    def _filled_in(self, section: VqaSection) -> VqaSection:
        classify, generate = section.classify, section.generate
        if classify is not None and self.vocabulary is not None:
            classify = replace(classify, num_answers=len(self.vocabulary.answers))
        if generate is not None:
            generate = with_sizes(generate, self._shared.tokenizer, text_length=self._text_length())
        return replace(section, classify=classify, generate=generate)


def _refuse_padding(clip: ClipConfig, section: VqaSection) -> None:
    text = clip.text
    if section.classify is not None and not text.cuts_padding:
        pool = (
            'model.text.pool = "end"' if text.pool == "last" else "model.text.mask_padding = true"
        )
        raise UsageError(
            "model.text sees its padding, and [vqa.classify] gives it questions without any; set "
            f"{pool}"
        )


def _vocabulary(section: VqaSection, questions: list[Question]) -> AnswerVocabulary:
    try:
        return build_vocabulary(questions, min_count=section.min_count)
    except ValueError as error:
        raise UsageError(f"vqa.{error}") from error


@torch.no_grad()
def _without_network(model: Vqa) -> Vqa:
    """The model whose learned tokens are what their network made of them."""
    generate = model.config.generate
    if model.generate is None or model.generate.prompt is None or generate is None:
        return model
    assert generate.prompt is not None
    prompt = replace(generate, prompt=baked(generate.prompt))
    with torch.device("meta"):
        plain = Vqa(model.clip, replace(model.config, generate=prompt))
    start = "generate.prompt."
    state = {name: x for name, x in model.state_dict().items() if not name.startswith(start)}
    plain.load_state_dict(state | {f"{start}rows": model.generate.prompt()}, assign=True)
    return plain.eval()


def answer_objective(
    model: Vqa,
    config: AnswerLossConfig,
    *,
    layout: Layout,
    seed: int,
    phases: Sequence[Phase] = (),
    lora_dropout: bool = False,
) -> Objective:
    """A term for each head of the model.

    Args:
        model: its heads.
        config: the section [vqa.loss].
        layout: the mesh.
        seed: of every random choice.
        phases: of the run.
        lora_dropout: the model's adapter drops features.
    """
    draws = Draws(
        seed=seed,
        vision=model.clip.vision,
        phases=phases,
        text=model.clip.text.transformer,
        text_rows="text_keep_QL2",
        purposes=("vision_keep_BL2", "text_keep_QL2"),
        lora_dropout=lora_dropout,
    )

    def rows(batch: VqaBatch) -> Rows:
        found = {
            "tokens_QT": batch.tokens_QT,
            "question_length_Q": batch.question_length_Q,
            "length_Q": batch.length_Q,
            "answer_id_QK": batch.answer_id_QK,
            "answer_score_QK": batch.answer_score_QK,
            "valid_Q": batch.valid_Q,
        }
        position_Q = question_positions(batch.position_B, batch.valid_Q.size(0))
        return found | draws.rows(batch, position_Q)

    terms: list[Term] = []
    if model.config.classify is not None:
        terms.append(ChoiceTerm(config.classify))
    if (generate := model.config.generate) is not None:
        shares = None
        if (group := layout.group("tp")) is not None:
            assert generate.vocab_size is not None
            shares = VocabularyShares(group=group, vocab_size=generate.vocab_size)
        terms.append(WritingTerm(shares, weight=config.generate_weight if terms else 1.0))
    return Objective(terms, layout=layout, rows=rows)
