"""Texts to token ids: the tokenizer's config, the padded and cut forms, and its folder on disk."""

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, get_args

import numpy as np
import torch
from torch import Tensor

from mmtrain.data.fingerprint import ids_fingerprint
from mmtrain.data.text.cleaning import CLEANINGS, Cleaning
from mmtrain.data.text.clip_bpe import ClipBpe
from mmtrain.data.text.json_tokenizer import JsonTokenizer
from mmtrain.data.text.language_tokens import LanguageTokens
from mmtrain.data.text.messages import Message
from mmtrain.data.text.said import SaidToken
from mmtrain.data.text.saved_tokenizer import check_saved, read_file
from mmtrain.data.text.sentence_piece import SentencePieceModel
from mmtrain.data.text.siglip_pieces import SiglipPieces
from mmtrain.data.work import COUNTER
from mmtrain.errors import UsageError
from mmtrain.files import parse_json, replace_file
from mmtrain.limits import MOST
from mmtrain.settings.paths import PathText

CONFIG_FILE = "tokenizer_config.json"

Kind = Literal["clip", "sentencepiece", "json", "siglip", "language"]


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """Which tokenizer, and what a text becomes.

    OpenAI's CLIP is the default. SigLIP is `kind = "sentencepiece"`, `context_length = 64`,
    `clean = "canonicalize"`, `pad_id = 1`.
    """

    kind: Kind = "clip"
    """`clip`: CLIP's byte-pair encoding. `sentencepiece`: a model of your own, given by `path`.
    `json`: a tokenizer.json of the `tokenizers` library, as Hugging Face's models carry it.
    `siglip`: what transformers' SiglipTokenizer does, as read from its folder. `language`: a
    decoder's, which vqa.generate.init brings."""
    path: PathText | None = None
    """The model file: a SentencePiece `.model`, or a `tokenizer.json` that we saved. None, for
    `clip` only, takes CLIP's published merges."""
    context_length: int = 77
    """Tokens at most, start and end token counted; longer texts are cut, the end token kept."""
    clean: Cleaning = "lower"
    """Every text is repaired (mojibake, HTML entities) and its white space collapsed. `whitespace`:
    no more. `lower`: and lower case. `canonicalize`: and lower case without punctuation. `none`:
    texts stay as they are, as Hugging Face's tokenizers take them."""
    add_sot: bool | None = None
    """Begin with the start token. None: yes for `clip`, no for `sentencepiece`, for `json` as the
    file has it."""
    add_eot: bool = True
    """Close with the end token."""
    pad_id: int | None = None
    """What fills the rest of the context. None: 0 for `clip`, else the model's own."""

    def __post_init__(self) -> None:
        for key, choices in (("kind", get_args(Kind)), ("clean", get_args(Cleaning))):
            value = getattr(self, key)
            if value not in choices:
                raise UsageError(
                    f"tokenizer.{key} = {value!r} is unknown; use {' or '.join(choices)}"
                )
        if self.context_length < 3:
            raise UsageError(
                f"tokenizer.context_length = {self.context_length} leaves no room for a text"
                " between start and end token; use 3 or more"
            )
        if self.context_length > MOST:
            raise UsageError(
                f"tokenizer.context_length = {self.context_length} must be at most {MOST}"
            )
        if self.kind == "clip" and (self.add_sot is False or not self.add_eot):
            key = "add_eot" if not self.add_eot else "add_sot"
            raise UsageError(
                f"tokenizer.{key} = false: CLIP's texts have both a start and an end token;"
                " leave it out, or use kind = sentencepiece"
            )
        if self.kind != "clip" and self.path is None:
            raise UsageError(
                f"tokenizer.path is missing: kind = {self.kind} needs a model file;"
                " tools/train_tokenizer.py trains one"
            )


class TokenModel(Protocol):
    """What cuts cleaned texts into ids; ids that the model does not have are None."""

    file_name: str
    vocab_size: int
    sot_id: int | None
    eot_id: int | None
    pad_id: int | None

    def token_ids(self, texts: Sequence[str], *, limit: int) -> list[list[int]]:
        """The ids of each text, without SOT and EOT; those after the first `limit` may lack."""
        ...

    def text(self, ids: Sequence[int]) -> str:
        """The text of ids."""
        ...

    def serialize(self) -> bytes:
        """The content of `file_name`, from which the model can be built again."""
        ...


