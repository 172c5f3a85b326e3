"""Accuracy of groups of samples, such as regions, and of the worst of them."""

import contextlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from torch import Tensor

from mmtrain.data.sample_error import SampleError
from mmtrain.data.sources.source import SampleSource
from mmtrain.errors import UsageError
from mmtrain.eval.encode import Encoder, own_batches
from mmtrain.eval.samples import (
    EvalBatches,
    Members,
    made_ahead,
    read_text_field,
    refuse_on_all_ranks,
    spans,
)
from mmtrain.eval.together import gather_all, on_all_ranks
from mmtrain.files import read_numpys

_NUMPY = b"\x93NUMPY"
_AT_ONCE = 256
"""Samples whose groups are read between two meetings of the ranks."""


@dataclass(frozen=True, kw_only=True)
class Groups:
    """Which group a sample is of."""

    key: str
    """The member (`region`, or `npy`, an array) or the .json's field that says it; `npy[0]` is the
    first of several numbers there, as WILDS' metadata are."""
    ignored: tuple[str, ...] = ()
    """Groups that are no candidates for the worst."""


@dataclass(frozen=True, kw_only=True)
class ReadGroup:
    """Sample -> its group."""

    name: str
    """The member or field."""
    place: int | None
    """Of the group among several values."""

    @classmethod
    def of(cls, key: str) -> "ReadGroup":
        """`name` or `name[place]`."""
        found = re.fullmatch(r"(.+)\[(\d+)\]", key)
        return (
            cls(name=key, place=None) if found is None else cls(name=found[1], place=int(found[2]))
        )

    def __call__(self, members: Members) -> str:
        """Raises SampleError when the sample has none, or several."""
        held = members.get(self.name, b"")
        if held.startswith(_NUMPY):
            value = _array(held, self.name)
        else:
            value = read_text_field(members, self.name, setting="group_key")
        if isinstance(value, list) and self.place is not None and self.place < len(value):
            value = value[self.place]
        elif isinstance(value, list) and len(value) == 1 and self.place is None:
            value = value[0]
        elif isinstance(value, list) and value:
            raise SampleError(
                f"its {self.name} has {len(value)} values; name one of them as group_key = "
                f"{self.name}[0] to {self.name}[{len(value) - 1}]"
            )
        elif not isinstance(value, list) and self.place is not None:
            raise SampleError(f"its {self.name} is one value; set group_key = {self.name}")
        # A record of an array is a tuple; of numbers, what is missing is NaN.
        is_none = value is None or value != value or isinstance(value, dict | list | tuple)
        if is_none or not str(value).strip():
            raise SampleError(f"its {self.name} names no group")
        # 3.0 of an array of numbers is the group 3.
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        return str(value).strip()


def _array(held: bytes, name: str) -> list[Any]:
    try:
        found = read_numpys(lambda: np.load(BytesIO(held), allow_pickle=False))
        values = found.ravel().tolist()
    except (ValueError, EOFError, OSError) as error:
        raise SampleError(f"its .{name} cannot be read ({error})") from error
    return [one.decode("utf-8", "replace") if isinstance(one, bytes) else one for one in values]


def in_order(groups: Sequence[str]) -> list[str]:
    """Each once, by number where all are one, else by letter."""
    distinct = set(groups)
    if all(re.fullmatch(r"-?\d{1,18}", one) for one in distinct):
        return sorted(distinct, key=lambda one: (int(one), one))
    return sorted(distinct)


@dataclass(frozen=True, kw_only=True)
class Grouped:
    """The groups of a set's samples."""

    groups: Groups
    """What they are."""
    names: tuple[str, ...]
    """Of each sample."""

    def figures(self, rank_N: Tensor) -> dict[str, Any]:
        """Accuracy by group, and the lowest of them.

        Worst-group accuracy is the least accuracy of a group that has samples: Sagawa et al. 2020,
        arXiv:1911.08731, Sec. 2; Koh et al. 2021 (WILDS), arXiv:2012.07421, Sec. 3, which leaves
        FMoW's region Other out; DataComp (arXiv:2304.14108, App. N), whose code leaves none out.

        Args:
            rank_N: places before each sample's right class.
        """
        ranks: dict[str, list[int]] = {name: [] for name in in_order(self.names)}
        for rank, name in zip(rank_N.tolist(), self.names, strict=True):
            ranks[name].append(rank)
        candidates = [name for name in ranks if name not in self.groups.ignored]
        figures: dict[str, Any] = {
            "group_key": self.groups.key,
            "ignored_groups": list(self.groups.ignored),
            "group_count": {name: len(some) for name, some in ranks.items()},
        }
        for k in (1, 5):
            right = {name: sum(rank < k for rank in some) for name, some in ranks.items()}
            share = {name: right[name] / len(some) for name, some in ranks.items()}
            worst = min(candidates, key=share.__getitem__)
            figures |= {
                f"group_top{k}": share,
                f"worst_group_top{k}": share[worst],
                f"worst_group_at_{k}": worst,
            }
        return figures


def read_groups(encoder: Encoder, source: SampleSource, groups: Groups | None) -> "Grouped | None":
    """The group of every sample, on every rank; no image is decoded. None where none are named.

    Raises:
        UsageError: on every rank: a sample has none, or an ignored one is nobody's.
    """
    if groups is None:
        return None
    read = ReadGroup.of(groups.key)
    every = spans(source.num_samples, _AT_ONCE)
    numbers = list(own_batches(len(every), encoder.group))
    batches = EvalBatches(
        source,
        encoder.preprocess,
        read_value=read,
        names=(read.name,),
        spans=[every[number] for number in numbers if number is not None],
        pictures=False,
    )
    mine: dict[int, str] = {}
    with contextlib.closing(made_ahead(encoder, batches)) as own:
        for number in numbers:
            with on_all_ranks(encoder.group, encoder.device):
                batch = batches.blank() if number is None else next(own)
            faults = [str(fault) for fault in batch.faults]
            refuse_on_all_ranks(encoder, faults, key="group_key", remedy="")
            mine |= dict(enumerate(batch.values, start=batch.first))
    held = gather_all(mine, group=encoder.group, device=encoder.device)
    everyone = {number: value for some in held for number, value in some.items()}
    found = [everyone[number] for number in range(source.num_samples)]
    if unknown := [one for one in groups.ignored if one not in found]:
        raise UsageError(
            f"ignored_groups: no sample is of {unknown[0]!r}; the groups are "
            f"{', '.join(in_order(found)[:20])}"
        )
    if set(found) <= set(groups.ignored):
        raise UsageError("ignored_groups names every group; leave one")
    return Grouped(groups=groups, names=tuple(found))
