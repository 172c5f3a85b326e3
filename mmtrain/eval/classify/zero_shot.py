"""Zero-shot classification: an image gets the class whose prompts lie nearest to it."""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from mmtrain.data.sources.open import open_source
from mmtrain.data.sources.source import SampleSource
from mmtrain.eval.classify.classes import ClassList, class_list
from mmtrain.eval.classify.classification import ClassTable, ReadClass, classification_result
from mmtrain.eval.classify.groups import Groups, read_groups
from mmtrain.eval.classify.prompts import DEFAULT_TEMPLATES, class_embeddings, load_templates
from mmtrain.eval.classify.subsets import choose, refuse_other_count
from mmtrain.eval.encode import Encoder, filled_up
from mmtrain.eval.result import EvalResult, provenance
from mmtrain.eval.samples import encoded_batches

_told: set[str] = set()
"""Of this process: a run evaluates many times."""


def _tell_twins(encoder: Encoder, known: ClassList, prompt: str) -> None:
    """Name classes whose prompts are the same to the model."""
    first: dict[tuple[int, ...], int] = {}
    pairs: list[tuple[int, int]] = []
    ids_MT = encoder.tokenizer([prompt.replace("{name}", name) for name in known.names])
    for place, ids in enumerate(ids_MT.tolist()):
        if (other := first.setdefault(tuple(ids), place)) != place:
            pairs.append((other, place))
    # ImageNet's own names have such pairs, which everybody's figures share.
    if not pairs or set(known.ids) <= set(class_list("imagenet").ids):
        return
    one, two = pairs[0]
    more = f", and {len(pairs) - 1} more are another's too" if len(pairs) > 1 else ""
    line = (
        f"mmtrain: the classes {known.ids[one]} and {known.ids[two]} are both "
        f"{known.names[two]!r} to the model{more}: no text tells them apart"
    )
    if line not in _told:
        _told.add(line)
        print(line, file=sys.stderr)


@torch.no_grad()
def evaluate_zero_shot(
    encoder: Encoder,
    *,
    data: str | Sequence[str] | SampleSource,
    classes: Path | str | ClassList | Sequence[str],
    subset: str | None = None,
    label_key: str = "concept",
    templates: str | Sequence[str] = DEFAULT_TEMPLATES,
    num_examples: int = 10,
    per_class: bool = False,
    groups: Groups | None = None,
    index_dir: str | None = None,
) -> EvalResult:
    """Top-1 and top-5 accuracy over every sample of a set, the same on every rank.

    Radford et al. 2021, arXiv:2103.00020, Sec. 3.1. Classes of equal score rank in the order of
    the list, so twins by name never both win.

    Args:
        encoder: the model and the ranks that share the work.
        data: shards or whatever else data.train takes, or an opened source.
        classes: a name (`imagenet`), a file for `read_classes`, or the classes themselves.
        subset: which of them are answers, as of `choose`. None: all.
        label_key: where a sample's class id is: a member such as `cls`, or a field of its .json.
        templates: a name (`name`, `simple`, `imagenet`), a file of prompts, or the prompts.
        num_examples: how many of the best and of the worst images to keep.
        per_class: also list the accuracy of every class.
        groups: which samples make a group, for the accuracy of the worst one.
        index_dir: where the shards' indexes are kept.

    Raises:
        UsageError: on every rank: an unreadable file or sample, a label that is no class,
            labels that seem to count other classes.
    """
    known = choose(class_list(classes), subset)
    prompts = load_templates(templates)
    source = open_source(data, index_dir=index_dir, key="data")
    grouped = read_groups(encoder, source, groups)
    if encoder.is_main:
        _tell_twins(encoder, known, prompts[0])
    text_ME = class_embeddings(encoder, known.names, prompts)
    table = ClassTable(source.num_samples, encoder.device)
    read_class = ReadClass.of(known, label_key)
    for batch, image_BE in encoded_batches(encoder, source, read_class, names=(label_key,)):
        class_B = torch.tensor(batch.values, dtype=torch.int64, device=encoder.device)
        scores_BM = (filled_up(encoder, image_BE) @ text_ME.T)[: len(class_B)]
        table.fill(slice(batch.first, batch.first + len(class_B)), scores_BM, class_B)
    verdicts = table.gather(encoder)
    refuse_other_count(known, verdicts.class_N)
    return classification_result(
        encoder,
        source,
        verdicts,
        known,
        num_examples=num_examples,
        per_class=per_class,
        grouped=grouped,
        more={
            "method": "zero-shot",
            "templates": templates if isinstance(templates, str) else list(templates),
            "num_templates": len(prompts),
            "label_key": label_key,
            **provenance(encoder, source),
        },
    )
