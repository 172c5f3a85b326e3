"""What [vqa] says before there is data or a model."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from mmtrain.data.config import DataConfig
from mmtrain.data.dialogues.batches import DialogueData
from mmtrain.data.images.transforms import AugmentConfig
from mmtrain.data.questions.answers import AnswerVocabulary, build_vocabulary, every_question
from mmtrain.data.questions.batches import VqaData, VqaDataConfig
from mmtrain.data.questions.source import open_questions
from mmtrain.data.sources.source import SampleSource
from mmtrain.data.text.tokenizer import Tokenizer
from mmtrain.errors import UsageError
from mmtrain.loading.config import ModelConfig
from mmtrain.loading.decoder_start import decoder_tokenizer
from mmtrain.losses.config import AnswerLossConfig
from mmtrain.models import VisionConfig
from mmtrain.models.connector import ConnectorConfig, num_image_tokens
from mmtrain.tasks.config import GenerateSection, VqaSection
from mmtrain.train.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class AnsweringSections:
    """`Sections` of answering questions."""

    vqa: VqaSection
    """[vqa]."""
    vision: VisionConfig
    """[model.vision], which says how many tokens an image is."""
    has_projection = False
    why_one_size = "[vqa] has an image's tokens, and a question's, at places of their own"

    @property
    def has_text(self) -> bool:
        """A classifier reads questions by an encoder; a decoder reads them itself."""
        return self.vqa.classify is not None

    @property
    def starts_whole(self) -> bool:
        """From vqa.init."""
        return self.vqa.init is not None

    @property
    def brings_tokenizer(self) -> bool:
        """From vqa.generate.init."""
        return self.vqa.generate is not None and self.vqa.generate.init is not None

    @property
    def image_tokens(self) -> int:
        """As many as the connector makes."""
        if self.vqa.generate is None:
            return 0
        return num_image_tokens(self.vqa.connector, self.vision)

    def resolve(self, model: ModelConfig) -> ModelConfig:
        """The heads take the towers as they are, if these have tokens to look at.

        Raises:
            UsageError: a tower is a trunk, which gives one token.
        """
        for name in ("vision", "text"):
            if (trunk := getattr(model, name).trunk) is not None:
                raise UsageError(
                    f'model.{name}.trunk.kind = "{trunk.kind}" gives one token, and [vqa] looks at '
                    "an image's patches and a question's tokens; start from a tower of blocks"
                )
        return model

    def tokenizer(self, context_length: int) -> Tokenizer | None:
        """That of the decoder that vqa.generate.init names."""
        generate = self.vqa.generate
        if generate is None or generate.init is None:
            return None
        return decoder_tokenizer(generate.init, context_length=context_length, chat=generate.chat)

    def sizes(self, data: DataConfig, tokenizer: Tokenizer) -> Mapping[str, Any]:
        """[vqa] with its lengths and number of answers; `num_answers` spares the questions.

        Raises:
            UsageError: the questions are not there, or too few have the same answer.
        """
        section, questions = self.vqa, self.vqa.data
        generate, classify = section.generate, section.classify
        if generate is not None:
            length = tokenizer.context_length + questions.answer_length
            if section.dialogues is not None:
                length = section.dialogues.max_length
            generate = with_sizes(generate, tokenizer, text_length=length)
        if classify is not None and classify.num_answers is None:
            found = self._vocabulary(self._open(data))
            classify = replace(classify, num_answers=len(found.answers))
        return {"vqa": replace(section, classify=classify, generate=generate)}

    def open_data(self, data: DataConfig, **common: Any) -> VqaData | DialogueData:
        """Images with their questions, or dialogues."""
        if self.vqa.dialogues is not None:
            return open_dialogue_data(data, self.vqa, self.vision, **common)
        source = self._open(data, world_size=common.get("world_size"))
        return VqaData(
            data,
            vqa=self.vqa.data,
            vocabulary=None if self.vqa.classify is None else self._vocabulary(source),
            with_answers=self.vqa.generate is not None,
            source=source,
            **common,
        )

    def _open(self, data: DataConfig, *, world_size: int | None = None) -> SampleSource:
        questions = self.vqa.data
        return open_questions(
            data.only_train,
            questions=questions.questions,
            annotations=questions.annotations,
            config=data,
            world_size=world_size,
        )

    def _vocabulary(self, source: SampleSource) -> AnswerVocabulary:
        questions = list(every_question(source))
        try:
            return build_vocabulary(questions, min_count=self.vqa.min_count)
        except ValueError as error:
            raise UsageError(f"vqa.{error}") from error

    def idle(self, data: DataConfig, train: TrainConfig) -> Iterator[tuple[str, str]]:
        """Settings of what the section has not."""
        if train.text_groups > 1:
            yield (
                f"train.text_groups = {train.text_groups}",
                "beside [vqa], which pads questions as they come; leave it out",
            )
        yield from _idle(self.vqa)
        if self.vqa.dialogues is not None:
            yield from _idle_beside_dialogues(self.vqa, data)

    def idle_notes(self, data: DataConfig) -> Iterator[str]:
        """None."""
        return iter(())

    def check_clip(self, source: Path) -> None:
        """Refuse: it answers questions."""
        raise UsageError(
            f"{source} is of a run that answers questions, and this --format writes a CLIP; use "
            "--format safetensors, or the run's export/"
        )


def with_sizes(
    generate: GenerateSection, tokenizer: Tokenizer, *, text_length: int
) -> GenerateSection:
    """[vqa.generate] with its vocabulary and length; a decoder that a run starts from may have more
    entries than its tokenizer has ids.

    Raises:
        UsageError: it has fewer.
    """
    ids = tokenizer.vocab_size
    entries = ids if generate.init is None else generate.vocab_size
    assert entries is not None, "the folder says it"
    if entries < ids:
        raise UsageError(
            f"vqa.generate.init = {generate.init}: its tokenizer has {ids} ids, but the model's "
            f"vocab_size = {entries}"
        )
    return replace(generate, vocab_size=entries, text_length=text_length)


def open_dialogue_data(
    data: DataConfig, section: VqaSection, vision: VisionConfig, **common: Any
) -> DialogueData:
    """The batches of [vqa.dialogues]; `common` as all `NumberedData` take it."""
    assert section.dialogues is not None
    return DialogueData(
        data,
        dialogues=section.dialogues,
        tiles=section.tiles,
        tokens_per_piece=num_image_tokens(section.connector, vision),
        **common,
    )


def _idle_beside_dialogues(vqa: VqaSection, data: DataConfig) -> Iterator[tuple[str, str]]:
    standard = VqaDataConfig()
    for name in (field.name for field in fields(VqaDataConfig)):
        value = getattr(vqa.data, name)
        if name != "answer_length" and value != getattr(standard, name):
            yield f"vqa.data.{name}", "beside [vqa.dialogues], which has no questions; leave it out"
    if vqa.tiles is None:
        return
    for name, standard in (("augment", AugmentConfig()), ("resize_mode", DataConfig.resize_mode)):
        if getattr(data, name) != standard:
            yield f"data.{name}", "beside [vqa.tiles], which cuts whole images; leave it out"


def _idle(vqa: VqaSection) -> Iterator[tuple[str, str]]:
    connector, standard = vqa.connector, ConnectorConfig()
    for name, kind in (("factor", "pixel_shuffle"), ("num_queries", "queries")):
        value = getattr(connector, name)
        if connector.kind != kind and value != getattr(standard, name):
            yield (
                f"vqa.connector.{name} = {value}",
                f'with kind = "{connector.kind}"; set kind = "{kind}", or leave it out',
            )
    blocks = {
        "generate.transformer": vqa.generate and vqa.generate.transformer,
        "classify.fusion": vqa.classify and vqa.classify.fusion,
    }
    for name, core in blocks.items():
        if core is not None and core.stochastic_depth:
            yield (
                f"vqa.{name}.stochastic_depth = {core.stochastic_depth}",
                "in a head, of whose blocks none is dropped; leave it out, towers have it",
            )
    one_head = vqa.classify is None or vqa.generate is None
    if one_head and vqa.loss.generate_weight != AnswerLossConfig.generate_weight:
        yield (
            f"vqa.loss.generate_weight = {vqa.loss.generate_weight}",
            "with one head: it weighs writing against choosing; leave it out",
        )
    if vqa.classify is not None:
        return
    chosen = {
        "min_count": (vqa.min_count, VqaSection.min_count),
        "loss.classify": (vqa.loss.classify, AnswerLossConfig.classify),
        "text_lr": (vqa.text_lr, None),
    }
    for name, (value, default) in chosen.items():
        if value != default:
            yield f"vqa.{name} = {value}", "without [vqa.classify]; leave it out"
