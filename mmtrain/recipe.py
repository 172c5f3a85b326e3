"""Recipes: the parts' own configs composed, read from TOML with overrides."""

import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmtrain.data.image_text import DataConfig
from mmtrain.data.tokenizer import TokenizerConfig
from mmtrain.decode_config import apply_overrides, decode
from mmtrain.errors import UsageError
from mmtrain.models import ClipConfig
from mmtrain.optim import OptimConfig
from mmtrain.parallel import ParallelConfig
from mmtrain.train.contrastive import LossConfig
from mmtrain.train.loop import TrainConfig
from mmtrain.train.metrics import LogConfig


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Where a run lives and what makes it repeatable."""

    dir: str
    """The run folder; everything a run writes is in it."""
    seed: int = 0
    """Of the initial weights, the data order and every random choice."""


@dataclass(frozen=True, kw_only=True)
class LockConfig:
    """Frozen towers (LiT, arXiv:2111.07991). None: the tower trains."""

    vision: int | None = None
    """0 freezes the vision tower; n leaves the head and its last n - 1 blocks trainable."""
    text: int | None = None
    """The same for the text tower."""


@dataclass(frozen=True, kw_only=True)
class ZeroShotConfig:
    """One zero-shot evaluation."""

    name: str
    """Names the result: eval/NAME.json."""
    data: str | tuple[str, ...]
    """Shards, as data.train takes them."""
    classes: str
    """A classes.json: a list of {"id", "name"} or of names."""
    label_key: str = "concept"
    """Field of a sample's .json that holds its class id."""
    templates: str = "name"
    """Prompt templates by name (name, simple, imagenet) or a file, one a line."""


@dataclass(frozen=True, kw_only=True)
class RetrievalConfig:
    """One retrieval evaluation."""

    name: str
    """Names the result: eval/NAME.json."""
    data: str | tuple[str, ...]
    """Shards, as data.train takes them."""
    captions: tuple[str, ...] = ("txt",)
    """Where captions are: the .txt member or fields of the .json."""


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """What is evaluated during and after training, over all ranks."""

    every: int | None = None
    """Steps between evaluations. None: only at the end."""
    batch_size: int = 256
    """Samples per rank and forward."""
    zero_shot: tuple[ZeroShotConfig, ...] = ()
    """Zero-shot evaluations."""
    retrieval: tuple[RetrievalConfig, ...] = ()
    """Retrieval evaluations."""


@dataclass(frozen=True, kw_only=True)
class TrainRecipe:
    """A whole run."""

    run: RunConfig
    """Folder and seed."""
    data: DataConfig
    """Shards, captions, augmentation."""
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    """Texts to ids; it also fixes the text tower's vocabulary and context."""
    model: ClipConfig
    """Both towers."""
    loss: LossConfig = field(default_factory=LossConfig)
    """The contrastive loss."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimizer, schedule, EMA."""
    train: TrainConfig
    """Length, batch, precision, checkpoints."""
    lock: LockConfig = field(default_factory=LockConfig)
    """Frozen towers."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    """Sizes of the mesh's axes."""
    eval: EvalConfig = field(default_factory=EvalConfig)
    """Evaluations during and after training."""
    log: LogConfig = field(default_factory=LogConfig)
    """Mirrors of metrics.jsonl."""


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file as a dict.

    Raises:
        UsageError: it is missing or no TOML, with the line.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"recipe {path} does not exist; configs/ holds examples") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"recipe {path} cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"recipe {path} is no valid TOML: {error}") from None


def load_recipe(path: Path, overrides: list[str] | None = None) -> TrainRecipe:
    """Read a recipe, lay the overrides (`--train.steps 20 ...`) over its dict, decode the whole.

    Raises:
        UsageError: an unknown key (with the nearest one), a wrong type, a bad value.
    """
    data = apply_overrides(TrainRecipe, read_toml(path), overrides or [])
    return decode(TrainRecipe, data)
