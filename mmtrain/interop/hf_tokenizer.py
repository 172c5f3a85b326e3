"""Tokenizer files as transformers reads and writes them, for the tokenizers that we compute.

CLIP's own byte-pair encoding (vocab.json and merges.txt, or tokenizer.json), recognised by its
whole vocabulary, SentencePiece models with an end token (spiece.model), as SigLIP's, and whatever
else a tokenizer.json says.
"""

import json
from pathlib import Path
from typing import Any

import sentencepiece

from mmtrain.data.clip_bpe import EOT, SOT, ClipBpe
from mmtrain.data.json_tokenizer import JsonTokenizer
from mmtrain.data.sentence_piece import SentencePieceModel
from mmtrain.data.tokenizer import Tokenizer, TokenizerConfig, build_tokenizer
from mmtrain.errors import UsageError
from mmtrain.files import replace_file
from mmtrain.interop.foreign_config import read_json

CONFIG_FILE = "tokenizer_config.json"
JSON_FILE = "tokenizer.json"
LOWERING = ("Siglip2Tokenizer", "GemmaTokenizer")
"""Classes of transformers that lower a text before their tokenizer.json sees it (SigLIP 2)."""
PIECES_FILES = ("spiece.model", "sentencepiece.model")
SPECIAL = {SOT: "<|startoftext|>", EOT: "<|endoftext|>"}
"""The names of CLIP's special tokens in transformers' files."""


def is_clips_own(tokenizer: Tokenizer) -> bool:
    """Whether it is CLIP's published byte-pair encoding."""
    return tokenizer.config.kind == "clip" and tokenizer.definition == ClipBpe().serialize()


def read_hf_tokenizer(folder: Path, *, context_length: int, clean: str | None = None) -> Tokenizer:
    """The tokenizer of a folder.

    Args:
        folder: holds the files.
        context_length: tokens at most.
        clean: what is done to a text first; None takes what transformers' class does.

    Raises:
        UsageError: there is no tokenizer, or none that gives the same ids here.
    """
    pieces = next((folder / name for name in PIECES_FILES if (folder / name).is_file()), None)
    config_path = folder / CONFIG_FILE
    config: dict[str, Any] = read_json(config_path) if config_path.is_file() else {}
    kind = str(config.get("tokenizer_class", "")).removesuffix("Fast")
    if pieces is not None and kind in ("SiglipTokenizer", "T5Tokenizer"):
        own_clean = "canonicalize" if kind == "SiglipTokenizer" else "whitespace"
        return _sentence_piece(pieces, config, context_length, clean or own_clean)
    vocabulary = _vocabulary(folder)
    if vocabulary is None:
        raise UsageError(f"{folder} holds no vocab.json, tokenizer.json or spiece.model")
    if vocabulary == _clip_vocabulary():
        return build_tokenizer(
            TokenizerConfig(context_length=context_length, clean=clean or "lower")  # pyright: ignore[reportArgumentType]
        )
    if not (folder / JSON_FILE).is_file():
        raise UsageError(
            f"{folder}: the tokenizer is not CLIP's own and has no {JSON_FILE}, and is not read"
            + (f" (tokenizer_class = {kind})" if kind else "")
        )
    own_clean = "lower" if kind in LOWERING else "whitespace"
    return _json(folder, config, context_length, clean or own_clean)


def write_hf_tokenizer(tokenizer: Tokenizer, folder: Path, *, cleans: bool = False) -> None:
    """Write the files that `transformers.AutoTokenizer` reads.

    Args:
        tokenizer: ours.
        folder: made if need be.
        cleans: whether the reader cleans texts as we do before they meet the tokenizer.

    Raises:
        UsageError: transformers has no class that gives the same ids.
    """
    config = tokenizer.config
    if is_clips_own(tokenizer):
        _write_clip(tokenizer, folder)
        return
    if config.kind == "json":
        _write_json_tokenizer(tokenizer, folder, cleans=cleans)
        return
    if config.kind != "sentencepiece":
        raise UsageError("tokenizer: a trained byte-pair encoding has no form that others read")
    if config.clean != "canonicalize" or config.add_sot or not config.add_eot:
        raise UsageError(
            f'tokenizer.clean = "{config.clean}", add_sot = {str(bool(config.add_sot)).lower()}, '
            f"add_eot = {str(config.add_eot).lower()}: others read SentencePiece models only with "
            '"canonicalize", without start token and with end token'
        )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / PIECES_FILES[0]).write_bytes(tokenizer.definition)
    processor = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.definition)
    _write_json(
        folder / CONFIG_FILE,
        {
            "tokenizer_class": "SiglipTokenizer",
            "model_max_length": tokenizer.context_length,
            "do_lower_case": True,
            "eos_token": processor.id_to_piece(processor.eos_id()),
            "unk_token": processor.id_to_piece(processor.unk_id()),
            "pad_token": processor.id_to_piece(tokenizer.pad_id),
        },
    )


