"""Some of the classes as the only answers, and labels that count other classes than those named.

ImageNet-A, -R and -O have 200 of ImageNet's 1000 classes, and their figures are published as
accuracy among these (arXiv:1907.07174, Sec. 3; arXiv:2006.16241, Sec. 3). Their images are labelled
in two ways, by the place among the 200 and by that among the 1000, which no label itself says.
"""

import re
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from mmtrain.errors import UsageError
from mmtrain.eval.classify.classes import SUBSETS, ClassList, class_list, subset_places
from mmtrain.files import parse_json, text_lines
from mmtrain.settings.nearest import nearest

ALL = "all"
"""The subset that is every class."""
NUM_IMAGENET = 1000
FEW_IMAGES = 100
"""With fewer images, which classes have some tells nothing of how labels are counted."""
FEW_CLASSES = 10
"""Nor do so few classes of which places they are: 10 of 200 by chance among 60 are 1 in 200,000."""


def choose(known: ClassList, subset: str | None) -> ClassList:
    """The classes of a subset, in the list's order; labels go on counting the whole list.

    Args:
        known: all classes.
        subset: imagenet-a, imagenet-r or imagenet-o, of ImageNet's 1000 classes; a file, a JSON
            list or one a line, of ids, of names, or of places from 0; all; or nothing, and the
            classes are what they were.

    Raises:
        UsageError: it is none of these, or names a class that is not there.
    """
    if subset is None:
        return known
    if subset == ALL:
        return replace(known, is_chosen=True)
    kept = _published(known, subset) if subset in SUBSETS else _from_file(known, subset)
    return ClassList(
        ids=tuple(known.ids[place] for place in kept),
        names=tuple(known.names[place] for place in kept),
        places=tuple(known.places[place] for place in kept) if known.places else (),
        is_chosen=True,
    )


def _published(known: ClassList, name: str) -> list[int]:
    ids = class_list(name).ids
    numbers = known.numbers
    if set(ids) <= numbers.keys():
        return sorted(numbers[id] for id in ids)
    if len(known.ids) == NUM_IMAGENET and _is_counted(known):
        return list(subset_places(name))
    raise UsageError(
        f"subset = {name} is of ImageNet's {NUM_IMAGENET} classes, and there are {len(known.ids)} "
        "others; leave it out if these are the subset's own"
    )


def _from_file(known: ClassList, subset: str) -> list[int]:
    path = Path(subset)
    near = nearest(path.name, (*SUBSETS, ALL))
    hint = f"; did you mean {near}?" if near and not path.exists() else ""
    try:
        text = path.read_text(encoding="utf-8-sig")
        entries = parse_json(text) if path.suffix == ".json" else text_lines(text)
    except (OSError, ValueError) as error:
        told = f"neither one of {', '.join((*SUBSETS, ALL))} nor a file that can be read"
        raise UsageError(f"subset = {subset}: {told} ({error}){hint}") from error
    if not isinstance(entries, list) or not entries:
        raise UsageError(f"subset = {subset} is no list; write ids, names or places, at least one")
    numbers = _by_name(known) | known.numbers
    if not any(id.isdecimal() for id in known.ids):
        numbers = {str(place): place for place in range(len(known.ids))} | numbers
    kept: list[int] = []
    for place, entry in enumerate(entries):
        label = str(entry).strip()
        if isinstance(entry, bool | float | list | dict | None) or label not in numbers:
            raise UsageError(
                f"subset = {subset}: entry {place}, {label[:80]!r}, is neither an id nor a name of "
                f"the {len(known.ids)} classes"
            )
        kept.append(numbers[label])
    if len(set(kept)) < len(kept):
        twice = next(place for place in kept if kept.count(place) > 1)
        raise UsageError(f"subset = {subset} names the class {known.names[twice]!r} twice")
    return sorted(kept)


