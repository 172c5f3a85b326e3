"""Tokenizers of decoders: text to ids and back, exactly, nothing cleaned or cut."""

import base64
import re
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol

import sentencepiece
from tokenizers import Tokenizer

from mmtrain.data.text.chat import ChatTemplate, Message
from mmtrain.data.text.far_ids import refuse_far_ids
from mmtrain.errors import UsageError


class Codec(Protocol):
    """Ids of a text and text of ids, without a thought for what stands around."""

    vocab_size: int

    def encode(self, text: str, *, special: bool) -> list[int]:
        """`special` adds the start (and end) tokens that the model was trained with."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Special tokens are left out."""
        ...

    def token_id(self, token: str) -> int | None:
        """The id of a token as the model spells it."""
        ...

    def is_special(self, token_id: int) -> bool:
        """Whether decoding leaves the token out."""
        ...

    def describe(self) -> dict[str, Any]:
        """Plain data that `build_codec` makes it of again."""
        ...


class JsonCodec:
    """What a tokenizer.json of the `tokenizers` library says.

    Raises:
        ValueError: `definition` is none.
    """

    def __init__(self, definition: bytes) -> None:
        try:
            self._rust = Tokenizer.from_str(definition.decode("utf-8"))
        except Exception as error:  # the library raises nothing more precise
            raise ValueError(f"is not a tokenizer.json ({error})") from error
        refuse_far_ids(self._rust)
        self._rust.no_padding()
        self._rust.no_truncation()
        self.vocab_size = max(self._rust.get_vocab(with_added_tokens=True).values()) + 1
        added = self._rust.get_added_tokens_decoder()
        self._special = {number for number, token in added.items() if token.special}

    def encode(self, text: str, *, special: bool) -> list[int]:
        return self._rust.encode(text, add_special_tokens=special).ids

    def decode(self, ids: Sequence[int]) -> str:
        return self._rust.decode(list(ids), skip_special_tokens=True)

    def token_id(self, token: str) -> int | None:
        return self._rust.token_to_id(token)

    def is_special(self, token_id: int) -> bool:
        return token_id in self._special

    def describe(self) -> dict[str, Any]:
        return {"definition": self._rust.to_str()}


class SentencePieceCodec:
    """A SentencePiece model, as Llama-2 and Gemma carry it (`tokenizer.model`).

    Args:
        definition: the model's bytes.
        add_bos: begin with its start token.
        add_eos: close with its end token.
        added: tokens beyond the model's pieces, with their ids.
        hidden: those of them that decoding leaves out.

    Raises:
        ValueError: `definition` is no such model.
    """

    def __init__(
        self,
        definition: bytes,
        *,
        add_bos: bool,
        add_eos: bool,
        added: Mapping[str, int] | None = None,
        hidden: Collection[str] = (),
    ) -> None:
        self._definition = definition
        self._hidden = sorted(hidden)
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            # An empty file would load as a model without pieces.
            if not definition or not self._processor.LoadFromSerializedProto(definition):
                raise RuntimeError("no pieces")
        except RuntimeError as error:
            raise ValueError(f"is not a SentencePiece model ({error})") from error
        size = self._processor.vocab_size()
        self._added = dict(added or {})
        shown = (item for item in self._added.items() if item[0] not in hidden)
        self._shown = {number: token for token, number in shown}
        self.vocab_size: int = max(size - 1, *self._added.values(), -1) + 1
        self._before = [self._processor.bos_id()] if add_bos else []
        self._after = [self._processor.eos_id()] if add_eos else []
        control = (
            self._processor.id_to_piece(i) for i in range(size) if self._processor.is_control(i)
        )
        # A control piece in a text (a chat template writes them) is that piece, not its letters.
        words = sorted({*control, *self._added} - {""}, key=len, reverse=True)
        self._control = re.compile("(" + "|".join(map(re.escape, words)) + ")")

    def encode(self, text: str, *, special: bool) -> list[int]:
        ids: list[int] = []
        for number, part in enumerate(self._control.split(text)):
            if number % 2:
                ids.append(self._added.get(part, self._processor.piece_to_id(part)))
            elif part:
                ids += self._processor.encode(part)
        return [*self._before, *ids, *self._after] if special else ids

    def decode(self, ids: Sequence[int]) -> str:
        # An added token that is no piece stands between stretches of pieces.
        size, text, stretch = self._processor.vocab_size(), "", []
        for number in (*ids, None):
            if number is not None and number < size:
                stretch += [] if self._processor.is_control(number) else [number]
                continue
            text += self._processor.decode(stretch) if stretch else ""
            text += "" if number is None else self._shown.get(number, "")
            stretch = []
        return text

    def token_id(self, token: str) -> int | None:
        if token in self._added:
            return self._added[token]
        found = self._processor.piece_to_id(token)
        return found if self._processor.id_to_piece(found) == token else None

    def is_special(self, token_id: int) -> bool:
        if token_id < self._processor.vocab_size():
            return self._processor.is_control(token_id)
        return token_id not in self._shown

    def describe(self) -> dict[str, Any]:
        return {
            "pieces": base64.b64encode(self._definition).decode(),
            "add_bos": bool(self._before),
            "add_eos": bool(self._after),
            "added": self._added,
            "hidden": self._hidden,
        }


