"""The labels of a set before a run: whether they are classes, and count those that were named.

An evaluation refuses labels that count others when it has read all of them, hours into a run.
Nearly every set is cleared of that by a handful of labels from all over it; one that is not is read
on, up to a number of labels that takes seconds.
"""

from collections.abc import Iterator

from mmtrain.errors import UsageError
from mmtrain.eval.classify.layouts import LabelledInputs
from mmtrain.eval.classify.subsets import count_others, may_count_others
from mmtrain.eval.trial import values_in_turn

NUM_LABELS, MOST_LABELS = 1000, 100_000
"""How many labels are read at least, and until it is clear what they count: 30 microseconds each
from a tar on a local disk."""
NUM_REMOTE, MOST_REMOTE = 16, 500
"""The same of what is in a store, where each is a request."""


def try_labels(
    inputs: LabelledInputs, *, tested: str, trained: str | None, is_remote: bool = False
) -> None:
    """Read labels of every set until it is clear that they fit the classes.

    Args:
        inputs: the sets.
        tested: the one that is judged.
        trained: the one that a classifier is fitted to, whose classes may be fewer.
        is_remote: a label is a request to a store.

    Raises:
        UsageError: one is no class, or all of `tested` count other classes than those named.
    """
    least, most = (NUM_REMOTE, MOST_REMOTE) if is_remote else (NUM_LABELS, MOST_LABELS)
    for name in inputs.sources.keys() - {tested}:
        for _ in _labels(inputs, name, least):
            pass
    num, seen = inputs.sources[tested].num_samples, set[int]()
    is_open = may_count_others(inputs.classes, num_images=num)
    for count, label in enumerate(_labels(inputs, tested, most), 1):
        is_new = label not in seen
        seen.add(label)
        if is_open and is_new:
            is_open = may_count_others(inputs.classes, seen, num_images=num)
        if count >= least and not is_open:
            return
    told = count_others(inputs.classes, seen) if is_open and num <= most else ""
    if told and (trained is None or _has_others(inputs, trained, seen, most)):
        raise UsageError(told)


def _has_others(inputs: LabelledInputs, name: str, seen: set[int], most: int) -> bool:
    """Whether the set has classes that were not seen; of no more than `most` labels."""
    return any(label not in seen for label in _labels(inputs, name, most))


def _labels(inputs: LabelledInputs, name: str, most: int) -> Iterator[int]:
    source, label_key = inputs.sources[name], inputs.label_key
    return values_in_turn(source, inputs.read_class, name=label_key, key=name, most=most)
