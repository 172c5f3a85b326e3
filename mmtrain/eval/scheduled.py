"""Evaluations that a recipe names, to be run while it trains: their sections, checked and run."""

from dataclasses import dataclass, fields
from typing import Any

from mmtrain.data.config import DataConfig
from mmtrain.data.images.transforms import PreprocessConfig
from mmtrain.errors import UsageError
from mmtrain.eval.classify.classification import ReadClass
from mmtrain.eval.classify.knn import evaluate_knn
from mmtrain.eval.classify.layouts import LabelledInputs, open_labelled
from mmtrain.eval.classify.linear_probe import check_enough_to_hold_out, evaluate_linear_probe
from mmtrain.eval.classify.prompts import DEFAULT_TEMPLATES, load_templates
from mmtrain.eval.classify.zero_shot import evaluate_zero_shot
from mmtrain.eval.encode import Encoder
from mmtrain.eval.result import EvalResult
from mmtrain.eval.retrieval import ReadCaptions, evaluate_retrieval
from mmtrain.eval.samples import open_source
from mmtrain.eval.together import on_all_ranks
from mmtrain.eval.trial import try_samples
from mmtrain.settings.paths import PathText


@dataclass(frozen=True, kw_only=True)
class ZeroShotConfig:
    """One zero-shot evaluation."""

    name: str
    """Names the result: eval/NAME.json."""
    data: PathText | tuple[PathText, ...]
    """Shards, or another source of data.train; a layout may name its classes and prompts."""
    classes: PathText | None = None
    """imagenet, or a file: a JSON list of {"id", "name"} or of names, a .txt of names. None: the
    data name them."""
    label_key: str | None = None
    """Shards: the member, such as cls, or field of the .json with the class id. None: concept."""
    templates: PathText | None = None
    """Prompt templates by name (name, simple, imagenet) or a file, one a line. None: the data's
    own, or name."""
    image_key: str = DataConfig.image_key
    """As data.image_key."""


@dataclass(frozen=True, kw_only=True)
class RetrievalConfig:
    """One retrieval evaluation."""

    name: str
    """Names the result: eval/NAME.json."""
    data: PathText | tuple[PathText, ...]
    """Shards, as data.train takes them."""
    captions: tuple[str, ...] = ("txt",)
    """Where captions are: the .txt member or fields of the .json."""
    caption_lines: bool | None = None
    """true: every line of a text is a caption, as in CLIP benchmark's shards. false: the whole text
    is one. None: a text of several lines is refused, since it may be either."""
    image_key: str = DataConfig.image_key
    """As data.image_key."""


@dataclass(frozen=True, kw_only=True)
class LinearProbeConfig:
    """One linear probe of the image features."""

    name: str
    """Names the result: eval/NAME.json."""
    train: PathText | tuple[PathText, ...]
    """What the classifier is fitted to, as the data of a zero-shot evaluation."""
    test: PathText | tuple[PathText, ...]
    """What the figures are about."""
    validation: PathText | tuple[PathText, ...] | None = None
    """What its regularisation is chosen on. None: one of ten training samples."""
    classes: PathText | None = None
    """As of a zero-shot evaluation."""
    label_key: str | None = None
    """As of a zero-shot evaluation."""
    image_key: str = DataConfig.image_key
    """As data.image_key."""
    strengths: tuple[float, ...] | None = None
    """Values of C, scikit-learn's, to choose among; one is taken as it is. None: a search."""

    def __post_init__(self) -> None:
        if self.strengths is not None and not (self.strengths and min(self.strengths) > 0):
            raise ValueError(
                f"strengths = {list(self.strengths)} must be positive numbers, at least one"
            )


@dataclass(frozen=True, kw_only=True)
class KnnConfig:
    """One classification by nearest training images."""

    name: str
    """Names the result: eval/NAME.json."""
    train: PathText | tuple[PathText, ...]
    """The images that vote, as the data of a zero-shot evaluation."""
    test: PathText | tuple[PathText, ...]
    """What the figures are about."""
    classes: PathText | None = None
    """As of a zero-shot evaluation."""
    label_key: str | None = None
    """As of a zero-shot evaluation."""
    image_key: str = DataConfig.image_key
    """As data.image_key."""
    neighbours: int = 20
    """How many vote."""
    temperature: float | None = 0.07
    """A vote weighs exp(cosine / temperature). None: all weigh the same."""

    def __post_init__(self) -> None:
        if self.neighbours < 1:
            raise ValueError(f"neighbours = {self.neighbours} must be at least 1")
        if self.temperature is not None and self.temperature <= 0:
            raise ValueError(
                f'temperature = {self.temperature} must be above 0; or "none", for equal votes'
            )


Scheduled = ZeroShotConfig | RetrievalConfig | LinearProbeConfig | KnnConfig


def check_evaluation(config: Scheduled, preprocess: PreprocessConfig) -> None:
    """Open everything that it will need, and read a handful of its samples.

    Raises:
        UsageError: something of it is not there, or cannot be.
    """
    try:
        _try(config, _open(config), preprocess)
    except UsageError as error:
        raise UsageError(f"eval {config.name}: {error}") from error


def _try(config: Scheduled, inputs: dict[str, Any], preprocess: PreprocessConfig) -> None:
    if isinstance(config, RetrievalConfig):
        read_captions = ReadCaptions(fields=config.captions, lines=config.caption_lines)
        try_samples(inputs["data"], read_captions, preprocess, key="data")
        return
    number = {id: place for place, id in enumerate(inputs["classes"].ids)}
    read_class = ReadClass(label_key=inputs["label_key"], number=number)
    for name in ("data", "train", "test", "validation"):
        if name in inputs:
            try_samples(inputs[name], read_class, preprocess, key=name)
    if isinstance(config, KnnConfig) and config.neighbours > inputs["train"].num_samples:
        raise UsageError(
            f"neighbours = {config.neighbours} must be 1 to {inputs['train'].num_samples}, the "
            "training images"
        )
    if isinstance(config, LinearProbeConfig) and config.validation is None:
        check_enough_to_hold_out(inputs["train"].num_samples)


def run_evaluation(encoder: Encoder, config: Scheduled) -> tuple[EvalResult, tuple[str, ...]]:
    """Its result, the same on every rank, and the two figures that say it shortest.

    Raises:
        UsageError: on every rank, as of the evaluation itself.
    """
    with on_all_ranks(encoder.group, encoder.device):
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
            "data": open_source(config.data, image_key=config.image_key),
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
    return open_labelled(
        sets, classes=config.classes, label_key=config.label_key, image_key=config.image_key
    )


_KINDS: dict[type[Any], str] = {
    ZeroShotConfig: "zero-shot",
    RetrievalConfig: "retrieval",
    LinearProbeConfig: "linear-probe",
    KnnConfig: "knn",
}


def command_words(config: Scheduled) -> list[str]:
    """What `mmtrain` takes to do the same evaluation; the model and the result's place lack."""
    words = ["eval", _KINDS[type(config)]]
    for field in fields(config):
        value = getattr(config, field.name)
        option = f"--{field.name.replace('_', '-')}"
        if field.name == "name" or (value == field.default and field.name != "temperature"):
            continue
        if field.name == "temperature":
            words += ["--equal-votes"] if value is None else [option, f"{value:g}"]
        elif isinstance(value, bool):
            words.append(option if value else "--one-caption")
        else:
            words += [option, *map(str, value if isinstance(value, tuple) else [value])]
    return words
