"""Tokenizer files as transformers reads them: a folder's ids are those that it gives.

Byte-pair encodings, word pieces and unigrams of the `tokenizers` library as the folder's class
builds them, and SigLIP's SentencePiece models (spiece.model). Nothing is done to a text first.
"""

from pathlib import Path

from mmtrain.data.text.far_ids import refuse_far_ids
from mmtrain.data.text.json_tokenizer import JsonTokenizer
from mmtrain.data.text.sentence_piece import load_processor
from mmtrain.data.text.siglip_pieces import AddedPiece, SiglipPieces, define
from mmtrain.data.text.tokenizer import Tokenizer, TokenizerConfig, TokenModel
from mmtrain.errors import UsageError
from mmtrain.interop.hf_tokenizer_class import NOTHING, build_backend
from mmtrain.interop.hf_tokenizer_files import (
    CONFIG_FILE,
    JSON_FILE,
    TokenizerFiles,
    content_of,
    read_files,
)

PIECES_FILES = ("spiece.model", "sentencepiece.model")


def read_hf_tokenizer(folder: Path, *, context_length: int, clean: str | None = None) -> Tokenizer:
    """The tokenizer of a folder.

    Args:
        folder: holds the files.
        context_length: tokens at most.
        clean: what is done to a text first; None leaves it as it is.

    Raises:
        UsageError: there is no tokenizer, or none that gives the same ids here.
    """
    files = read_files(folder)
    model, pad_id = _siglip(files) if files.kind == "SiglipTokenizer" else _backend(files)
    if pad_id is None:
        raise UsageError(
            f"{folder}: the tokenizer has no padding token; name one as pad_token in {CONFIG_FILE}"
        )
    config = TokenizerConfig(
        kind="siglip" if isinstance(model, SiglipPieces) else "json",
        path=model.file_name,
        context_length=context_length,
        clean=clean or "none",  # pyright: ignore[reportArgumentType]
        add_eot=model.eot_id is not None,
        pad_id=pad_id,
    )
    return Tokenizer(config, model)


def _backend(files: TokenizerFiles) -> tuple[TokenModel, int | None]:
    rust, pad_id = build_backend(files)
    try:
        refuse_far_ids(rust)
    except ValueError as error:
        raise UsageError(f"{files.folder}: its tokenizer {error}") from error
    try:
        return JsonTokenizer(rust.to_str().encode()), pad_id
    except ValueError as error:
        raise UsageError(f"{files.folder / JSON_FILE} {error}") from error


def _siglip(files: TokenizerFiles) -> tuple[TokenModel, int | None]:
    folder, config = files.folder, files.config
    path = next((folder / name for name in PIECES_FILES if (folder / name).is_file()), None)
    if path is None:
        raise UsageError(
            f"{NOTHING.format(folder=folder)}: SiglipTokenizer needs {PIECES_FILES[0]}"
        )
    if config.get("sp_model_kwargs") or config.get("legacy") is False:
        raise UsageError(f"{folder / CONFIG_FILE}: sp_model_kwargs and legacy = false are not read")
    try:
        processor = load_processor(path.read_bytes())
    except ValueError as error:
        raise UsageError(f"{path} {error}") from error
    named = files.named(eos="</s>", unk="<unk>", pad="</s>")
    added = {
        number: AddedPiece(
            content=token.content,
            id=number,
            lstrip=token.lstrip,
            rstrip=token.rstrip,
            single_word=token.single_word,
            special=token.special,
        )
        for number, token in files.added.items()
    }
    contents = {piece.content for piece in added.values()}
    for token in [*named.values(), *files.extra]:
        content = content_of(token)
        if token is None or content in contents:
            continue
        number = processor.piece_to_id(content)
        if processor.id_to_piece(number) != content:
            raise UsageError(f"{folder / CONFIG_FILE}: the token {content} is no piece of {path}")
        added[number] = AddedPiece(content=content, id=number)
    ids = {piece.content: piece.id for piece in added.values()}
    pad_id = ids.get(content_of(named["pad_token"]))
    definition = define(
        path.read_bytes(),
        added=list(added.values()),
        unk=content_of(named["unk_token"]),
        eos=content_of(named["eos_token"]),
        lower=bool(config.get("do_lower_case", True)),
    )
    try:
        return SiglipPieces(definition), pad_id
    except ValueError as error:
        raise UsageError(f"{path} {error}") from error
