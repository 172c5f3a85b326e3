"""A set's file of JSON, or of a JSON value a line, read whole."""

import json
from pathlib import Path
from typing import Any

from mmtrain.errors import UsageError
from mmtrain.files import parse_json


def read_json_file(path: Path, key: str) -> Any:
    """A file's JSON; the list of its values where it has an object a line, whatever its name.

    Raises:
        UsageError: it cannot be read, is no JSON, or an object has a key twice, of which JSON's
            readers would keep the last alone.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        lines = [line for line in text.split("\n") if line.strip()]
        if (path.suffix == ".jsonl" and lines) or (len(lines) > 1 and _is_object(lines[0])):
            return _values(lines)
        return _value(text)
    except OSError as error:
        raise UsageError(f"{key} = {path}: {error.strerror}; name a file that exists") from error
    except _TwiceError as error:
        raise UsageError(
            f"{key} = {path}: {error} is there twice; name the file of one split"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{key} = {path} is no JSON ({error}); fetch it again") from error


def _value(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_each_key_once)


def _is_object(line: str) -> bool:
    """Whether a file's first line is a whole object, which no file of one value begins with."""
    try:
        return isinstance(parse_json(line), dict)
    except ValueError:
        return False


def _values(lines: list[str]) -> list[Any]:
    values = []
    for number, line in enumerate(lines, 1):
        try:
            values.append(_value(line))
        except _TwiceError:
            raise
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from error
    return values


class _TwiceError(ValueError):
    """A key that an object has twice."""


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        seen: set[str] = set()
        raise _TwiceError(next(key for key, _ in pairs if key in seen or seen.add(key)))
    return content
