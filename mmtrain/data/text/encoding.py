"""Texts through a tokenizer of the `tokenizers` library."""

from tokenizers import Encoding, Tokenizer

from mmtrain.errors import UsageError


def encoded(tokenizer: Tokenizer, text: str, *, special: bool = True) -> Encoding:
    """What the library makes of a text; `special`: with start and end tokens.

    The library gives up where an expression of the file tries too many ways to fit; it says so by a
    panic, which is no Exception.

    Raises:
        UsageError: it gave up.
    """
    try:
        return tokenizer.encode(text, add_special_tokens=special)
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        told = " ".join(str(error).split())
        raise UsageError(f"tokenizer.json cannot be used on {text[:40]!r}: {told}") from error
