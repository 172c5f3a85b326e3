"""A decoder's tokenizer as a run's: questions as the decoder's texts, answers as what follows."""

import json
from collections.abc import Sequence
from datetime import datetime

from mmtrain.data.text.language_tokenizer import LanguageTokenizer
from mmtrain.data.text.messages import Message
from mmtrain.data.text.said import SaidToken, said_tokens
from mmtrain.files import parse_json

_DAY = datetime(2024, 7, 26)
"""What a chat template that tells the date says: a question's ids are the same tomorrow."""

_ANSWER = "yes, 1234567"
"""What no template says of itself."""


class LanguageTokens:
    """Turns questions and answers into a decoder's ids.

    With a chat template a question is what the user says, up to where the assistant's answer
    begins, and an answer ends as the template ends the assistant's; without one a question stands
    as it is, and an answer follows as a further word.

    Args:
        definition: a JSON object, as `define` makes it.

    Raises:
        ValueError: `definition` is none, or the tokenizer puts several tokens around a text.
    """

    file_name = "language_tokenizer.json"

    def __init__(self, definition: bytes) -> None:
        self._definition = definition
        try:
            content = parse_json(definition)
            self._chat, language = bool(content["chat"]), content["language"]
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"is no decoder's tokenizer ({error!r})") from error
        self._language = LanguageTokenizer.restore(language, today=_DAY)
        self.vocab_size: int = self._language.vocab_size
        self.sot_id: int | None = None if self._chat else self._start()
        self.eot_id: int | None = self._end()
        pad = self._language.special_id("pad_token")
        self.pad_id: int | None = self.eot_id if pad is None else pad
        plain = self._language.encode("a", special=False)
        inside = self._language.encode("a a", special=False)[-len(plain) :]
        self._gap = "" if self._chat or inside == plain else " "

    def __reduce__(self):
        return LanguageTokens, (self._definition,)

    def serialize(self) -> bytes:
        """The content of `file_name`."""
        return self._definition

    def token_ids(self, texts: Sequence[str], *, limit: int) -> list[list[int]]:
        """The ids of questions, without the start token.

        Raises:
            ValueError: the template alone takes more than `limit` tokens.
        """
        if not self._chat:
            return [self._language.encode(text, special=False) for text in texts]
        return [self._asked(text, limit) for text in texts]

    def reply_ids(self, text: str) -> list[int]:
        """The ids of an answer, without the end token."""
        return self._language.encode(self._gap + text, special=False)

    @property
    def has_chat(self) -> bool:
        """Whether it asks by a chat template."""
        return self._chat

    def said_tokens(self, turns: Sequence[Message], *, mark: str) -> list[SaidToken]:
        """The tokens of a whole conversation by the chat template; see there.

        Raises:
            UsageError: as there.
        """
        assert self._chat and self.eot_id is not None
        return said_tokens(self._language, turns, mark=mark, end_id=self.eot_id)

    def spelled(self, token: int) -> str | None:
        """A special token as the model spells it; None: it is of a text."""
        return self._language.spelled(token) if self._language.is_special(token) else None

    def text(self, ids: Sequence[int]) -> str:
        """The text of ids."""
        return self._language.decode(ids)

    def _asked(self, text: str, limit: int) -> list[int]:
        """Of a long question the beginning, so that the answer still begins where it must."""
        ids = self._language.encode_chat([{"role": "user", "content": text}])
        while len(ids) > limit:
            own = self._language.encode(text, special=False)
            kept = len(own) - (len(ids) - limit)
            if not text or kept < 0:
                raise ValueError(f"the chat template takes {len(ids)} tokens around a question")
            shorter = self._language.decode(own[:kept])
            text = shorter if len(shorter) < len(text) else text[:-1]
            ids = self._language.encode_chat([{"role": "user", "content": text}])
        return ids

    def _start(self) -> int | None:
        plain = self._language.encode("a", special=False)
        before = self._language.encode("a")[: -len(plain)]
        bos = self._language.special_id("bos_token")
        return bos if bos is not None and before[:1] == [bos] else None

    def _end(self) -> int | None:
        """The special token that the template puts behind an answer; else the end token."""
        own, ends = self._language.special_id("eos_token"), self._language.end_ids
        own = next(iter(ends), None) if own is None else own
        if not self._chat:
            return own
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _ANSWER}]
        behind = self._language.render_chat(turns).rpartition(_ANSWER)[2]
        ids = self._language.encode(behind, special=False)
        return next((token for token in ids if self._language.is_special(token)), own)


def define(language: LanguageTokenizer, *, chat: bool) -> bytes:
    """The definition of a decoder's tokenizer.

    Args:
        language: its tokenizer.
        chat: ask by its chat template.
    """
    content = {"chat": chat, "language": language.describe()}
    return json.dumps(content, ensure_ascii=False, sort_keys=True).encode()
