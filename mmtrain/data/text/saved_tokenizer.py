"""Reads the files of a tokenizer's folder, and refuses what is none."""

import difflib
from pathlib import Path
from typing import Any

from mmtrain.errors import UsageError

_SAVED_KEYS = {
    "kind": (str,),
    "path": (str,),
    "context_length": (int,),
    "clean": (str,),
    "add_sot": (bool, type(None)),
    "add_eot": (bool,),
    "pad_id": (int, type(None)),
    "sha256": (str,),
}


def read_file(path: Path, key: str) -> bytes:
    """Its content.

    Raises:
        UsageError: it cannot be read; `key` names it.
    """
    if path.is_char_device() or path.is_block_device():  # it may have no end
        raise UsageError(f"{key} = {path} is a device; name a file")
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        why = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"{key} = {path}: {why}; name a file that exists") from error


def check_saved(content: object, path: Path) -> dict[str, Any]:
    """The JSON object of tokenizer_config.json, which has exactly the keys of a saved tokenizer.

    Raises:
        UsageError: naming the key that is unknown, missing or of another type.
    """
    if not isinstance(content, dict):
        raise UsageError(f"{path}: is not a JSON object; export the model again")
    for key, value in content.items():
        if key not in _SAVED_KEYS:
            meant = difflib.get_close_matches(key, _SAVED_KEYS, n=1)
            hint = f"did you mean {meant[0]}?" if meant else f"it has {', '.join(_SAVED_KEYS)}"
            raise UsageError(f"{path}: {key} = {value!r} is not a key of a tokenizer; {hint}")
        if type(value) not in _SAVED_KEYS[key]:
            raise UsageError(f"{path}: {key} = {value!r} has the wrong type; export again")
    missing = _SAVED_KEYS.keys() - content.keys()
    if missing:
        raise UsageError(f"{path}: {', '.join(sorted(missing))} missing; export the model again")
    return content
