"""SentencePiece models as transformers' SiglipTokenizer reads them.

Special tokens are found in the text as it came; what stands between them is lowered, stripped of
punctuation and cut into pieces. https://github.com/huggingface/transformers: models/siglip.
"""

import base64
import dataclasses
import json
import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mmtrain.data.text.sentence_piece import load_processor
from mmtrain.files import parse_json

_SPACE = "\u2581"
"""How pieces write a space."""
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True, kw_only=True)
class AddedPiece:
    """A token that is found before texts are cut into pieces."""

    content: str
    """As texts spell it."""
    id: int
    """What it becomes."""
    lstrip: bool = False
    """White space before it is dropped."""
    rstrip: bool = False
    """White space behind it is dropped."""
    single_word: bool = False
    """Only between spaces."""
    special: bool = True
    """A leading one takes no space before it."""


class SiglipPieces:
    """Turns texts into ids, with the texts' own cleaning.

    Args:
        definition: a JSON object, as `define` makes it.

    Raises:
        ValueError: `definition` is none, or its model is no SentencePiece model.
    """

    file_name = "siglip_tokenizer.json"

    def __init__(self, definition: bytes):
        self._definition = definition
        try:
            content: dict[str, Any] = parse_json(definition)
            model = base64.b64decode(content["model"])
            added = [AddedPiece(**piece) for piece in content["added"]]
            unknown, end = content["unk"], content["eos"]
            self._lowers = bool(content["lower"])
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"is no SiglipTokenizer ({error!r})") from error
        try:
            self._processor = load_processor(model)
        except ValueError as error:
            raise ValueError(f"holds what {error}") from error
        self._added = {piece.content: piece for piece in added}
        # The longest first: a token may begin with another.
        words = sorted(filter(None, self._added), key=len, reverse=True)
        self._split = re.compile("(" + "|".join(map(re.escape, words)) + ")") if words else None
        self._unknown = unknown
        self._skipped = len(self._processor.encode(unknown, out_type=str))
        ids = [piece.id for piece in added]
        self.vocab_size: int = max(self._processor.vocab_size() - 1, *ids) + 1
        self.sot_id: int | None = None
        self.eot_id: int | None = self._id(end)
        self.pad_id: int | None = None

    def __reduce__(self):
        return SiglipPieces, (self._definition,)

    def serialize(self) -> bytes:
        """The content of `file_name`."""
        return self._definition

    @property
    def model(self) -> bytes:
        """The SentencePiece model."""
        return base64.b64decode(parse_json(self._definition)["model"])

    def token_ids(self, texts: Sequence[str], *, limit: int) -> list[list[int]]:
        """The ids of each text, without the end token that `limit` leaves room for."""
        rows = [self._ids(text)[:limit] for text in texts]
        # A text that ends in the end token gets no second one.
        return [row[:-1] if row and row[-1] == self.eot_id else row for row in rows]

    def text(self, ids: Sequence[int]) -> str:
        """The text of ids."""
        size = self._processor.vocab_size()
        return self._processor.decode([i for i in ids if i < size])

    def _ids(self, text: str) -> list[int]:
        parts = self._parts(_SPACE + text.replace(_SPACE, " "))
        tokens = [
            token
            for part in parts
            if part
            for token in ([part] if part in self._added else self._pieces(part))
        ]
        if len(tokens) > 1 and tokens[0] == _SPACE:
            second = self._added.get(tokens[1])
            if second is not None and second.special:
                tokens = tokens[1:]
        return [self._id(token) for token in tokens]

    def _parts(self, text: str) -> list[str]:
        """The text cut at its added tokens, with the white space that these drop dropped."""
        if self._split is None:
            return [text]
        parts = [part for part in self._split.split(text) if part]
        for place, part in enumerate(parts):
            token = self._added.get(part)
            if token is None:
                continue
            before = parts[place - 1] if place > 0 else ""
            behind = parts[place + 1] if place + 1 < len(parts) else ""
            if token.rstrip and behind:
                parts[place + 1] = behind.lstrip()
            if token.lstrip and before:
                parts[place - 1] = before.rstrip()
            if token.single_word and before and before[-1] != " ":
                parts[place - 1] += part
                parts[place] = ""
            elif token.single_word and behind and behind[0] != " ":
                parts[place + 1] = part + parts[place + 1]
                parts[place] = ""
        return parts

    def _pieces(self, text: str) -> list[str]:
        text = text.lower() if self._lowers else text
        text = re.sub(r"\s+", " ", text.translate(_NO_PUNCTUATION)).strip()
        # Behind the unknown token's letters a text keeps the spaces that it has, and gets none.
        pieces = self._processor.encode(self._unknown + text, out_type=str)
        return pieces[self._skipped :] if len(pieces) >= self._skipped else pieces

    def _id(self, token: str) -> int:
        added = self._added.get(token)
        return self._processor.piece_to_id(token) if added is None else added.id


def define(model: bytes, *, added: Sequence[AddedPiece], unk: str, eos: str, lower: bool) -> bytes:
    """The definition of a `SiglipPieces`.

    Args:
        model: a SentencePiece model.
        added: tokens that are found first.
        unk: the unknown token.
        eos: the end token.
        lower: texts are lowered.
    """
    content = {
        "model": base64.b64encode(model).decode(),
        "added": [dataclasses.asdict(piece) for piece in added],
        "unk": unk,
        "eos": eos,
        "lower": lower,
    }
    return json.dumps(content, indent=2, ensure_ascii=False).encode()
