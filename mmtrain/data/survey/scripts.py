"""The script that a text is written in, which tells most languages apart, or at least families."""

import re
import unicodedata
from collections import Counter
from functools import lru_cache

NO_LETTERS = "no letters"
"""Of texts of digits and signs alone."""
_LATIN = re.compile(r"[\x00-\x7f]*[A-Za-z][\x00-\x7f]*")
_CALLED = {
    "CJK": "Han",
    "HIRAGANA": "Japanese",
    "KATAKANA": "Japanese",
    "HALFWIDTH": "Japanese",
    "FULLWIDTH": "Latin",
    "BOPOMOFO": "Han",
}


def script_of(text: str) -> str:
    """The script of most letters of a text, such as `Latin`, `Cyrillic`, `Han`.

    Japanese is told by its own letters, of which any text of some length has a few among the Han.
    """
    if _LATIN.fullmatch(text):
        return "Latin"
    counts = Counter(map(_script, text))
    del counts[""]
    if not counts:
        return NO_LETTERS
    if "Japanese" in counts and counts["Japanese"] + counts["Han"] >= counts.total() / 2:
        return "Japanese"
    return max(sorted(counts), key=lambda name: counts[name])


@lru_cache(maxsize=1 << 14)
def _script(letter: str) -> str:
    """The first word of a letter's name; empty for what is no letter."""
    if not letter.isalpha():
        return ""
    word = unicodedata.name(letter, "").partition(" ")[0].partition("-")[0]
    return _CALLED.get(word, word.capitalize())
