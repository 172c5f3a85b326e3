"""From the scores of classes to figures: accuracy, calibration, what is taken for what."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmtrain.data.sample_error import SampleError
from mmtrain.data.sources.source import SampleSource
from mmtrain.eval.classify.classes import ClassList
from mmtrain.eval.classify.groups import Grouped
from mmtrain.eval.classify.subsets import counts_further
from mmtrain.eval.encode import Encoder
from mmtrain.eval.examples import pick_examples
from mmtrain.eval.outcomes import Outcome, sample_names
from mmtrain.eval.result import EvalResult
from mmtrain.eval.samples import Members, read_text_field
from mmtrain.eval.scores import rank_of_target
from mmtrain.eval.together import sum_of_all
from mmtrain.files import parse_json

NUM_CONFUSIONS = 20
NUM_BINS = 15
SCALES = tuple(2 ** (power / 2) for power in range(21))
"""What scores may be multiplied by to become logits: 1 to 1024 by half octaves."""


@dataclass(frozen=True, kw_only=True)
class ReadClass:
    """Sample -> the number of its class."""

    label_key: str
    """The member (`cls`) or the .json's field that holds the class id."""
    number: dict[str, int]
    """Of each label: its class."""

    @classmethod
    def of(cls, known: ClassList, label_key: str) -> "ReadClass":
        """Of these classes."""
        return cls(label_key=label_key, number=known.numbers)

    def __call__(self, members: Members) -> int:
        """Raises SampleError when the sample has no label, several, or one that is no class."""
        label = read_text_field(members, self.label_key, setting="label_key")
        if label in (None, "") or label != label:
            raise SampleError(f"it has no {self.label_key}: the field is empty")
        if str(label) in self.number:
            return self.number[str(label)]
        several = _several(label)
        known = [one for one in several if one in self.number]
        if len(several) == 1 and known:  # a list of one
            return self.number[known[0]]
        if len(several) > 1 and len(known) == len(several):
            raise SampleError(
                f"its {self.label_key} names {len(several)} classes ({', '.join(several)}), and "
                "accuracy is of images with one; several want mean average precision, which is "
                "not computed here"
            )
        told = f"its {self.label_key} {str(label)[:80]!r} is not among the classes"
        raise SampleError(f"{told}{counts_further(str(label), set(self.number))}")


@dataclass(frozen=True, kw_only=True)
class ReadName:
    """Sample -> the name of its class."""

    read_class: ReadClass
    names: tuple[str, ...]

    def __call__(self, members: Members) -> str:
        """Raises SampleError when the sample has no class."""
        return self.names[self.read_class(members)]


def _several(label: Any) -> list[str]:
    """The labels of a JSON list, or of a text that spaces or commas divide."""
    if isinstance(label, str):
        try:
            label = parse_json(label)
        except ValueError:
            return [part for part in re.split(r"[\s,;]+", label) if part]
    return [str(one) for one in label] if isinstance(label, list) else [str(label)]


