"""A suite: which evaluations a table has, and the metric that each of them is told by."""

import re
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from mmtrain.errors import UsageError
from mmtrain.eval.config import EVALUATORS, command_of
from mmtrain.eval.evaluators.associations import AssociationsConfig
from mmtrain.eval.evaluators.evaluator import Evaluator
from mmtrain.eval.evaluators.knn import KnnConfig
from mmtrain.eval.evaluators.labelled import LabelledEvaluator
from mmtrain.eval.evaluators.linear_probe import LinearProbeConfig
from mmtrain.eval.evaluators.pairs import PairsConfig
from mmtrain.eval.evaluators.retrieval import RetrievalConfig
from mmtrain.eval.evaluators.vqa import VqaEvalConfig
from mmtrain.eval.evaluators.zero_shot import ZeroShotConfig
from mmtrain.settings.decode import decode
from mmtrain.settings.layers import laid_over, read_layers
from mmtrain.settings.nearest import nearest
from mmtrain.settings.paths import PathText, expand_paths
from mmtrain.settings.shipped import shipped_recipe

DATA_KEYS = (
    *("data", "train", "test", "validation"),
    *("cues", "questions", "annotations", "choices"),
)
"""Keys of an evaluation that name data or files of them, and count from `root`."""
_OF_GROUPS = ("worst_group_top1", "worst_group_top5")
_BY_CLASSES = ("top1", "top5", "mean_class_top1", "macro_f1", *_OF_GROUPS)
_RECALLS = tuple(f"{way}_recall@{k}" for way in ("i2t", "t2i") for k in (1, 5, 10))
METRICS: dict[type[Evaluator], tuple[str, ...]] = {
    ZeroShotConfig: _BY_CLASSES,
    LinearProbeConfig: _BY_CLASSES,
    KnnConfig: _BY_CLASSES,
    RetrievalConfig: ("mean_recall@1", *_RECALLS),
    PairsConfig: ("accuracy",),
    AssociationsConfig: ("jaccard", "jaccard_10_12", "jaccard_5_6"),
    VqaEvalConfig: ("accuracy",),
}
"""By the kind of evaluation, the metrics that it may be told by; the first is taken by itself."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, kw_only=True)
class SuiteConfig:
    """A suite, as its TOML file has it."""

    root: PathText = "."
    """Folder that relative paths of data, train, test and validation, and of files of questions and
    cues, count from; --root."""
    zero_shot: tuple[ZeroShotConfig, ...] = ()
    """Zero-shot evaluations."""
    retrieval: tuple[RetrievalConfig, ...] = ()
    """Retrieval evaluations."""
    linear_probe: tuple[LinearProbeConfig, ...] = ()
    """Linear probes of the image features."""
    knn: tuple[KnnConfig, ...] = ()
    """Classifications by nearest training images."""
    pairs: tuple[PairsConfig, ...] = ()
    """Choices between captions and hard negatives of them."""
    associations: tuple[AssociationsConfig, ...] = ()
    """Choices of the images that a word goes with."""
    vqa: tuple[VqaEvalConfig, ...] = ()
    """Evaluations by questions, of models that answer."""
    metric: dict[str, str] = field(default_factory=dict)
    """By an evaluation's name, the figure that the table has of it. Else top1 by classes,
    mean_recall@1 (of both ways) of retrieval, accuracy of pairs and questions, jaccard."""
    lacking: dict[str, str] = field(default_factory=dict)
    """By name, evaluations of the published suite whose metric mmtrain does not have, and that
    metric: each has its line in the table, which says so."""
    average: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """By name, averages over some of the evaluations, beside the one over all."""

    def __post_init__(self) -> None:
        if not self.all:
            raise ValueError("a suite has no evaluation; write [[zero_shot]] or another one")
        names = [one.name for one in self.all] + list(self.lacking)
        for number, name in enumerate(names):
            if name in names[:number]:
                raise ValueError(f"the name {name!r} is there twice; name each evaluation once")
            if not _NAME.fullmatch(name):
                raise ValueError(
                    f"the name {name!r} becomes a file's; use letters, digits, ., - and _"
                )
        for name, metric in self.metric.items():
            self._check_metric(name, metric)
        for title, some in self.average.items():
            if not some:
                raise ValueError(f"average.{title} names no evaluation")
            for name in some:
                _refuse_unknown(f"average.{title} names {name!r}", name, names)

    @property
    def all(self) -> tuple[Evaluator, ...]:
        """Every evaluation, a kind after the other."""
        return tuple(one for section in EVALUATORS for one in getattr(self, section))

    def metric_of(self, one: Evaluator) -> str:
        """The figure that stands for an evaluation."""
        return self.metric.get(one.name, METRICS[type(one)][0])

    def _check_metric(self, name: str, metric: str) -> None:
        by_name = {one.name: one for one in self.all}
        _refuse_unknown(f"metric.{name}", name, list(by_name))
        one = by_name[name]
        known = METRICS[type(one)]
        if metric in _OF_GROUPS and isinstance(one, LabelledEvaluator) and one.group_key is None:
            raise ValueError(f'metric.{name} = "{metric}" needs group_key in the table of {name}')
        if metric not in known:
            near = nearest(metric, known)
            hint = f"did you mean {near}? " if near else ""
            raise ValueError(
                f'metric.{name} = "{metric}" is none that {command_of(type(one))} has; '
                f"{hint}use {', '.join(known)}, or name the set in [lacking]"
            )


def _refuse_unknown(told: str, name: str, known: list[str]) -> None:
    if name not in known:
        near = nearest(name, known)
        hint = f"did you mean {near}?" if near else f"the suite has {', '.join(known)}"
        raise ValueError(f"{told}, which is no evaluation of the suite; {hint}")


def load_suite(path: Path, *, root: Path | None = None) -> SuiteConfig:
    """A suite from its file, or from the name of one that travels with mmtrain.

    Args:
        path: a TOML file, which may begin from another one by `base`; or a name.
        root: where the data are, over what the file says.

    Raises:
        UsageError: no such file or name, a key that nobody reads, a value that does not fit.
    """
    if not path.suffix and not path.exists():
        path = shipped_recipe(str(path), told=f"SUITE = {path}")
    data: dict[str, Any] = {}
    for layer in read_layers(path):
        data = laid_over(data, layer)
    if root is not None:
        data["root"] = str(root)
    try:
        suite = decode(SuiteConfig, expand_paths(SuiteConfig, data))
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    placed = {
        section: tuple(_placed(one, Path(suite.root)) for one in getattr(suite, section))
        for section in EVALUATORS
    }
    return replace(suite, **placed)


def data_of(one: Evaluator) -> list[str]:
    """Every path of data that an evaluation names."""
    values = (getattr(one, f.name) for f in fields(one) if f.name in DATA_KEYS)
    return [
        path
        for value in values
        if value is not None
        for path in (value if isinstance(value, tuple) else (value,))
    ]


def _placed(one: Evaluator, root: Path) -> Evaluator:
    """The evaluation with its data below `root`."""
    changed: dict[str, Any] = {}
    for each in fields(one):
        value = getattr(one, each.name)
        if each.name in DATA_KEYS and value is not None:
            is_one = isinstance(value, str)
            paths = tuple(_below(path, root) for path in ([value] if is_one else value))
            changed[each.name] = paths[0] if is_one else paths
    return replace(one, **changed)


def _below(path: str, root: Path) -> str:
    # An address, or a set's name such as torchvision:CIFAR10/test:ROOT, says itself where it is.
    return path if ":" in path else str(root / path)
