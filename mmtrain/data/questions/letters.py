"""Which letter an answer names, where a question has lettered options."""

import re
import string
from collections.abc import Sequence

from mmtrain.data.questions.wording import normalize_answer

LETTERS = string.ascii_uppercase
_WHOLE = re.compile(r"\(?([A-Za-z])[).:,]{0,2}")
_FIRST = re.compile(r"(?:\(([A-Za-z])\)|([A-Za-z])[).:])\s")
_AFTER = re.compile(
    r"(?i:\banswer(?:\s+is|\s*:)\s*:?)[\s*(]*(?:([A-Z])\b|([a-z])(?=[).,;:!*]|\s*$))"
)
_QUOTES = " \t\r\n*\"'`"


def letter_of(answer: str, options: Sequence[str]) -> str | None:
    """The letter that an answer names, by the first of these that names one; None: none does.

    1. The answer is a letter, in brackets or with a mark behind it: `B`, `(B)`, `B.`, `b)`.
    2. It begins with one so marked: `B. left`, `(B) left`, `B: left`.
    3. It says "answer is B" or "answer: (B)", of one letter alone if more than once.
    4. It is an option's text, both normalised as VQAv2's answers, and no other option's.

    Letters without an option are none. Quotes and asterisks around it do not count.
    """
    said = answer.strip(_QUOTES)
    known = LETTERS[: len(options)]
    for found in (_WHOLE.fullmatch(said), _FIRST.match(said)):
        letter = next(filter(None, found.groups())).upper() if found else ""
        if letter and letter in known:
            return letter
    named = {(found[1] or found[2]).upper() for found in _AFTER.finditer(said)}
    if len(named) == 1 and (letter := named.pop()) in known:
        return letter
    if named:
        return None
    text = normalize_answer(said)
    same = [letter for letter, one in zip(known, options, strict=True) if _is(one, text)]
    return same[0] if len(same) == 1 else None


def _is(option: str, text: str) -> bool:
    return bool(text) and normalize_answer(option) == text
