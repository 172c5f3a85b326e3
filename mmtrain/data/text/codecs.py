"""Ids of a text and text of ids, exactly as a decoder's own files say."""

import base64
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from tokenizers import AddedToken, Tokenizer

from mmtrain.data.text.encoding import encoded
from mmtrain.data.text.far_ids import refuse_far_ids
from mmtrain.data.text.sentence_piece import load_processor


class Piece(NamedTuple):
    """A token of a text, and the characters of it that it is."""

    token: int | None
    """None: the mark that stands for something that is no text."""
    start: int
    stop: int


class Codec(Protocol):
    """Ids of a text and text of ids, without a thought for what stands around."""

    vocab_size: int

    def encode(self, text: str, *, special: bool) -> list[int]:
        """`special` adds the start (and end) tokens that the model was trained with."""
        ...

    def pieces(self, text: str, *, mark: str) -> list[Piece]:
        """The tokens of a text with their places; `mark` splits the text as a special token of the
        model does."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Special tokens are left out."""
        ...

    def token_id(self, token: str) -> int | None:
        """The id of a token as the model spells it."""
        ...

    def token(self, token_id: int) -> str:
        """A token as the model spells it."""
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
        self._marking: dict[str, Tokenizer] = {}

    def encode(self, text: str, *, special: bool) -> list[int]:
        return encoded(self._rust, text, special=special).ids

    def pieces(self, text: str, *, mark: str) -> list[Piece]:
        rust = self._marking.get(mark)
        if rust is None:
            rust = self._marking[mark] = Tokenizer.from_str(self._rust.to_str())
            rust.add_special_tokens([AddedToken(mark, normalized=False)])
        marked = rust.token_to_id(mark)
        found = encoded(rust, text, special=False)
        return [
            Piece(None if token == marked else token, *place)
            for token, place in zip(found.ids, found.offsets, strict=True)
        ]

    def decode(self, ids: Sequence[int]) -> str:
        return self._rust.decode(list(ids), skip_special_tokens=True)

    def token_id(self, token: str) -> int | None:
        return self._rust.token_to_id(token)

    def token(self, token_id: int) -> str:
        return str(self._rust.id_to_token(token_id))

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
        self._processor = load_processor(definition)
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
        self._words = {*control, *self._added} - {""}
        self._control = _any_of(self._words)

    def encode(self, text: str, *, special: bool) -> list[int]:
        ids: list[int] = []
        for number, part in enumerate(self._control.split(text)):
            if number % 2:
                ids.append(self._control_id(part))
            elif part:
                ids += self._processor.encode(part)
        return [*self._before, *ids, *self._after] if special else ids

    def pieces(self, text: str, *, mark: str) -> list[Piece]:
        found: list[Piece] = []
        start = 0
        for number, part in enumerate(_any_of({*self._words, mark}).split(text)):
            stop = start + len(part)
            if number % 2:
                found.append(Piece(None if part == mark else self._control_id(part), start, stop))
            elif part:
                known = self._processor.encode(part, return_type="offset_mapping")
                places = zip(known["ids"], known["offsets"], strict=True)
                found += [Piece(token, start + a, start + b) for token, (a, b) in places]
            start = stop
        return found

    def _control_id(self, word: str) -> int:
        return self._added.get(word, self._processor.piece_to_id(word))

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

    def token(self, token_id: int) -> str:
        if token_id < self._processor.vocab_size():
            return self._processor.id_to_piece(token_id)
        return next(token for token, number in self._added.items() if number == token_id)

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


def _any_of(words: Collection[str]) -> re.Pattern[str]:
    """The longest of them where several fit."""
    longest_first = sorted(words, key=len, reverse=True)
    return re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")


def build_codec(described: Mapping[str, Any]) -> Codec:
    """The codec that `Codec.describe` describes.

    Raises:
        ValueError: it describes none.
    """
    rest = dict(described)
    if "definition" in rest:
        return JsonCodec(rest["definition"].encode())
    return SentencePieceCodec(base64.b64decode(rest.pop("pieces")), **rest)
