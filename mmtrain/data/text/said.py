"""Which tokens of a conversation the assistant says: what is learnt of it."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from mmtrain.data.text.cleaning import replace_surrogates
from mmtrain.data.text.language_tokenizer import LanguageTokenizer
from mmtrain.data.text.messages import Message, Span
from mmtrain.errors import UsageError

_WORD = "\ufdd2"
"""Stands for what the assistant says, to find what follows it."""
_OURS = re.compile("[\ufdd0-\ufdd2]")
"""What Unicode has for a program's own use, and we use."""


class SaidToken(NamedTuple):
    """A token of a conversation."""

    token: int | None
    """None: an image."""
    is_said: bool
    """Whether it is the assistant's: a word, or the end of what it says."""


def said_tokens(
    language: LanguageTokenizer, turns: Sequence[Message], *, mark: str, end_id: int
) -> list[SaidToken]:
    """The tokens of a whole conversation, as the template renders it.

    What is said is what the template marks by `{% generation %}`; else what follows the text that
    asks for an answer, up to the end token behind that answer. A token that reaches into it counts.

    Args:
        language: the tokenizer, with a chat template.
        turns: of the conversation.
        mark: what stands for an image in a text.
        end_id: the token that ends an answer.

    Raises:
        UsageError: the template refuses the conversation, or hides what the assistant says.
    """
    if any(_OURS.search(str(turn["content"])) for turn in turns):
        raise UsageError("chat template: U+FDD0 to U+FDD2 are no characters of a text")
    turns = [{**turn, "content": replace_surrogates(turn["content"])} for turn in turns]
    text, spans = language.render_marked(turns)
    pieces = language.pieces(text, mark=mark)
    is_marked = bool(spans)
    if not is_marked:
        spans = _answers(language, turns, text)
    said = [False] * len(pieces)
    for number, (start, stop) in enumerate(spans):
        first = next((i for i, p in enumerate(pieces) if p.stop > start), len(pieces))
        last = first
        while last < len(pieces) and pieces[last].start < stop:
            last += 1
        if not is_marked:
            before = spans[number + 1][0] if number + 1 < len(spans) else len(text)
            rest = range(last, len(pieces))
            ends = (i for i in rest if pieces[i].token == end_id and pieces[i].start < before)
            last = next(ends, last - 1) + 1
        said[first:last] = [True] * (last - first)
    return [SaidToken(piece.token, one) for piece, one in zip(pieces, said, strict=True)]


def _answers(language: LanguageTokenizer, turns: Sequence[Message], text: str) -> list[Span]:
    """Where each answer stands in the text of a conversation, without what ends it."""
    spans: list[Span] = []
    for number, turn in enumerate(turns):
        if turn["role"] != "assistant":
            continue
        word = {**turn, "content": _WORD}
        other = language.render_chat([*turns[:number], word, *turns[number + 1 :]])
        before, _, behind = other.partition(_WORD)
        asked = language.render_chat(turns[:number], add_generation_prompt=True)
        start = next((len(one) for one in (asked, before) if text.startswith(one)), -1)
        stop = len(text) - len(behind)
        if start < 0 or not text.endswith(behind) or stop < start or _WORD in behind:
            raise UsageError(
                f"chat template: it is not to be told where in its text turn {number + 1} stands"
            )
        spans.append((start, stop))
    return spans
