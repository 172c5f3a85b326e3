"""Names without ids against what data call their classes: a list in another order is seen."""

import re
from collections import Counter
from collections.abc import Sequence

from mmtrain.errors import UsageError

_BETWEEN = re.compile(r"[\W_]+")
REMEDY = 'give each its id, [{"id": ..., "name": ...}, ...], which is taken as it is'


def by_their_names(own: Sequence[str], names: Sequence[str], *, told: str) -> list[str]:
    """Names in the order of the folders that they belong to.

    They stand in the folders' order; but names that are all of the folders' own, whatever their
    order, belong to these.

    Args:
        own: the folders in order.
        names: as many, in the order of the list.
        told: the data, for messages.

    Raises:
        UsageError: some of the names are those of folders in other places, and others are not.
    """
    places = _places(own)
    there = [places.get(_spoken(name)) for name in names]
    astray = _astray(there)
    if astray is None:
        return list(names)
    if None not in there and len(set(there)) == len(own):
        found = dict(zip(there, names, strict=True))
        return [found[place] for place in range(len(own))]
    raise UsageError(
        f"classes: names follow the order of the folders of {told}, so {names[astray]!r} would be "
        f"the folder {own[astray]!r}, and there is one {own[there[astray] or 0]!r}; {REMEDY}"
    )


def refuse_other_order(own: Sequence[str], names: Sequence[str], *, told: str) -> None:
    """Refuse names that data whose labels count their own names have in other places.

    Args:
        own: the names that the data say, in the order that labels count.
        names: those that are given instead; of another number they count something else.
        told: the data, for messages.

    Raises:
        UsageError: a name stands elsewhere.
    """
    if len(own) != len(names):
        return
    there = [_places(own).get(_spoken(name)) for name in names]
    if (astray := _astray(there)) is not None:
        raise UsageError(
            f"classes: {names[astray]!r} would be class {astray}, which {told} calls "
            f"{own[astray]!r}, and class {there[astray]} {own[there[astray] or 0]!r}; leave the "
            f"names to the data, or {REMEDY}"
        )


def _astray(there: Sequence[int | None]) -> int | None:
    """The first of the names that is another place's."""
    return next((at for at, place in enumerate(there) if place not in (None, at)), None)


def _places(own: Sequence[str]) -> dict[str, int]:
    """Of each name the place; of one that is there twice, none."""
    spoken = [_spoken(name) for name in own]
    times = Counter(spoken)
    return {name: place for place, name in enumerate(spoken) if name and times[name] == 1}


def _spoken(name: str) -> str:
    """`Hot_Dog` and `hot dog` are the same."""
    return _BETWEEN.sub(" ", name.casefold()).strip()
