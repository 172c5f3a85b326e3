"""Which samples are meant: `NAME OP VALUE`, such as `concept=dog`, `txt~dog`, `image.width>9`."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from mmtrain.data.survey.seen import Seen
from mmtrain.errors import UsageError

_OPERATORS = ("!=", "<=", ">=", "=", "~", "<", ">")
_IMAGE = "image."
_OF_SIZE: dict[str, Callable[[tuple[int, int]], float]] = {
    "width": lambda size: size[0],
    "height": lambda size: size[1],
    "aspect": lambda size: size[0] / size[1],
}
_OF_FILE: dict[str, Callable[[Seen], float | str]] = {
    "bytes": lambda seen: len(seen.image),
    "kind": lambda seen: seen.kind,
}


@dataclass(frozen=True, kw_only=True)
class Where:
    """One condition."""

    name: str
    """`txt` for the captions, `key`, `bad` for the reason, `image.width` and alike; any other is a
    field of the .json."""
    operator: str
    """One of = != ~ < > <= >=; `~` is `contains`, in any case of letters."""
    value: str
    """As it was typed."""

    @classmethod
    def of(cls, text: str) -> "Where":
        """The condition that a text is.

        Raises:
            UsageError: it is none.
        """
        found = re.match(rf"\s*([^=!~<>]+?)\s*({'|'.join(_OPERATORS)})\s*(.*?)\s*$", text, re.S)
        if found is None:
            raise UsageError(
                f"--where {text} must be NAME OP VALUE with OP one of {' '.join(_OPERATORS)}, "
                "such as concept=dog, txt~dog or image.width>=512"
            )
        name, operator, value = found.groups()
        member = name.removeprefix(_IMAGE)
        if name.startswith(_IMAGE) and member not in _OF_SIZE | _OF_FILE:
            raise UsageError(f"--where {text}: an image has {', '.join(_OF_SIZE | _OF_FILE)}")
        if operator[0] in "<>" and _number(value) is None:
            raise UsageError(f"--where {text}: {value!r} is no number, which {operator} compares")
        return cls(name=name, operator=operator, value=value)

    def excludes(self, size: tuple[int, int]) -> bool:
        """Whether no sample is meant whose image has this width and height, as its header says.

        One that says so and cannot be decoded has no size: it is meant by `!=`.
        """
        read = _OF_SIZE.get(self.name.removeprefix(_IMAGE))
        if read is None or not self.name.startswith(_IMAGE) or self.operator == "!=":
            return False
        return not self._fits(read(size))

    def holds(self, seen: Seen) -> bool:
        """Whether a sample is meant; of several values, such as captions, one must hold."""
        values = self._values(seen)
        if self.operator == "!=":
            return not any(self._is_equal(value) for value in values)
        return any(self._fits(value) for value in values)

    def _values(self, seen: Seen) -> list[object]:
        if self.name.startswith(_IMAGE):
            member = self.name.removeprefix(_IMAGE)
            if seen.size is None:
                return []
            return [_OF_SIZE[member](seen.size) if member in _OF_SIZE else _OF_FILE[member](seen)]
        known = {"txt": seen.captions, "key": [seen.key], "bad": [seen.reason] * bool(seen.reason)}
        if self.name in known:
            return list(known[self.name])
        value = seen.fields.get(self.name)
        return value if isinstance(value, list) else [] if value is None else [value]

    def _fits(self, value: object) -> bool:
        if self.operator == "=":
            return self._is_equal(value)
        if self.operator == "~":
            return self.value.lower() in str(value).lower()
        left, right = _number(value), _number(self.value)
        if left is None or right is None:
            return False
        both = {"<": left < right, ">": left > right, "<=": left <= right, ">=": left >= right}
        return both[self.operator]

    def _is_equal(self, value: object) -> bool:
        if isinstance(value, bool):  # as JSON and as Python write it
            return str(value).lower() == self.value.lower()
        left, right = _number(value), _number(self.value)
        return str(value) == self.value or (left is not None and left == right)


def _number(value: object) -> float | None:
    try:
        return float(str(value))
    except ValueError:
        return None
