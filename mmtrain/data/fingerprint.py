"""Fingerprints of data: whether two runs, or a run and its evaluation, saw the same.

A fingerprint is of what is cheap to know: names, sizes, order. Where every member of every shard
has a checksum, a second one of the contents follows behind a plus sign.
"""

_PLUS = "+"


def join_fingerprint(layout: str, content: str | None) -> str:
    """One text of both."""
    return layout if content is None else f"{layout}{_PLUS}{content}"


def split_fingerprint(fingerprint: str) -> tuple[str, str | None]:
    """The two in a text; None where it does not cover the contents."""
    layout, _, content = fingerprint.partition(_PLUS)
    return layout, content or None


def same_data(before: str, now: str) -> bool:
    """Whether two fingerprints may be of the same data: checksums that only one has say nothing."""
    (layout, content), (own_layout, own_content) = split_fingerprint(before), split_fingerprint(now)
    return layout == own_layout and (content == own_content or None in (content, own_content))