_MODELS: dict[Kind, Callable[[bytes], TokenModel]] = {
    "clip": ClipBpe,
    "sentencepiece": SentencePieceModel,
    "json": JsonTokenizer,
    "siglip": SiglipPieces,
    "language": LanguageTokens,
}


_NO_LIMIT = 1 << 20


class Tokenizer:
    """Texts to padded int64 ids. Safe to pickle and to fork; made by `build_tokenizer`."""

    def __init__(self, config: TokenizerConfig, model: TokenModel):
        self.config = config
        self._model = model
        self._clean = CLEANINGS[config.clean]
        self.context_length: int = config.context_length
        self.vocab_size: int = model.vocab_size
        self.sot_id: int | None = model.sot_id
        self.eot_id: int | None = model.eot_id
        standard = config.kind != "sentencepiece" and model.sot_id is not None
        add_sot = standard if config.add_sot is None else config.add_sot
        self._before = _token_or_refuse("add_sot = true", model.sot_id) if add_sot else []
        self._after = _token_or_refuse("add_eot = true", model.eot_id) if config.add_eot else []
        pad_id = model.pad_id if config.pad_id is None else config.pad_id
        if pad_id is None or not 0 <= pad_id < model.vocab_size:
            raise UsageError(
                f"tokenizer.pad_id = {config.pad_id}: "
                + ("the model has no padding token" if pad_id is None else "outside the vocabulary")
                + f"; name one of its {model.vocab_size} ids"
                + ("" if model.eot_id is None else f", such as its end token {model.eot_id}")
            )
        self.pad_id: int = pad_id

    def __call__(self, texts: str | Sequence[str]) -> Tensor:
        """Ids [B, context_length], padded with `pad_id`; a text too long keeps its end token."""
        rows = self._rows([texts] if isinstance(texts, str) else texts)
        return _padded(rows, self.context_length, self.pad_id)[0]

    def encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids [B, T] cut to the longest text (T <= context_length), and lengths [B].

        A length counts all tokens of a text, start and end token too, padding not.
        """
        with COUNTER.stage("text"):
            rows = self._rows(texts)
            return _padded(rows, max(map(len, rows), default=0), self.pad_id)

    def reply_ids(self, text: str) -> list[int]:
        """The ids of a text that follows another one: no start token, no end token."""
        cleaned = self._clean(text)
        if isinstance(self._model, LanguageTokens):
            return self._model.reply_ids(cleaned)
        room = self.context_length - len(self._before) - len(self._after)
        ids = self._model.token_ids([cleaned], limit=room)[0][:room]
        return [token for token in ids if token != self.eot_id]

    def turn_ids(self, text: str) -> list[int]:
        """The ids of a text without start and end token, as many as there is room for."""
        room = self.context_length - len(self._before) - len(self._after)
        return self._model.token_ids([self._clean(text)], limit=room)[0][:room]

    def chat_tokens(self, turns: Sequence[Message], *, mark: str) -> list[SaidToken] | None:
        """The tokens of a whole conversation, uncut; None: there is no chat template.

        Args:
            turns: of the conversation.
            mark: what stands for an image in a text.

        Raises:
            UsageError: the template refuses the conversation, or hides what the assistant says.
        """
        model = self._model
        if not isinstance(model, LanguageTokens) or not model.has_chat:
            return None
        return model.said_tokens(turns, mark=mark)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, start, end and padding token left out."""
        special = (self.sot_id, self.eot_id, self.pad_id)
        return self._model.text([i for i in ids if i not in special]).strip()

    def spelled(self, token: int) -> str | None:
        """A special token by its name; None: it is of a text."""
        if isinstance(self._model, LanguageTokens):
            return self._model.spelled(token)
        return {self.sot_id: "<start>", self.eot_id: "<end>"}.get(token)

    def continued(self, before: Sequence[int], ids: Sequence[int]) -> str:
        """The text that `ids` add behind `before`, a space between them kept."""
        known = self._model.text(before)
        return self._model.text([*before, *ids])[len(known) :]

    def _rows(self, texts: Sequence[str]) -> list[list[int]]:
        room = self.context_length - len(self._before) - len(self._after)
        cleaned = [self._clean(text) for text in texts]
        rows = self._model.token_ids(cleaned, limit=room)
        return [[*self._before, *row[:room], *self._after] for row in rows]

    @property
    def turn_ends(self) -> tuple[list[int], list[int]]:
        """The tokens before and behind every text."""
        return self._before, self._after

    def is_cut(self, text: str) -> bool:
        """Whether a text is longer than what the ids of it hold."""
        room = self.context_length - len(self._before) - len(self._after)
        return len(self._model.token_ids([self._clean(text)], limit=_NO_LIMIT)[0]) > room

    @property
    def num_before(self) -> int:
        """Tokens before every text: 1 where it has a start token."""
        return len(self._before)

    def shortened(self, num_tokens: int) -> "Tokenizer":
        """The same with room for so many tokens less.

        Raises:
            UsageError: that leaves no room for a text.
        """
        length = self.context_length - num_tokens
        return Tokenizer(dataclasses.replace(self.config, context_length=length), self._model)

    def at_length(self, context_length: int | None) -> "Tokenizer":
        """The same with texts of so many tokens at most; None: as they are."""
        if context_length in (None, self.context_length):
            return self
        return self.shortened(self.context_length - context_length)

    @property
    def file_name(self) -> str:
        """Of the model file that `save` writes."""
        return self._model.file_name

    @property
    def definition(self) -> bytes:
        """The content of the model file, from which the same ids come again."""
        return self._model.serialize()

    @property
    def fingerprint(self) -> str:
        """Of the ids that texts get, not of the file, which may be written in several ways."""
        return ids_fingerprint(self.encode)

    def save(self, folder: Path) -> None:
        """Write the model file and `tokenizer_config.json` into `folder`, made if need be."""
        folder.mkdir(parents=True, exist_ok=True)
        definition = self._model.serialize()
        config = dataclasses.replace(self.config, path=self._model.file_name)
        content = dataclasses.asdict(config) | {"sha256": hashlib.sha256(definition).hexdigest()}
        replace_file(folder / self._model.file_name, definition)
        replace_file(folder / CONFIG_FILE, json.dumps(content, indent=2) + "\n")


