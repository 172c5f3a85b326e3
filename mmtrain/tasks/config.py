"""The sections [loss] and [vqa] of a recipe."""

from dataclasses import dataclass, field, fields, replace
from typing import Any

from mmtrain.data.dialogues.config import DialogueDataConfig
from mmtrain.data.questions.batches import VqaDataConfig
from mmtrain.losses.config import AnswerLossConfig, LossConfig
from mmtrain.models.generate_answers import GenerateConfig
from mmtrain.models.vqa import VqaConfig
from mmtrain.settings.paths import ModelText
from mmtrain.tasks.terms import TermConfig


@dataclass(frozen=True, kw_only=True)
class LossSection(LossConfig):
    """The contrastive loss and what is added to it."""

    weight: float = 1.0
    """What the contrastive loss counts beside [[loss.terms]]."""
    terms: tuple[TermConfig, ...] = ()
    """Further terms, each with its kind, its weight and its own keys; metrics.jsonl has what each
    comes to as loss/KIND."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weight < 0:
            raise ValueError(f"weight = {self.weight} must be at least 0")
        if self.weight != 1 and not self.terms:
            raise ValueError(
                f"weight = {self.weight} has no effect without [[loss.terms]], beside which it "
                "counts; leave it out"
            )


@dataclass(frozen=True, kw_only=True)
class GenerateSection(GenerateConfig):
    """A decoder that answers, and the weights that it starts from. With `init` only what training
    chooses need be given, transformer.mask."""

    init: ModelText | None = None
    """Start the decoder from a folder in Hugging Face's form (GPT-2, Llama, SmolLM2, Qwen ...). It
    brings its shape, its weights, its tokenizer and its chat template."""
    chat: bool | None = None
    """Ask by the chat template of `init`: the question is what the user says, the answer what the
    assistant does. None: where the folder has one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.chat is not None and self.init is None:
            raise ValueError(
                f"chat = {str(self.chat).lower()} has no effect without init, a decoder's folder "
                "with a chat template; leave it out"
            )

    @property
    def model(self) -> GenerateConfig:
        """The architecture alone."""
        return GenerateConfig(**{f.name: getattr(self, f.name) for f in fields(GenerateConfig)})


@dataclass(frozen=True, kw_only=True)
class VqaSection(VqaConfig):
    """Answer questions about images instead of matching captions. [model] says the towers: the
    image's, and the question's encoder."""

    generate: GenerateSection | None = None
    """Write answers."""
    data: VqaDataConfig = field(default_factory=VqaDataConfig)
    """Questions beside the images of data.train."""
    dialogues: DialogueDataConfig | None = None
    """Learn from whole dialogues, which data.train then has, instead of questions."""
    loss: AnswerLossConfig = field(default_factory=AnswerLossConfig)
    """What it costs to answer wrongly."""
    min_count: int = 9
    """classify: an answer is in the vocabulary where it is that of so many questions."""
    init: ModelText | None = None
    """Start from all weights of a VQA model: a run or its export; for training in stages."""
    vision_lr: float | None = None
    """Peak learning rate of the vision tower. None: optim.lr."""
    text_lr: float | None = None
    """Peak learning rate of the question encoder. None: optim.lr."""
    connector_lr: float | None = None
    """Peak learning rate of what makes a head's tokens of an image's. None: optim.lr."""

    def __post_init__(self) -> None:
        self._read_dialogues()
        super().__post_init__()
        if self.min_count < 1:
            raise ValueError(f"min_count = {self.min_count} must be at least 1")
        for name in ("vision_lr", "text_lr", "connector_lr"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name} = {value} must be positive; [lock] freezes a tower")

    def _read_dialogues(self) -> None:
        """Tell the decoder what its texts are."""
        if self.dialogues is None:
            if self.reads_dialogues:
                raise ValueError('generate.reads = "dialogues" needs [vqa.dialogues]; leave it out')
            return
        if self.generate is None:
            raise ValueError("dialogues are written by a decoder; give it [vqa.generate]")
        try:
            generate = replace(self.generate, reads="dialogues")
        except ValueError as error:
            raise ValueError(f"generate.{error}") from error
        object.__setattr__(self, "generate", generate)

    @property
    def model(self) -> VqaConfig:
        """The architecture alone."""
        given: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(VqaConfig)}
        given["generate"] = self.generate and self.generate.model
        return VqaConfig(**given)
