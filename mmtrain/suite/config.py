"""A suite: which evaluations a table has, and the metric that each of them is told by."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from mmtrain.errors import UsageError
from mmtrain.eval.classify.classes import NAMED_CLASSES, SUBSETS
from mmtrain.eval.classify.prompts import TEMPLATES
from mmtrain.eval.classify.subsets import ALL
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
from mmtrain.settings.decode import decode, encode
from mmtrain.settings.layers import laid_over, read_layers
from mmtrain.settings.nearest import nearest
from mmtrain.settings.paths import PathText, change_paths, expand_paths
from mmtrain.settings.shipped import shipped_recipe

DATA_KEYS = (
    *("data", "train", "test", "validation"),
    *("cues", "questions", "annotations", "choices"),
)
"""Keys of an evaluation that name data or files of them: a set is missing where one of these is."""
WORDS: dict[str, tuple[str, ...]] = {
    "classes": NAMED_CLASSES,
    "subset": (*SUBSETS, ALL),
    "templates": tuple(TEMPLATES),
}
"""By the key of an evaluation that may name a file, the words that are none."""
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
_PATH = re.compile(r"(?P<before>classes:|captions:|torchvision:[^:]+:)?(?P<path>[^:]+)")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, kw_only=True)
class SuiteConfig:
    """A suite, as its TOML file has it."""

    root: PathText = "."
    """Folder that every relative path of the evaluations counts from, of data as of files of
    classes, prompts or questions; --root. Itself it counts from where the command runs."""
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
        place = _placer(suite.root)
        return decode(SuiteConfig, change_paths(SuiteConfig, encode(suite), place))
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def data_of(one: Evaluator) -> list[str]:
    """Every path of data that an evaluation names."""
    values = (getattr(one, f.name) for f in fields(one) if f.name in DATA_KEYS)
    return [
        path
        for value in values
        if value is not None
        for path in (value if isinstance(value, tuple) else (value,))
    ]


def file_keys(one: Evaluator) -> set[str]:
    """The keys of an evaluation whose values are paths, and not words or nothing."""
    found: set[str] = set()

    def note(text: str, key: str) -> str:
        name = _name(key)
        if text not in WORDS.get(name, ()):
            found.add(name)
        return text

    change_paths(type(one), encode(one), note)
    return found


def _placer(root: str) -> Callable[[str, str], str]:
    """What lays each path of a suite below its root; whole, as it is told where it is missing."""
    if re.match(r"[a-z0-9]+:/", root):
        raise UsageError(
            f"root = {root} is an address, and a suite's data are below a folder; name the folder, "
            "and what is in a store by its own address in data, train or test"
        )
    folder = Path(root).absolute()

    def place(text: str, key: str) -> str:
        if key == "root":
            return str(folder)
        before, path = named_path(text)
        if path is None or text in WORDS.get(_name(key), ()):
            return text
        return f"{before}{folder / path}"

    return place


def named_path(data: str) -> tuple[str, str | None]:
    """What stands before the path in a name of data, such as classes:, and the path; None: it names
    none of this machine, but an address or a set of a package."""
    match = _PATH.fullmatch(data)
    return ("", None) if match is None else (match["before"] or "", match["path"])


def _name(key: str) -> str:
    """The last of a key's words: data of zero_shot[0].data[1]."""
    return key.rpartition(".")[2].partition("[")[0]
