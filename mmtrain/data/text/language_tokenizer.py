"""Tokenizers of decoders: text to ids and back, exactly, nothing cleaned or cut."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from mmtrain.data.text.cleaning import replace_surrogates
from mmtrain.data.text.codecs import Codec, Piece, build_codec
from mmtrain.data.text.messages import Message, Span
from mmtrain.errors import UsageError


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
        self._chat = None
        if chat_template is not None:
            from mmtrain.data.text.chat import ChatTemplate  # jinja2, which few recipes need

            self._chat = ChatTemplate(
                chat_template, special_tokens=self.special_tokens, today=today
            )

    @property
    def has_chat(self) -> bool:
        """Whether it has a chat template."""
        return self._chat is not None

    def special_id(self, name: str) -> int | None:
        """The id of a special token by its name, such as `bos_token`; None: it has none."""
        token = self.special_tokens.get(name)
        return None if token is None else self._codec.token_id(token)

    def spelled(self, token_id: int) -> str:
        """A token as the model spells it."""
        return self._codec.token(token_id)

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
        return self._codec.encode(replace_surrogates(text), special=special)

    def pieces(self, text: str, *, mark: str) -> list[Piece]:
        """The tokens of a text with their places, no start or end token added; `mark`, wherever it
        stands, is one of no id and splits the text as a special token does."""
        return self._codec.pieces(text, mark=mark)

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

    def render_marked(self, messages: Sequence[Message]) -> tuple[str, list[Span]]:
        """A conversation as one text, and the stretches of it that the template marks as said by
        the assistant; none where it marks nothing.

        Raises:
            UsageError: as `render_chat`.
        """
        if self._chat is None:
            raise UsageError("the model has no chat template; give it a plain prompt")
        return self._chat.render_marked(messages)
