"""Tokenizer files that transformers reads, from the tokenizers that it can compute."""

import json
from pathlib import Path
from typing import Any

import sentencepiece

from mmtrain.data.text.clip_bpe import EOT, SOT, ClipBpe
from mmtrain.data.text.json_tokenizer import JsonTokenizer
from mmtrain.data.text.siglip_pieces import SiglipPieces
from mmtrain.data.text.tokenizer import Tokenizer
from mmtrain.errors import UsageError
from mmtrain.files import replace_file
from mmtrain.interop.hf_tokenizer import PIECES_FILES
from mmtrain.interop.hf_tokenizer_class import SPECIAL, clip_backend, clip_words
from mmtrain.interop.hf_tokenizer_files import CONFIG_FILE, JSON_FILE

Written = tuple[dict[str, bytes], dict[str, Any]]
"""Files by name, and what the config says of them."""


def is_clips_own(tokenizer: Tokenizer) -> bool:
    """Whether it is CLIP's published byte-pair encoding, as open_clip applies it."""
    return tokenizer.config.kind == "clip" and tokenizer.definition == ClipBpe().serialize()


def has_clips_words(tokenizer: Tokenizer) -> bool:
    """Whether it is CLIP's published byte-pair encoding, as transformers' CLIPTokenizer applies it,
    without tokens of its own."""
    if tokenizer.config.kind != "json":
        return False
    content = json.loads(tokenizer.definition)
    words, _ = clip_words()
    own = content["model"].get("vocab") == words and tokenizer.vocab_size == len(words)
    return own and _is_clip_class(content)


def write_hf_tokenizer(
    tokenizer: Tokenizer, folder: Path, *, cleans: bool = False, masks: bool = True
) -> None:
    """Write the files that `transformers.AutoTokenizer` reads.

    Args:
        tokenizer: ours.
        folder: made if need be.
        cleans: whether the reader cleans texts as we do before they meet the tokenizer.
        masks: whether a processor makes a mask of the padding; SigLIP was trained to see it.

    Raises:
        UsageError: transformers has no class that gives the same ids.
    """
    if is_clips_own(tokenizer):
        files, fields = _clip(tokenizer)
    elif tokenizer.config.kind == "json":
        files, fields = _backend(tokenizer, cleans=cleans)
    elif tokenizer.config.kind == "siglip":
        files, fields = _siglip(tokenizer)
    elif tokenizer.config.kind == "sentencepiece":
        files, fields = _pieces(tokenizer)
    else:
        raise UsageError("tokenizer: a trained byte-pair encoding has no form that others read")
    config = {
        "model_max_length": tokenizer.context_length,
        "padding_side": "right",
        "model_input_names": ["input_ids", "attention_mask"] if masks else ["input_ids"],
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        replace_file(folder / name, content)
    replace_file(folder / CONFIG_FILE, json.dumps(config | fields, indent=2, ensure_ascii=False))


def _pieces(tokenizer: Tokenizer) -> Written:
    config = tokenizer.config
    if config.clean != "canonicalize" or config.add_sot or not config.add_eot:
        raise UsageError(
            f'tokenizer.clean = "{config.clean}", add_sot = {str(bool(config.add_sot)).lower()}, '
            f"add_eot = {str(config.add_eot).lower()}: others read SentencePiece models only with "
            '"canonicalize", without start token and with end token'
        )
    processor = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.definition)
    return {PIECES_FILES[0]: tokenizer.definition}, {
        "tokenizer_class": "SiglipTokenizer",
        "do_lower_case": True,
        "eos_token": processor.id_to_piece(processor.eos_id()),
        "unk_token": processor.id_to_piece(processor.unk_id()),
        "pad_token": processor.id_to_piece(tokenizer.pad_id),
    }


def _siglip(tokenizer: Tokenizer) -> Written:
    content = json.loads(tokenizer.definition)
    added = {piece.pop("id"): piece | {"normalized": False} for piece in content["added"]}
    return {PIECES_FILES[0]: SiglipPieces(tokenizer.definition).model}, {
        "tokenizer_class": "SiglipTokenizer",
        "do_lower_case": content["lower"],
        "eos_token": content["eos"],
        "unk_token": content["unk"],
        "pad_token": added[tokenizer.pad_id]["content"],
        "added_tokens_decoder": {str(number): piece for number, piece in added.items()},
    }


def _backend(tokenizer: Tokenizer, *, cleans: bool) -> Written:
    model = JsonTokenizer(tokenizer.definition)
    config, content = tokenizer.config, json.loads(tokenizer.definition)
    is_template = (config.add_sot is not False or model.sot_id is None) and (
        config.add_eot or model.eot_id is None
    )
    if not is_template or not (cleans or config.clean in ("none", "whitespace")):
        raise UsageError(
            f'tokenizer.clean = "{config.clean}": others read a tokenizer.json as it is, with its '
            'own start and end token; use clean = "none"'
        )
    pad = model.token(tokenizer.pad_id)
    if not _is_clip_class(content):
        fields = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": pad}
        return {JSON_FILE: tokenizer.definition}, fields
    added = {str(token.pop("id")): token for token in content["added_tokens"]}
    return _words(content["model"]), {
        "tokenizer_class": "CLIPTokenizer",
        "bos_token": content["post_processor"]["cls"][0],
        "eos_token": content["post_processor"]["sep"][0],
        "unk_token": content["model"]["unk_token"],
        "pad_token": pad,
        "added_tokens_decoder": added,
    }


def _is_clip_class(content: dict[str, Any]) -> bool:
    """Whether a tokenizer.json is what CLIPTokenizer builds of its words."""
    parts = json.loads(clip_backend({}, [], unk="").to_str())
    same = all(content.get(key) == parts[key] for key in ("normalizer", "pre_tokenizer"))
    return same and (content.get("post_processor") or {}).get("type") == "RobertaProcessing"


def _clip(tokenizer: Tokenizer) -> Written:
    if tokenizer.config.clean != "lower":
        raise UsageError(
            f'tokenizer.clean = "{tokenizer.config.clean}": transformers\' CLIP lowers its texts'
        )
    end = SPECIAL[EOT]
    words, merges = clip_words()
    return _words({"vocab": words, "merges": merges}), {
        "tokenizer_class": "CLIPTokenizer",
        "do_lower_case": True,
        "bos_token": SPECIAL[SOT],
        "eos_token": end,
        "unk_token": end,
        "pad_token": end,
    }


def _words(model: dict[str, Any]) -> dict[str, bytes]:
    """vocab.json and merges.txt of a byte-pair encoding."""
    pairs = (pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"])
    merges = "#version: 0.2\n" + "\n".join(pairs) + "\n"
    words = json.dumps(model["vocab"], ensure_ascii=False)
    return {"vocab.json": words.encode(), "merges.txt": merges.encode()}
