"""A set's file of JSON, read whole."""

import json
from pathlib import Path
from typing import Any

from mmtrain.errors import UsageError


def read_json_file(path: Path, key: str) -> Any:
    """A file's JSON.

    Raises:
        UsageError: it cannot be read, is no JSON, or an object has a key twice, of which JSON's
            readers would keep the last alone.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_each_key_once)
    except OSError as error:
        raise UsageError(f"{key} = {path}: {error.strerror}; name a file that exists") from error
    except _TwiceError as error:
        raise UsageError(
            f"{key} = {path}: {error} is there twice; name the file of one split"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{key} = {path} is no JSON ({error}); fetch it again") from error


class _TwiceError(ValueError):
    """A key that an object has twice."""


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        seen: set[str] = set()
        raise _TwiceError(next(key for key, _ in pairs if key in seen or seen.add(key)))
    return content
