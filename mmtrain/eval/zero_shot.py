"""Zero-shot classification: an image gets the class whose prompts lie nearest to it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmtrain.collectives import sum_
from mmtrain.data.shards import SampleError
from mmtrain.data.sources import SampleSource
from mmtrain.eval.classes import ClassList, class_list
from mmtrain.eval.encode import Encoder
from mmtrain.eval.examples import pick_examples
from mmtrain.eval.prompts import class_embeddings, load_templates
from mmtrain.eval.result import EvalResult, provenance
from mmtrain.eval.samples import Members, encoded_batches, open_source, read_text_field
from mmtrain.eval.scores import rank_of_target

NUM_CONFUSIONS = 20


@dataclass(frozen=True, kw_only=True)
class ReadClass:
    """Sample -> the number of its class."""

    label_key: str
    """The member (`cls`) or the .json's field that holds the class id."""
    number: dict[str, int]
    """Of each class id."""

    def __call__(self, members: Members) -> int:
        """Raises SampleError when the sample has no label, or one that is no class."""
        label = str(read_text_field(members, self.label_key))
        if label not in self.number:
            raise SampleError(f"its {self.label_key} {label!r} is not among the classes")
        return self.number[label]


@torch.no_grad()
def evaluate_zero_shot(
    encoder: Encoder,
    *,
    data: str | Sequence[str] | SampleSource,
    classes: Path | str | ClassList | Sequence[str],
    label_key: str = "concept",
    templates: str | Sequence[str] = "name",
    num_examples: int = 10,
    per_class: bool = False,
    index_dir: str | None = None,
) -> EvalResult:
    """Top-1 and top-5 accuracy over every sample of some shards, the same on every rank.

    Radford et al. 2021, arXiv:2103.00020, Sec. 3.1. Classes of equal score rank in the order of
    the list, so twins by name never both win.

    Args:
        encoder: the model and the ranks that share the work.
        data: shards, as data.train takes them, or another source.
        classes: a file for `read_classes`, or the classes themselves.
        label_key: where a sample's class id is: a member such as `cls`, or a field of its .json.
        templates: a name (`name`, `simple`, `imagenet`), a file of prompts, or the prompts.
        num_examples: how many of the best and of the worst images to keep.
        per_class: also list the accuracy of every class.
        index_dir: where the shards' indexes are kept.

    Raises:
        UsageError: on every rank: an unreadable file or sample, a label that is no class.
    """
    known = class_list(classes)
    prompts = load_templates(templates)
    source = open_source(data, index_dir)
    text_ME = class_embeddings(encoder, known.names, prompts)
    number = {id: place for place, id in enumerate(known.ids)}
    read_class = ReadClass(label_key=label_key, number=number)
    # Rows: the class, the predicted one, the rank of the class. Each rank fills its own samples'
    # columns of zeros, so that their sum is everybody's.
    table_3N = torch.zeros(3, source.num_samples, dtype=torch.int64, device=encoder.device)
    lead_N = torch.zeros(source.num_samples, device=encoder.device)
    for batch, image_BE in encoded_batches(encoder, source, read_class):
        scores_BM = image_BE @ text_ME.T
        class_B = torch.tensor(batch.values, dtype=torch.int64, device=encoder.device)
        rows = slice(batch.first, batch.first + len(batch.values))
        table_3N[0, rows] = class_B
        table_3N[1, rows] = scores_BM.argmax(1)
        table_3N[2, rows] = rank_of_target(scores_BM, class_B)
        lead_N[rows] = _lead(scores_BM, class_B)
    class_N, predicted_N, rank_N = sum_(table_3N, group=encoder.group).cpu()
    lead_N = sum_(lead_N, group=encoder.group).cpu()

    names = known.names
    best, worst = pick_examples(
        encoder,
        source,
        rank_N,
        lead_N,
        num=num_examples,
        describe=lambda i: (names[class_N[i]], names[predicted_N[i]]),
        num_candidates=len(names),
    )
    figures = _accuracies(class_N, rank_N, known, per_class=per_class) | {
        "num_samples": source.num_samples,
        "num_classes": len(names),
        "templates": templates if isinstance(templates, str) else list(templates),
        "num_templates": len(prompts),
        "label_key": label_key,
        "classes_fingerprint": known.fingerprint,
        "confusions": _confusions(class_N, predicted_N, names),
        **provenance(encoder, source),
    }
    return EvalResult(figures=figures, best=best, worst=worst)


def _lead(scores_BM: Tensor, class_B: Tensor) -> Tensor:
    """How far the right class is ahead of the best other one; infinite where it is the only one."""
    own_B1 = scores_BM.gather(1, class_B[:, None])
    others_BM = scores_BM.scatter(1, class_B[:, None], -torch.inf)
    return own_B1[:, 0] - others_BM.amax(1)


def _accuracies(
    class_N: Tensor, rank_N: Tensor, known: ClassList, *, per_class: bool
) -> dict[str, Any]:
    """Over samples, and over the classes that have samples, each class counting the same."""
    total_M = torch.bincount(class_N, minlength=len(known.ids))
    right_M = torch.bincount(class_N[rank_N == 0], minlength=len(known.ids))
    seen_M = total_M > 0
    share_M = right_M[seen_M].double() / total_M[seen_M]
    num_samples = len(rank_N)
    figures: dict[str, Any] = {
        "top1": int((rank_N < 1).sum()) / num_samples,
        "top5": int((rank_N < 5).sum()) / num_samples,
        "mean_class_top1": float(share_M.mean()),
    }
    if per_class:
        shares = iter(share_M.tolist())
        figures["class_top1"] = {
            id: next(shares) if seen else None
            for id, seen in zip(known.ids, seen_M.tolist(), strict=True)
        }
    return figures


def _confusions(class_N: Tensor, predicted_N: Tensor, names: Sequence[str]) -> list[dict[str, Any]]:
    """The mistakes made most often."""
    wrong = class_N != predicted_N
    pairs = Counter(zip(class_N[wrong].tolist(), predicted_N[wrong].tolist(), strict=True))
    often = sorted(pairs.items(), key=lambda item: (-item[1], item[0]))[:NUM_CONFUSIONS]
    return [
        {"name": names[right], "predicted": names[predicted], "count": count}
        for (right, predicted), count in often
    ]
