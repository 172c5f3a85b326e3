"""Ids of a tokenizer's file that no model has."""

from tokenizers import Tokenizer

MOST_IDS = 1 << 24
"""Far above any vocabulary. The library writes a tokenizer by counting up to its largest id, so
that one damaged number takes all memory, which ends the process."""


def refuse_far_ids(tokenizer: Tokenizer) -> None:
    """Refuse a vocabulary with an id beyond all models'.

    Raises:
        ValueError: naming the token.
    """
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    token, number = max(vocabulary.items(), key=lambda pair: pair[1], default=("", 0))
    if number >= MOST_IDS:
        raise ValueError(f"gives {token!r} the id {number}, but ids end below {MOST_IDS}")