def _json(folder: Path, config: dict[str, Any], context_length: int, clean: str) -> Tokenizer:
    path = folder / JSON_FILE
    if config.get("padding_side", "right") != "right":
        raise UsageError(f"{folder / CONFIG_FILE}: padding_side must be right")
    try:
        model = JsonTokenizer(path.read_bytes())
    except ValueError as error:
        raise UsageError(f"{path} {error}") from error
    pad = config.get("pad_token")
    pad = pad["content"] if isinstance(pad, dict) else pad
    pad_id = model.pad_id if pad is None else model.token_id(pad)
    if pad_id is None:
        raise UsageError(f"{path} has no padding token, and {CONFIG_FILE} names none that it has")
    return build_tokenizer(
        TokenizerConfig(
            kind="json",
            path=str(path.resolve()),
            context_length=context_length,
            clean=clean,  # pyright: ignore[reportArgumentType]
            add_eot=model.eot_id is not None,
            pad_id=pad_id,
        )
    )


def _write_json_tokenizer(tokenizer: Tokenizer, folder: Path, *, cleans: bool) -> None:
    model = JsonTokenizer(tokenizer.definition)
    config = tokenizer.config
    is_template = (config.add_sot is not False or model.sot_id is None) and (
        config.add_eot or model.eot_id is None
    )
    if not is_template or not (cleans or config.clean == "whitespace"):
        raise UsageError(
            f'tokenizer.clean = "{config.clean}": others read a tokenizer.json as it is, with its '
            'own start and end token; use clean = "whitespace"'
        )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / JSON_FILE).write_bytes(tokenizer.definition)
    _write_json(
        folder / CONFIG_FILE,
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": tokenizer.context_length,
            "pad_token": model.token(tokenizer.pad_id),
        },
    )


def _sentence_piece(
    path: Path, config: dict[str, Any], context_length: int, clean: str
) -> Tokenizer:
    try:
        model = SentencePieceModel(path.read_bytes())
    except ValueError as error:
        raise UsageError(f"{path} {error}") from error
    pad = config.get("pad_token") or "</s>"
    pad = pad["content"] if isinstance(pad, dict) else pad
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.serialize())
    pad_id = processor.piece_to_id(pad)
    if processor.id_to_piece(pad_id) != pad:
        raise UsageError(f"{path.parent / CONFIG_FILE}: pad_token = {pad} is no piece of {path}")
    return build_tokenizer(
        TokenizerConfig(
            kind="sentencepiece",
            path=str(path.resolve()),
            context_length=context_length,
            clean=clean,  # pyright: ignore[reportArgumentType]
            pad_id=pad_id,
        )
    )


def _vocabulary(folder: Path) -> dict[str, int] | None:
    if (folder / "vocab.json").is_file():
        return read_json(folder / "vocab.json")
    if (folder / JSON_FILE).is_file():
        model = read_json(folder / JSON_FILE).get("model", {})
        vocabulary = model.get("vocab")
        return vocabulary if isinstance(vocabulary, dict) else {}
    return None


def _clip_model() -> dict[str, Any]:
    return json.loads(ClipBpe().serialize())["model"]


def _clip_vocabulary() -> dict[str, int]:
    vocabulary: dict[str, int] = _clip_model()["vocab"]
    return {SPECIAL.get(word) or word: i for word, i in vocabulary.items()}


def _write_clip(tokenizer: Tokenizer, folder: Path) -> None:
    if tokenizer.config.clean != "lower":
        raise UsageError(
            f'tokenizer.clean = "{tokenizer.config.clean}": transformers\' CLIP lowers its texts'
        )
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "vocab.json", _clip_vocabulary(), indent=None)
    pairs = (pair if isinstance(pair, str) else " ".join(pair) for pair in _clip_model()["merges"])
    replace_file(folder / "merges.txt", "#version: 0.2\n" + "\n".join(pairs) + "\n")
    end = SPECIAL[EOT]
    _write_json(
        folder / CONFIG_FILE,
        {
            "tokenizer_class": "CLIPTokenizer",
            "model_max_length": tokenizer.context_length,
            "do_lower_case": True,
            "bos_token": SPECIAL[SOT],
            "eos_token": end,
            "unk_token": end,
            "pad_token": end,
        },
    )


def _write_json(path: Path, content: dict[str, Any], indent: int | None = 2) -> None:
    replace_file(path, json.dumps(content, indent=indent, ensure_ascii=False) + "\n")