def _by_name(known: ClassList) -> dict[str, int]:
    """Of names that one class alone has."""
    places = {name: place for place, name in enumerate(known.names)}
    return {name: place for name, place in places.items() if known.names.count(name) == 1}


def _is_counted(known: ClassList) -> bool:
    """Whether a label may be a class's place."""
    counted = tuple(map(str, range(len(known.ids))))
    return counted in (known.ids, known.places)


def refuse_other_count(
    known: ClassList, class_N: Tensor, *, trained_N: Tensor | None = None
) -> None:
    """Refuse labels that count other classes than those that were named.

    Args:
        known: the classes.
        class_N: of every image, by the labels.
        trained_N: of every image that a classifier was fitted to.

    Raises:
        UsageError: they are the first few of the classes alone, as if they counted a part of them;
            or some of ImageNet's that one of `SUBSETS` has, and another number was named.
    """
    if not may_count_others(known, num_images=len(class_N)):
        return
    present = set(class_N.tolist())
    if trained_N is not None and set(trained_N.tolist()) <= present:
        return
    if told := count_others(known, present):
        raise UsageError(told)


def may_count_others(
    known: ClassList, present: Collection[int] = (), *, num_images: int = FEW_IMAGES
) -> bool:
    """Whether `refuse_other_count` may refuse a set of which some labels are known.

    Args:
        known: the classes.
        present: those that were seen so far.
        num_images: of the whole set.
    """
    if known.is_chosen or not _is_counted(known) or num_images < FEW_IMAGES:
        return False
    num = len(known.ids)
    if max(present, default=0) < num / 2:
        return True
    others = ((NUM_IMAGENET, len(places), places) for places in map(subset_places, SUBSETS))
    return any(num in sizes and set(present) <= set(places) for *sizes, places in others)


def count_others(known: ClassList, present: Collection[int]) -> str:
    """What is wrong with the labels, all of which are here; empty: nothing.

    Args:
        known: the classes.
        present: those that have images.
    """
    num = len(known.ids)
    if 1 < len(present) < num / 2 and max(present) == len(present) - 1:
        relatives = [name for name in SUBSETS if len(subset_places(name)) == len(present)]
        such = f", such as {relatives[0]}" if relatives else ""
        return (
            f"the labels are 0 to {max(present)} alone, and {num} classes are named; name the "
            f"{len(present)} that they count as classes{such}, or set subset = {ALL} if they count "
            f"all {num}"
        )
    for name in SUBSETS:
        places = set(subset_places(name))
        if len(present) < FEW_CLASSES or not set(present) <= places:
            continue
        if num == NUM_IMAGENET and 2 * len(present) > len(places):
            return (
                f"the labels are of {name}'s {len(places)} classes alone, among which its accuracy "
                f"is published, and {num} are named; set subset = {name}, or subset = {ALL} for "
                f"accuracy among all {num}"
            )
        if num == len(places):
            return (
                f"the labels are all among {name}'s places in ImageNet's {NUM_IMAGENET}, and {num} "
                f"classes are named; set classes = imagenet and subset = {name}, or subset = {ALL} "
                f"if they count the {num}"
            )
    return ""


def counts_further(label: str, known: Collection[str]) -> str:
    """What may be said of a label that is no class: that it counts other classes.

    Args:
        label: of a sample.
        known: every label that is one.
    """
    # Of few digits: "²" is one too, and Python makes no number of 5,000.
    places = {int(one) for one in known if re.fullmatch(r"\d{1,9}", one)}
    if not re.fullmatch(r"\d{1,3}", label) or not places:
        return ""
    if max(places) >= len(places):
        return "; if labels count the subset's own classes, name these as classes, without subset"
    names = [name for name in SUBSETS if len(subset_places(name)) == len(places)]
    if not names:
        return ""
    return (
        f"; if labels count ImageNet's {NUM_IMAGENET}, set classes = imagenet and subset = "
        f"{names[0]} or which it is"
    )