def build_tokenizer(config: TokenizerConfig, *, folder: Path | None = None) -> Tokenizer:
    """The tokenizer of `config`; a relative `config.path` starts at `folder` (default: here).

    Raises:
        UsageError: the file is missing or no such model, or the model lacks a token asked for.
    """
    if config.path is None:
        return Tokenizer(config, ClipBpe())
    path = (folder or Path()) / config.path
    return _build(config, path, read_file(path, "tokenizer.path"))


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer that `Tokenizer.save` wrote into `folder`.

    Raises:
        UsageError: a file is missing or damaged, or the config has a key that we do not know.
    """
    config_path = folder / CONFIG_FILE
    try:
        content = parse_json(read_file(config_path, "tokenizer"))
    except ValueError as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"{config_path}: is not JSON ({error}); export the model again") from error
    fields = dict(check_saved(content, config_path))
    sha256 = fields.pop("sha256")
    config = TokenizerConfig(**fields)
    path = folder / str(config.path)
    definition = read_file(path, f"{config_path}: path")
    if hashlib.sha256(definition).hexdigest() != sha256:
        raise UsageError(
            f"{path}: its SHA-256 is not the one in {CONFIG_FILE}: damaged or another model's;"
            " export the model again"
        )
    return _build(config, path, definition)


def _build(config: TokenizerConfig, path: Path, definition: bytes) -> Tokenizer:
    try:
        model = _MODELS[config.kind](definition)
    except ValueError as error:
        raise UsageError(
            f"tokenizer.path = {path}: {error}; name a file for kind = {config.kind}"
        ) from error
    return Tokenizer(config, model)


def _token_or_refuse(setting: str, token: int | None) -> list[int]:
    if token is None:
        raise UsageError(
            f"tokenizer.{setting}: the model has no such token; set it to false or train a model"
            " with tools/train_tokenizer.py"
        )
    return [token]


def _padded(rows: list[list[int]], width: int, pad_id: int) -> tuple[Tensor, Tensor]:
    """Ids [B, width] and lengths [B], int64."""
    length_B = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
    ids = np.fromiter(itertools.chain.from_iterable(rows), dtype=np.int64, count=length_B.sum())
    tokens_BT = np.full((len(rows), width), pad_id, dtype=np.int64)
    tokens_BT[np.arange(width) < length_B[:, None]] = ids
    return torch.from_numpy(tokens_BT), torch.from_numpy(length_B)
