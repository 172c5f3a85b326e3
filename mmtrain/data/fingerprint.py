"""Fingerprints of data: whether two runs, or a run and its evaluation, saw the same.

A fingerprint is of what is cheap to know: names, sizes, order. Where every member of every shard
has a checksum, a second one of the contents follows behind a plus sign.
"""

import hashlib
from collections.abc import Callable, Sequence

from torch import Tensor

_PLUS = "+"
_TEXTS = (
    "the quick brown fox jumps over the lazy dog; how vexingly quick daft zebras jump",
    "A photo of two children's bicycles, leaning against a wall (1987) & 50% off!",
    "Ein Mädchen läuft über die Straße. Où est la bibliothèque? ¿Dónde está el niño?",
    "人工知能の研究 機械学習 Быстрая лиса прыгает قطة على السجادة 😀🚲🏳️‍🌈",
    "abcdefghijklm nopqrstuvwxyz 0123456789",
    "ABC  DEF\tGHI\nJKL",
    "<start_of_text> [MASK] </s>",
)
"""Texts that different tokenizers hardly give the same ids."""


def join_fingerprint(layout: str, content: str | None) -> str:
    """One text of both."""
    return layout if content is None else f"{layout}{_PLUS}{content}"


def split_fingerprint(fingerprint: str) -> tuple[str, str | None]:
    """The two in a text; None where it does not cover the contents."""
    layout, _, content = fingerprint.partition(_PLUS)
    return layout, content or None


def join_sources(names: Sequence[str], fingerprints: Sequence[str]) -> tuple[str, str | None]:
    """Both of a mixture: of its sources in their order, each with its name."""
    layouts, contents = zip(*map(split_fingerprint, fingerprints), strict=True)

    def hashed(parts: Sequence[str]) -> str:
        named = repr([*zip(names, parts, strict=True)])
        return hashlib.blake2b(named.encode(), digest_size=16).hexdigest()

    return hashed(layouts), None if None in contents else hashed(contents)


def same_data(before: str, now: str) -> bool:
    """Whether two fingerprints may be of the same data: checksums that only one has say nothing."""
    (layout, content), (own_layout, own_content) = split_fingerprint(before), split_fingerprint(now)
    return layout == own_layout and (content == own_content or None in (content, own_content))


def ids_fingerprint(encode: Callable[[Sequence[str]], tuple[Tensor, Tensor]]) -> str:
    """Of the ids that a tokenizer's `encode` gives some texts: not of its files, which may be
    written in several ways."""
    tokens_BT, length_B = encode(_TEXTS)
    hashed = hashlib.blake2b(digest_size=16)
    hashed.update(repr((tokens_BT.tolist(), length_B.tolist())).encode())
    return hashed.hexdigest()