def build_codec(described: Mapping[str, Any]) -> Codec:
    """The codec that `Codec.describe` describes.

    Raises:
        ValueError: it describes none.
    """
    rest = dict(described)
    if "definition" in rest:
        return JsonCodec(rest["definition"].encode())
    return SentencePieceCodec(base64.b64decode(rest.pop("pieces")), **rest)


class LanguageTokenizer:
    """A decoder's tokenizer: a codec, the names of its special tokens, its chat template.

    Args:
        codec: ids of texts and texts of ids.
        special_tokens: bos_token, eos_token and the like, as the model spells them.
        chat_template: of a model that was tuned on conversations.
        end_ids: tokens that end an answer. None: the end token of `special_tokens`.
        today: what templates that tell the date say. None: the day on which they are rendered.
    """

    def __init__(
        self,
        codec: Codec,
        *,
        special_tokens: Mapping[str, str] | None = None,
        chat_template: str | None = None,
        end_ids: Sequence[int] | None = None,
        today: datetime | None = None,
    ) -> None:
        self._codec, self._template = codec, chat_template
        self.special_tokens = dict(special_tokens or {})
        self.vocab_size = codec.vocab_size
        eos_id = self.special_id("eos_token")
        own = () if eos_id is None else (eos_id,)
        self.end_ids: tuple[int, ...] = own if end_ids is None else tuple(end_ids)
        self._chat = (
            None
            if chat_template is None
            else ChatTemplate(chat_template, special_tokens=self.special_tokens, today=today)
        )

    @property
    def has_chat(self) -> bool:
        """Whether it has a chat template."""
        return self._chat is not None

    def special_id(self, name: str) -> int | None:
        """The id of a special token by its name, such as `bos_token`; None: it has none."""
        token = self.special_tokens.get(name)
        return None if token is None else self._codec.token_id(token)

    def is_special(self, token_id: int) -> bool:
        """Whether a token is no text."""
        return self._codec.is_special(token_id)

    def describe(self) -> dict[str, Any]:
        """Plain data that `restore` makes it of again."""
        return {
            "codec": self._codec.describe(),
            "special_tokens": self.special_tokens,
            "chat_template": self._template,
            "end_ids": list(self.end_ids),
        }

    @classmethod
    def restore(
        cls, described: Mapping[str, Any], *, today: datetime | None = None
    ) -> "LanguageTokenizer":
        """The tokenizer that `describe` describes.

        Raises:
            ValueError: it describes none.
        """
        try:
            rest = dict(described)
            return cls(build_codec(rest.pop("codec")), **rest, today=today)
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"is no decoder's tokenizer ({error!r})") from error

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """The ids of a text, with the start and end tokens of the model's training or without."""
        return self._codec.encode(text, special=special)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens left out."""
        return self._codec.decode(ids)

    def continuation(self, before: Sequence[int], ids: Sequence[int]) -> str:
        """The text that `ids` add behind `before`: a space between them is kept."""
        return self.decode([*before, *ids])[len(self.decode(before)) :]

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """The ids of a conversation, up to where the assistant's answer begins.

        Raises:
            UsageError: the model has no chat template, or it refuses the conversation.
        """
        return self.encode(self.render_chat(messages, add_generation_prompt=True), special=False)

    def render_chat(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = False
    ) -> str:
        """A conversation as the one text that the model was tuned on.

        Raises:
            UsageError: the model has no chat template, or it refuses the conversation.
        """
        if self._chat is None:
            raise UsageError("the model has no chat template; give it a plain prompt")
        return self._chat.render(messages, add_generation_prompt=add_generation_prompt)
