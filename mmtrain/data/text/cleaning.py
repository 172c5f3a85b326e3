"""What is done to a caption before it is cut into tokens."""

import html
import re
import string
from collections.abc import Callable
from typing import Literal

Cleaning = Literal["lower", "whitespace", "canonicalize", "none"]

# ftfy and html.unescape return such text as it is (ASCII, no control character, no entity):
# most captions, and ftfy alone would cost ten times all the rest of the tokenizer.
_PLAIN = re.compile(r"[\t\n -%'-~]*")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def _repair(text: str) -> str:
    """Undo mojibake, lone surrogates, control characters, and HTML entities escaped up to twice."""
    if _PLAIN.fullmatch(text):
        return text
    import ftfy  # a tenth of a second, which a recipe that is only read need not wait for

    return html.unescape(html.unescape(ftfy.fix_text(text)))


def _clean_whitespace(text: str) -> str:
    return " ".join(_repair(text).split())


def _clean_lower(text: str) -> str:
    return " ".join(_repair(text).split()).lower()


def _clean_canonicalize(text: str) -> str:
    text = _repair(text).replace("_", " ").translate(_NO_PUNCTUATION).lower()
    return " ".join(text.split())


def replace_surrogates(text: str) -> str:
    """A lone surrogate has no UTF-8, so that no tokenizer has an id for it: the replacement
    character stands for it."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


CLEANINGS: dict[Cleaning, Callable[[str], str]] = {
    "lower": _clean_lower,
    "whitespace": _clean_whitespace,
    "canonicalize": _clean_canonicalize,
    "none": replace_surrogates,
}
"""Repaired text whose words are divided by single spaces, then: in lower case (OpenAI CLIP); as it
is; or in lower case without ASCII punctuation (SigLIP). The same as open_clip's of these names.
`none` does nothing: the tokenizers of Hugging Face's folders take texts as they are."""