class ClassTable:
    """What became of each sample of a set. Each rank fills in its own; `gather` unites them.

    Args:
        num_samples: of the whole set.
        device: where the scores are.
    """

    def __init__(self, num_samples: int, device: torch.device) -> None:
        # Rows: the class, the predicted one, the rank of the class. The others' columns stay zero,
        # so that the sum over the ranks is everybody's.
        self._table_3N = torch.zeros(3, num_samples, dtype=torch.int64, device=device)
        self._lead_N = torch.zeros(num_samples, device=device)
        self._log_right_CN = torch.zeros(len(SCALES), num_samples, device=device)
        self._log_first_CN = torch.zeros(len(SCALES), num_samples, device=device)

    def fill(
        self,
        rows: slice | Tensor,
        scores_BM: Tensor,
        class_B: Tensor,
        *,
        unnamed: float = -math.inf,
    ) -> None:
        """Enter some samples.

        Args:
            rows: their numbers.
            scores_BM: fp32; of equal ones the class with the lower number wins.
            class_B: the right classes.
            unnamed: the score of a class that was not named at all, which is in the last place.
        """
        right_B1 = scores_BM.gather(1, class_B[:, None])
        rank_B = rank_of_target(scores_BM, class_B)
        self._table_3N[0, rows] = class_B
        self._table_3N[1, rows] = scores_BM.argmax(1)
        self._table_3N[2, rows] = rank_B.where(right_B1[:, 0] != unnamed, scores_BM.size(1) - 1)
        others_BM = scores_BM.scatter(1, class_B[:, None], -torch.inf)
        self._lead_N[rows] = right_B1[:, 0] - others_BM.amax(1)
        for number, scale in enumerate(SCALES):
            total_B = (scale * scores_BM).logsumexp(1)
            self._log_right_CN[number, rows] = scale * right_B1[:, 0] - total_B
            self._log_first_CN[number, rows] = scale * scores_BM.amax(1) - total_B

    def gather(self, encoder: Encoder) -> "Verdicts":
        """Everybody's samples, on every rank."""
        class_N, predicted_N, rank_N = sum_of_all(self._table_3N, group=encoder.group).cpu()
        log_right_CN = sum_of_all(self._log_right_CN, group=encoder.group).cpu().double()
        log_first_CN = sum_of_all(self._log_first_CN, group=encoder.group).cpu().double()
        loss_C = -_in_order(log_right_CN).mean(1)
        best = int(loss_C.argmin())
        return Verdicts(
            class_N=class_N,
            predicted_N=predicted_N,
            rank_N=rank_N,
            lead_N=sum_of_all(self._lead_N, group=encoder.group).cpu(),
            scale=SCALES[best],
            loss=float(loss_C[best]),
            confidence_N=log_first_CN[best].exp(),
        )


