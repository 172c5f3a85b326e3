"""One text, or several captions in it."""

import ast
import json


def caption_list(text: str) -> list[str] | None:
    """The texts of a list that is written as JSON, or as Python prints it, as tables hold them;
    None: it is none."""
    text = text.strip()
    if not (text.startswith("[") and text.endswith("]")):
        return None
    for read in (json.loads, ast.literal_eval):
        try:
            value = read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(value, list) and value and all(isinstance(one, str) for one in value):
            return value
    return None


def caption_lines(text: str) -> list[str]:
    """The lines of a text that are not blank. Only newlines end one, as in tables."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return [line.strip() for line in lines if line.strip()]


def split_captions(text: str, *, lines: bool | None) -> list[str]:
    """The captions in a text.

    Args:
        text: as it stands in the data.
        lines: each line is one. False: the whole text is one, whatever it looks like. None: a list
            is several, any other text is one.
    """
    if lines is not False and (listed := caption_list(text)) is not None:
        return listed
    return caption_lines(text) if lines else [text]
