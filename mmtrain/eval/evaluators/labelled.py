"""What evaluators by classes have in common."""

import argparse
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar

from mmtrain.data.sources.source import IMAGE_KEY
from mmtrain.errors import UsageError
from mmtrain.eval.evaluators.evaluator import Evaluator
from mmtrain.eval.evaluators.options import add_data
from mmtrain.settings.paths import PathText

if TYPE_CHECKING:
    from mmtrain.data.images.transforms import PreprocessConfig
    from mmtrain.eval.classify.groups import Groups
    from mmtrain.eval.classify.layouts import LabelledInputs
    from mmtrain.eval.result import EvalResult

ACCURACY: Mapping[str, str] = {
    "top1": ".2%",
    "top5": ".2%",
    "mean_class_top1": ".2%",
    "num_samples": ",",
    "num_classes": ",",
}


@dataclass(frozen=True, kw_only=True)
class LabelledEvaluator(Evaluator):
    """One evaluation by classes."""

    classes: PathText | None = None
    """imagenet, imagenet-a, -r or -o, objectnet, or a file: a JSON list of {"id", "name"} or of
    names, a .txt of names. None: the data name them."""
    subset: PathText | None = None
    """Which of the classes are answers, while labels count all of them: imagenet-a, imagenet-r or
    imagenet-o of ImageNet's 1000, or a file of ids, names or places from 0. "all": every one, also
    where the labels look as if they counted others. None: every one."""
    label_key: str | None = None
    """Shards: the member, such as cls, or field of the .json with the class id. None: concept."""
    image_key: str = IMAGE_KEY
    """As data.image_key."""
    per_class: bool = False
    """Also list the accuracy of every class."""
    group_key: str | None = None
    """The member, such as region or npy[0] (the first number of an array), or field of the .json
    with a sample's group, for the accuracy of the worst one. None: there are no groups."""
    ignored_groups: tuple[str, ...] = ()
    """Groups that are no candidates for the worst."""

    sets: ClassVar[tuple[str, ...]]
    """The fields that name data."""
    shortest = ("top1", "top5")
    shown = ACCURACY

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        """Those of the data and of their classes."""
        needed = {field.name for field in fields(cls) if field.default is MISSING}
        for name in cls.sets:
            add_data(parser, f"--{name}", required=name in needed)
        parser.add_argument(
            "--classes",
            metavar="NAME|FILE",
            help="imagenet, imagenet-a, imagenet-r, imagenet-o, objectnet, or a JSON list of "
            '{"id", "name"} or of names whose ids are their places from 0, or a .txt of names; '
            "shards need it, other layouts name their classes themselves",
        )
        parser.add_argument(
            "--subset",
            metavar="NAME|FILE",
            help="which of the classes are answers: imagenet-a, imagenet-r or imagenet-o of "
            "ImageNet's 1000, or a file of ids, names or places; all: every one, whatever the "
            "labels look like (every one)",
        )
        parser.add_argument(
            "--label-key",
            metavar="KEY",
            help="shards: the member, such as cls, or field of the .json with the class id "
            "(concept)",
        )
        parser.add_argument(
            "--per-class", action="store_true", help="list every class's accuracy too"
        )
        parser.add_argument(
            "--group-key",
            metavar="KEY",
            help="the member, such as region or npy[0], or field of the .json with a sample's "
            "group, for the accuracy of the worst one",
        )
        parser.add_argument(
            "--ignored-groups",
            nargs="+",
            default=(),
            metavar="GROUP",
            help="groups that are no candidates for the worst",
        )

    def open(self) -> "LabelledInputs":
        """The sets, all with the same classes."""
        from mmtrain.eval.classify.layouts import open_labelled

        if self.ignored_groups and self.group_key is None:
            named = ", ".join(self.ignored_groups)
            raise UsageError(f"ignored_groups = {named} has no effect without group_key; name it")
        named = {name: getattr(self, name) for name in self.sets}
        return open_labelled(
            {name: data for name, data in named.items() if data is not None},
            classes=self.classes,
            subset=self.subset,
            label_key=self.label_key,
            image_key=self.image_key,
        )

    def identity(self, inputs: "LabelledInputs") -> dict[str, Any]:
        """The samples and their classes."""
        from mmtrain.eval.features.store import data_identity

        sets = {name: data_identity(source) for name, source in inputs.sources.items()}
        return {**sets, "classes": inputs.classes.fingerprint, "label_key": inputs.label_key}

    @property
    def groups(self) -> "Groups | None":
        """Which samples make a group."""
        from mmtrain.eval.classify.groups import Groups

        if self.group_key is None:
            return None
        return Groups(key=self.group_key, ignored=self.ignored_groups)

    def noted(self, result: "EvalResult", inputs: "LabelledInputs") -> "EvalResult":
        """The result, with what was left out."""
        more = {"num_left_out": inputs.left_out} if inputs.left_out else {}
        return replace(result, figures={**result.figures, **more})

    def remark(self, figures: Mapping[str, Any]) -> str:
        """The worst group, and what was left out."""
        told: list[str] = []
        if "worst_group_top1" in figures:
            worst = [
                f"{figures[f'worst_group_top{k}']:.2%} ({figures[f'worst_group_at_{k}']})"
                for k in (1, 5)
            ]
            told.append(f"worst group      top1 {worst[0]}, top5 {worst[1]}")
        if count := figures.get("num_left_out", 0):
            told.append(f"left out: {count:,} images of classes that are no answers")
        return "\n".join(told)

    def check(self, inputs: "LabelledInputs", preprocess: "PreprocessConfig") -> None:
        """Read some images of each set and their classes, and the groups of what is judged; and
        labels, on one rank for all, until it is clear that they count the classes."""
        from mmtrain.data.shards.patterns import any_in_store
        from mmtrain.eval.classify.groups import ReadGroup
        from mmtrain.eval.label_trial import try_labels
        from mmtrain.eval.trial import try_samples
        from mmtrain.ranks import own_rank

        for name, source in inputs.sources.items():
            try_samples(source, inputs.read_class, preprocess, key=name)
            if self.group_key is not None and name in ("data", "test"):
                try_samples(source, ReadGroup.of(self.group_key), preprocess, key=name)
        if own_rank() == 0:
            try_labels(
                inputs,
                tested="test" if "test" in self.sets else "data",
                trained="train" if "train" in self.sets else None,
                is_remote=any_in_store([getattr(self, name) for name in self.sets]),
            )
