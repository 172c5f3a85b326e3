"""What a task's sections of a recipe say before there is data or a model."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from mmtrain.data.config import DataConfig
from mmtrain.data.numbered import NumberedData
from mmtrain.data.text.tokenizer import Tokenizer
from mmtrain.loading.config import ModelConfig
from mmtrain.train.config import TrainConfig


class Sections(Protocol):
    """Made of a task's own sections; what all tasks share is given to the methods."""

    @property
    def has_text(self) -> bool:
        """The text tower trains; a decoder that answers needs none."""
        ...

    @property
    def has_projection(self) -> bool:
        """The towers end in projections into a space of model.embed_dim."""
        ...

    @property
    def why_one_size(self) -> str | None:
        """Why images and texts are of one size in all phases of a run; None: they need not be."""
        ...

    @property
    def starts_whole(self) -> bool:
        """All weights come from a trained model, beside what [model] names."""
        ...

    @property
    def brings_tokenizer(self) -> bool:
        """What the task's own sections start from has a tokenizer, see `tokenizer`."""
        ...

    @property
    def image_tokens(self) -> int:
        """Tokens that an image, or a piece of one, has in a decoder's row; 0: no decoder reads."""
        ...

    def resolve(self, model: ModelConfig) -> ModelConfig:
        """What the task fixes in [model], filled in.

        Raises:
            UsageError: [model] contradicts the task.
        """
        ...

    def tokenizer(self, context_length: int) -> Tokenizer | None:
        """That of what the task's own sections start from, whatever [model] does; None: there is
        none.

        Args:
            context_length: tokens of a text at most.

        Raises:
            UsageError: it cannot be had.
        """
        ...

    def sizes(self, data: DataConfig, tokenizer: Tokenizer) -> Mapping[str, Any]:
        """Sections with what tokenizer and data fix in them, as far as sizes are reckoned by it.

        Raises:
            UsageError: the data that fix it are not there.
        """
        ...

    def open_data(self, data: DataConfig, **common: Any) -> NumberedData[Any]:
        """The batches without a model, with captions as texts too.

        Args:
            data: the section [data].
            common: what all `NumberedData` take.

        Raises:
            UsageError: the data cannot be had.
        """
        ...

    def idle(self, data: DataConfig, train: TrainConfig) -> Iterator[tuple[str, str]]:
        """Settings that nothing would read: key with value, why it has no effect and what to
        do."""
        ...

    def idle_notes(self, data: DataConfig) -> Iterator[str]:
        """Settings that cannot matter here but are honest in a try of a longer run, in lines."""
        ...

    def check_clip(self, source: Path) -> None:
        """Refuse to take the task's model for a CLIP.

        Args:
            source: its checkpoint, for messages.

        Raises:
            UsageError: it is something else.
        """
        ...
