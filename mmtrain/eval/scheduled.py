"""Evaluations that a recipe names, to be run while it trains: their sections, checked and run."""

from dataclasses import dataclass
from typing import Any

from mmtrain.errors import UsageError
from mmtrain.eval.encode import Encoder
from mmtrain.eval.knn import evaluate_knn
from mmtrain.eval.layouts import LabelledInputs, open_labelled
from mmtrain.eval.linear_probe import evaluate_linear_probe
from mmtrain.eval.prompts import DEFAULT_TEMPLATES, load_templates
from mmtrain.eval.result import EvalResult
from mmtrain.eval.retrieval import evaluate_retrieval
from mmtrain.eval.samples import open_source
from mmtrain.eval.zero_shot import evaluate_zero_shot


@dataclass(frozen=True, kw_only=True)
class ZeroShotConfig:
    """One zero-shot evaluation."""

    name: str
    """Names the result: eval/NAME.json."""
    data: str | tuple[str, ...]
    """Shards, or another source of data.train; a layout may name its classes and prompts."""
    classes: str | None = None
    """imagenet, or a file: a JSON list of {"id", "name"} or of names, a .txt of names. None: the
    data name them."""
    label_key: str | None = None
    """Shards: the member, such as cls, or field of the .json with the class id. None: concept."""
    templates: str | None = None
    """Prompt templates by name (name, simple, imagenet) or a file, one a line. None: the data's
    own, or name."""


@dataclass(frozen=True, kw_only=True)
class RetrievalConfig:
    """One retrieval evaluation."""

    name: str
    """Names the result: eval/NAME.json."""
    data: str | tuple[str, ...]
    """Shards, as data.train takes them."""
    captions: tuple[str, ...] = ("txt",)
    """Where captions are: the .txt member or fields of the .json."""
    caption_lines: bool | None = None
    """true: every line of a text is a caption, as in CLIP benchmark's shards. false: the whole text
    is one. None: a text of several lines is refused, since it may be either."""


@dataclass(frozen=True, kw_only=True)
class LinearProbeConfig:
    """One linear probe of the image features."""

    name: str
    """Names the result: eval/NAME.json."""
    train: str | tuple[str, ...]
    """What the classifier is fitted to, as the data of a zero-shot evaluation."""
    test: str | tuple[str, ...]
    """What the figures are about."""
    validation: str | tuple[str, ...] | None = None
    """What its regularisation is chosen on. None: one of ten training samples."""
    classes: str | None = None
    """As of a zero-shot evaluation."""
    label_key: str | None = None
    """As of a zero-shot evaluation."""
    strengths: tuple[float, ...] | None = None
    """Values of C, scikit-learn's, to choose among; one is taken as it is. None: a search."""


@dataclass(frozen=True, kw_only=True)
class KnnConfig:
    """One classification by nearest training images."""

    name: str
    """Names the result: eval/NAME.json."""
    train: str | tuple[str, ...]
    """The images that vote, as the data of a zero-shot evaluation."""
    test: str | tuple[str, ...]
    """What the figures are about."""
    classes: str | None = None
    """As of a zero-shot evaluation."""
    label_key: str | None = None
    """As of a zero-shot evaluation."""
    neighbours: int = 20
    """How many vote."""
    temperature: float | None = 0.07
    """A vote weighs exp(cosine / temperature). None: all weigh the same."""


Scheduled = ZeroShotConfig | RetrievalConfig | LinearProbeConfig | KnnConfig


def check_evaluation(config: Scheduled) -> None:
    """Open everything that it will need.

    Raises:
        UsageError: something of it is not there, or cannot be.
    """
    try:
        _open(config)
    except UsageError as error:
        raise UsageError(f"eval {config.name}: {error}") from error


def run_evaluation(encoder: Encoder, config: Scheduled) -> tuple[EvalResult, tuple[str, ...]]:
    """Its result, the same on every rank, and the two figures that say it shortest.

    Raises:
        UsageError: on every rank, as of the evaluation itself.
    """
    inputs = _open(config)
    if isinstance(config, RetrievalConfig):
        result = evaluate_retrieval(encoder, **inputs)
        return result, ("i2t_recall@1", "t2i_recall@1")
    if isinstance(config, ZeroShotConfig):
        result = evaluate_zero_shot(encoder, **inputs)
    elif isinstance(config, LinearProbeConfig):
        result = evaluate_linear_probe(encoder, **inputs)
    else:
        result = evaluate_knn(encoder, **inputs)
    return result, ("top1", "top5")


def _open(config: Scheduled) -> dict[str, Any]:
    """The arguments of the evaluation."""
    if isinstance(config, RetrievalConfig):
        return {
            "data": open_source(config.data),
            "captions": config.captions,
            "caption_lines": config.caption_lines,
        }
    if isinstance(config, ZeroShotConfig):
        inputs = _labelled(config, data=config.data)
        prompts = config.templates or inputs.templates or DEFAULT_TEMPLATES
        load_templates(prompts)
        return {**inputs.arguments, "templates": prompts}
    sets = {"train": config.train, "test": config.test}
    if isinstance(config, KnnConfig):
        votes = {"neighbours": config.neighbours, "temperature": config.temperature}
        return {**_labelled(config, **sets).arguments, **votes}
    if config.validation is not None:
        sets["validation"] = config.validation
    return {**_labelled(config, **sets).arguments, "strengths": config.strengths}


def _labelled(
    config: ZeroShotConfig | LinearProbeConfig | KnnConfig, **sets: str | tuple[str, ...]
) -> LabelledInputs:
    return open_labelled(sets, classes=config.classes, label_key=config.label_key)
