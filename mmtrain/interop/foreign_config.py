"""Reading another library's config: every field is understood, or refused by name."""

import difflib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmtrain.errors import UsageError
from mmtrain.files import parse_json
from mmtrain.interop.canonical import show

_MISSING: Any = object()


class ForeignConfig:
    """A section of a JSON config, from which fields are taken one by one.

    Args:
        data: the section.
        source: names it in messages.

    Raises:
        UsageError: `data` is no JSON object.
    """

    def __init__(self, data: Any, *, source: str) -> None:
        if not isinstance(data, dict):
            raise UsageError(f"{source} is no JSON object")
        self.source = source
        self._left: dict[str, Any] = dict(data)
        self._known: list[str] = []

    def holds(self, name: str) -> bool:
        """Whether the field is there and not null; the field stays."""
        return self._left.get(name) is not None

    def peek(self, name: str) -> Any:
        """The field's value, None where it is missing; it stays."""
        return self._left.get(name)

    def take(self, name: str, kind: type | tuple[type, ...], default: Any = _MISSING) -> Any:
        """The field's value, of `kind`; the default where it is missing or null.

        Raises:
            UsageError: it has another type, or is missing without a default.
        """
        self._known.append(name)
        value = self._left.pop(name, None)
        if value is None:
            if default is _MISSING:
                raise UsageError(f"{self.source}: {name} is missing")
            return default
        kinds = kind if isinstance(kind, tuple) else (kind,)
        # bool is an int, and an int will do for a float.
        fits = type(value) in kinds or (float in kinds and type(value) is int)
        if not fits:
            wanted = " or ".join(one.__name__ for one in kinds)
            raise UsageError(f"{self.source}: {name} = {show(value)} must be {wanted}")
        if isinstance(value, float) and not math.isfinite(value):
            raise UsageError(f"{self.source}: {name} = {value} must be finite")
        return float(value) if float in kinds and int not in kinds else value

    def take_size(self, name: str, default: int) -> int:
        """The field's number of things; the default where it is missing or null.

        Raises:
            UsageError: it is no whole number, or below 1.
        """
        value = self.take(name, int, default)
        if value < 1:
            raise UsageError(f"{self.source}: {name} = {value} must be at least 1")
        return value

    def take_side(self, name: str, default: int) -> int:
        """The side of a square that is given as one number or as two.

        Raises:
            UsageError: it is none.
        """
        value = self.take(name, (int, list, tuple), default)
        sides = [value, value] if isinstance(value, int) else list(value)
        if len(sides) != 2 or sides[0] != sides[1] or type(sides[0]) is not int or sides[0] < 1:
            raise UsageError(f"{self.source}: {name} = {show(value)} must be square, of 1 or more")
        return sides[0]

    def take_numbers(self, name: str, default: Sequence[float]) -> tuple[float, ...]:
        """The field's list of numbers; the default where it is missing or null.

        Raises:
            UsageError: it is none.
        """
        values = self.take(name, list, list(default))
        if not all(type(value) in (int, float) and math.isfinite(value) for value in values):
            raise UsageError(f"{self.source}: {name} = {show(values)} must be numbers")
        return tuple(map(float, values))

    def only(self, name: str, *allowed: Any) -> Any:
        """The field's value, one of `allowed`; the first where it is missing or null.

        Raises:
            UsageError: it has another value, which we cannot compute.
        """
        self._known.append(name)
        value = self._left.pop(name, None)
        value = allowed[0] if value is None else value
        if value not in allowed:
            choices = " or ".join(show(one) for one in allowed)
            raise UsageError(
                f"{self.source}: {name} = {show(value)} is not supported; we read {choices}"
            )
        return value

    def only_even_null(self, name: str, *allowed: Any) -> Any:
        """The same where null is a value of its own: the first of `allowed` only where missing."""
        missing = name not in self._left
        value = self.only(name, None, *allowed) if not missing else None
        return allowed[0] if missing else value

    def take_even_null(self, name: str, kind: type | tuple[type, ...], default: Any = None) -> Any:
        """`take` where null is a value of its own: the default only where it is missing."""
        missing = name not in self._left
        value = self.take(name, kind, None)
        return default if missing else value

    def section(self, name: str) -> "ForeignConfig":
        """A nested section; empty where it is missing or null."""
        self._known.append(name)
        value = self._left.pop(name, None)
        return ForeignConfig({} if value is None else value, source=f"{self.source}: {name}")

    def ignore(self, *names: str) -> None:
        """Fields without an effect on the model."""
        self._known += names
        for name in names:
            self._left.pop(name, None)

    def close(self) -> None:
        """Refuse what nobody took.

        Raises:
            UsageError: a field is left, with the nearest that we know.
        """
        if (method := self._left.get("quantization_config")) is not None:
            named = method.get("quant_method") if isinstance(method, dict) else None
            raise UsageError(
                f"{self.source}: quantization_config: quantised weights ({named or 'unnamed'}) are "
                "not read; take the model that they were made from, or write it dequantised "
                "(transformers: model.dequantize())"
            )
        for name, value in self._left.items():
            near = difflib.get_close_matches(name, self._known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UsageError(f"{self.source}: {name} = {show(value)} is unknown{hint}")


@contextmanager
def refusing(source: str) -> Iterator[None]:
    """Name the file in what our own configs say of its shapes.

    Raises:
        UsageError: for a ValueError.
    """
    try:
        yield
    except UsageError:
        raise
    except ValueError as error:
        raise UsageError(f"{source}: {error}") from error


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        UsageError: it is missing or no JSON.
    """
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{path} is missing") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from None