@dataclass(frozen=True, kw_only=True)
class Verdicts:
    """What became of every sample of a set, on the CPU."""

    class_N: Tensor
    """The right classes."""
    predicted_N: Tensor
    """The classes in first place."""
    rank_N: Tensor
    """Places before the right class."""
    lead_N: Tensor
    """How far the right class is ahead of the best other one; infinite where it is the only one."""
    scale: float
    """The one of SCALES with the lowest loss: with it the scores are calibrated as well as can be
    (temperature scaling, Guo et al. 2017, arXiv:1706.04599, Sec. 4.2, on the set itself)."""
    loss: float
    """Mean negative log-likelihood of the right class with it, in nats."""
    confidence_N: Tensor
    """The probability of the predicted class with it."""

    def figures(self, known: ClassList, *, per_class: bool) -> dict[str, Any]:
        """Accuracy over samples and over classes, calibration, the mistakes made most often."""
        num_samples = len(self.rank_N)
        return {
            "top1": int((self.rank_N < 1).sum()) / num_samples,
            "top5": int((self.rank_N < 5).sum()) / num_samples,
            **self._by_class(known, per_class=per_class),
            "num_samples": num_samples,
            "num_classes": len(known.ids),
            "classes_fingerprint": known.fingerprint,
            "calibration": {
                "scale": self.scale,
                "loss": self.loss,
                "expected_error": self._calibration_error(),
            },
            "reliability": self._reliability(),
            "confusions": self._confusions(known.names),
        }

    def _by_class(self, known: ClassList, *, per_class: bool) -> dict[str, Any]:
        """Means over the classes that have samples, each class counting the same."""
        total_M = torch.bincount(self.class_N, minlength=len(known.ids))
        right_M = torch.bincount(self.class_N[self.rank_N == 0], minlength=len(known.ids))
        said_M = torch.bincount(self.predicted_N, minlength=len(known.ids))
        seen_M = total_M > 0
        share_M = right_M[seen_M].double() / total_M[seen_M]
        f1_M = 2 * right_M[seen_M].double() / (total_M + said_M)[seen_M]
        figures: dict[str, Any] = {
            "mean_class_top1": float(share_M.mean()),
            "macro_f1": float(f1_M.mean()),
        }
        if per_class:
            shares = iter(share_M.tolist())
            figures["class_top1"] = {
                id: next(shares) if seen else None
                for id, seen in zip(known.ids, seen_M.tolist(), strict=True)
            }
        return figures

    def _calibration_error(self) -> float:
        """Expected calibration error over 15 bins (arXiv:1706.04599, Eq. 3)."""
        gap_N = (self.rank_N == 0).double() - self.confidence_N
        bin_N = self._bins()
        gaps = (float(_in_order(gap_N[bin_N == number]).sum()) for number in range(NUM_BINS))
        return sum(map(abs, gaps)) / len(gap_N)

    def _reliability(self) -> list[dict[str, Any]]:
        """Of each bin that has samples: how sure the predictions are, and how often right."""
        bin_N = self._bins()
        rows: list[dict[str, Any]] = []
        for number in range(NUM_BINS):
            inside_N = bin_N == number
            count = int(inside_N.sum())
            if count:
                right = int((self.rank_N[inside_N] == 0).sum())
                confidence = float(_in_order(self.confidence_N[inside_N]).mean())
                rows.append({"count": count, "confidence": confidence, "top1": right / count})
        return rows

    def _bins(self) -> Tensor:
        return (self.confidence_N * NUM_BINS).long().clamp(max=NUM_BINS - 1)

    def _confusions(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """The most frequent mistakes: how often, in what share of the class's samples, how sure."""
        total_M = torch.bincount(self.class_N, minlength=len(names)).tolist()
        wrong = self.class_N != self.predicted_N
        pairs = list(
            zip(self.class_N[wrong].tolist(), self.predicted_N[wrong].tolist(), strict=True)
        )
        sureness: dict[tuple[int, int], list[float]] = defaultdict(list)
        for pair, confidence in zip(pairs, self.confidence_N[wrong].tolist(), strict=True):
            sureness[pair].append(confidence)
        often = sorted(Counter(pairs).items(), key=lambda item: (-item[1], item[0]))
        return [
            {
                "name": names[right],
                "predicted": names[predicted],
                "count": count,
                "share": count / total_M[right],
                "confidence": math.fsum(sureness[right, predicted]) / count,
            }
            for (right, predicted), count in often[:NUM_CONFUSIONS]
        ]


def _in_order(value_N: Tensor) -> Tensor:
    """Values by size: their sum does not depend on the order of the samples, to the last bit."""
    return value_N.sort(-1).values


def classification_result(
    encoder: Encoder,
    source: SampleSource,
    verdicts: Verdicts,
    known: ClassList,
    *,
    num_examples: int,
    per_class: bool = False,
    grouped: Grouped | None = None,
    more: dict[str, Any],
) -> EvalResult:
    """Figures and examples of a set.

    Args:
        encoder: tells whether this is the main rank.
        source: where the pictures are read again.
        verdicts: of all its samples.
        known: the classes.
        num_examples: how many of the best and of the worst images to keep.
        per_class: also list the accuracy of every class.
        grouped: the groups of the samples, for the worst of them.
        more: figures beside these.
    """
    names = known.names
    best, worst = pick_examples(
        encoder,
        source,
        verdicts.rank_N,
        verdicts.lead_N,
        num=num_examples,
        samples=range(source.num_samples),
        describe=lambda i: (names[verdicts.class_N[i]], names[verdicts.predicted_N[i]]),
        num_candidates=len(names),
    )
    figures = verdicts.figures(known, per_class=per_class) | more
    if grouped is not None:
        figures |= grouped.figures(verdicts.rank_N)
    outcomes = tuple(
        Outcome(
            metric="top1",
            id=name,
            image=name,
            score=float(right == said),
            kinds={"class": names[right], **({} if group is None else {"group": group})},
            wanted=names[right],
            said=names[said],
        )
        for name, right, said, group in zip(
            sample_names(source, range(source.num_samples)),
            verdicts.class_N.tolist(),
            verdicts.predicted_N.tolist(),
            [None] * source.num_samples if grouped is None else grouped.names,
            strict=True,
        )
    )
    return EvalResult(figures=figures, best=best, worst=worst, outcomes=outcomes)
