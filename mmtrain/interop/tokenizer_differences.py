"""Which texts get other ids when a tokenizer travels to another library, told with examples."""

from mmtrain.data.text.tokenizer import Tokenizer

PROBES = {
    "plain words": "a photo of two dogs, in the RAIN",
    "curly quotes": "it\u2019s \u201cred\u201d",
    "HTML entities": "salt &amp; pepper",
    "mojibake": "caf\u00c3\u00a9",
    "ligatures and full-width letters": "\ufb01ne \uff21\uff22\uff23",
    "letters in two parts": "cafe\u0301",
    "runs of spaces and lines": "a  red\n\n apple",
    "punctuation": "snake_case, e.g. don't: 50%!",
    "control characters": "red\x0bapple\u200b",
    "spelled special tokens": "a <|endoftext|> <end_of_text> </s> <eos>",
    "emoji": "\N{RED APPLE}\ufe0f ok",
    "no text": "",
}
"""A text of each kind that libraries are known to treat differently."""
_SHOWN = 8


def tokenizer_differences(ours: Tokenizer, theirs: Tokenizer, *, library: str) -> list[str]:
    """One line for each kind of text whose ids differ, none where all are the same.

    Args:
        ours: what travelled.
        theirs: the same as the other library reads it.
        library: its name.
    """
    told: list[str] = []
    for kind, text in PROBES.items():
        here, there = (_ids(tokenizer, text) for tokenizer in (ours, theirs))
        if here != there:
            told.append(
                f"{library} gives other ids for {kind}: {text!r} is {_show(there)} there and "
                f"{_show(here)} here"
            )
    if ours.pad_id != theirs.pad_id:
        told.append(
            f"{library} fills texts with {theirs.pad_id} behind their end, mmtrain with "
            f"{ours.pad_id}"
        )
    return told


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode([text])[0][0].tolist()


def _show(ids: list[int]) -> str:
    more = ", ..." if len(ids) > _SHOWN else ""
    return f"[{', '.join(map(str, ids[:_SHOWN]))}{more}]"
