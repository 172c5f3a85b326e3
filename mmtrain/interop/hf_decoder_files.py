"""Hugging Face's folders of decoders: config.json, weights (sharded too), tokenizer files."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from mmtrain.data.text.codecs import Codec, JsonCodec, SentencePieceCodec
from mmtrain.data.text.far_ids import refuse_far_ids
from mmtrain.data.text.language_tokenizer import LanguageTokenizer
from mmtrain.errors import UsageError
from mmtrain.files import parse_json, replace_file, save_tensors
from mmtrain.interop.canonical import show
from mmtrain.interop.foreign_config import read_json
from mmtrain.interop.hf_clip_files import CONFIG_FILE, WEIGHTS_FILE, read_weights
from mmtrain.interop.hf_decoder import decoder_from_hf, decoder_to_hf
from mmtrain.interop.hf_decoder_config import FAMILIES, Family
from mmtrain.interop.hf_tokenizer_files import TokenizerFiles, json_object, read_files
from mmtrain.interop.package import float_tensors
from mmtrain.interop.tensor_links import Tensors
from mmtrain.models import DecoderConfig

JSON_FILE = "tokenizer.json"
PIECES_FILE = "tokenizer.model"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
TEMPLATE_FILE = "chat_template.jinja"
GENERATION_FILE = "generation_config.json"
QWEN2_PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""What Qwen2 cuts a text into before merging."""
TRAVELLING = (
    CONFIG_FILE, JSON_FILE, PIECES_FILE, TOKENIZER_CONFIG_FILE, TEMPLATE_FILE, GENERATION_FILE,
    "vocab.json", "merges.txt", "added_tokens.json", "special_tokens_map.json",
)  # fmt: skip
"""Files beside the weights; all but config.json are kept as they are."""

_FAR = 1 << 31
"""Beyond any vocabulary."""
_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


@dataclass(frozen=True, kw_only=True)
class DecoderPackage:
    """A decoder with all that it needs to write text."""

    config: DecoderConfig
    """The architecture."""
    tensors: Tensors
    """Every tensor of `Decoder(config).state_dict()`, in fp32."""
    tokenizer: LanguageTokenizer | None
    """Texts to ids and back. None: the folder has none."""
    end_ids: tuple[int, ...]
    """Tokens that end an answer, as the folder names them."""
    family: Family | None = None
    """Which of their models it came as."""
    files: dict[str, bytes]
    """Their config's, tokenizer's and generation's files, by name."""


def is_decoder_folder(folder: Path) -> bool:
    """Whether a folder's config.json is of a decoder that we read."""
    path = folder / CONFIG_FILE
    data = read_json(path) if path.is_file() else None
    return isinstance(data, dict) and data.get("model_type") in FAMILIES


def read_hf_decoder(folder: Path) -> DecoderPackage:
    """The decoder of a folder.

    Raises:
        UsageError: a file is missing or damaged, or the model is none that we can compute.
    """
    source = folder / CONFIG_FILE
    data = read_json(source)
    config, tensors = decoder_from_hf(data, read_weights(folder), source=str(source))
    files = {n: (folder / n).read_bytes() for n in TRAVELLING if (folder / n).is_file()}
    end_ids = _end_ids(folder, data)
    tokenizer = read_folder_tokenizer(folder)
    if tokenizer is not None and tokenizer.vocab_size > config.vocab_size:
        raise UsageError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} ids, but the model's vocab_size = "
            f"{config.vocab_size}"
        )
    return DecoderPackage(
        config=config,
        tensors=float_tensors(tensors),
        tokenizer=tokenizer,
        end_ids=end_ids or (),
        family=data["model_type"],
        files=files,
    )


def write_hf_decoder(package: DecoderPackage, folder: Path) -> None:
    """Write a folder that `AutoModelForCausalLM.from_pretrained` loads.

    Raises:
        UsageError: transformers has no such model, naming the fields.
    """
    data, tensors = decoder_to_hf(package.config, package.tensors, family=package.family)
    if package.end_ids:
        data["eos_token_id"] = (
            package.end_ids[0] if len(package.end_ids) == 1 else [*package.end_ids]
        )
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(folder / WEIGHTS_FILE, tensors)
    for name, content in package.files.items():
        if name == CONFIG_FILE:
            began_as = parse_json(content)
            kept = {name: began_as.get(name) for name in _TOKEN_IDS}
            data = {name: token for name, token in kept.items() if token is not None} | data
        else:
            replace_file(folder / name, content)
    replace_file(folder / CONFIG_FILE, json.dumps(data, indent=2) + "\n")


def read_folder_tokenizer(folder: Path) -> LanguageTokenizer | None:
    """A decoder's tokenizer, with the end tokens that its folder's configs name.

    Raises:
        UsageError: a file is missing or damaged.
    """
    return read_tokenizer(folder, end_ids=_end_ids(folder, read_json(folder / CONFIG_FILE)))


def _end_ids(folder: Path, config: dict[str, Any]) -> tuple[int, ...] | None:
    """The ids that generation_config.json names, else config.json; None: neither does.

    Raises:
        UsageError: one is no token's id.
    """
    path = folder / GENERATION_FILE
    generation = json_object(path) if path.is_file() else {}
    for file, said in ((path, generation), (folder / CONFIG_FILE, config)):
        if (found := said.get("eos_token_id")) is None:
            continue
        ids = found if isinstance(found, list) else [found]
        if not all(type(one) is int and 0 <= one < _FAR for one in ids):
            told = show(found)
            raise UsageError(f"{file}: eos_token_id = {told} must be an id or a list of ids")
        return tuple(ids)
    return None


def read_tokenizer(
    folder: Path, *, end_ids: tuple[int, ...] | None = None
) -> LanguageTokenizer | None:
    """The tokenizer of a folder: tokenizer.json, tokenizer.model, or vocab.json and merges.txt.

    Args:
        folder: holds the files.
        end_ids: tokens that end an answer. None: the end token that the folder names.

    Raises:
        UsageError: a file is damaged.
    """
    path = folder / TOKENIZER_CONFIG_FILE
    config = json_object(path) if path.is_file() else {}
    special = folder / "special_tokens_map.json"
    names = (json_object(special) if special.is_file() else {}) | config
    codec = _codec(folder, config)
    if codec is None:
        return None
    source, template = _template(folder, config)
    try:
        return LanguageTokenizer(
            codec,
            special_tokens=_special_tokens(names),
            chat_template=template,
            end_ids=end_ids,
        )
    except UsageError as error:  # of the template, which is compiled
        raise UsageError(f"{source}: {error}") from error


def _codec(folder: Path, config: dict[str, Any]) -> Codec | None:
    path = folder / JSON_FILE
    try:
        if path.is_file():
            JsonCodec(path.read_bytes())  # says what is wrong with the file
        files = read_files(folder)
        if path.is_file():
            rust = Tokenizer.from_str(path.read_text(encoding="utf-8"))
            return JsonCodec(_with_added(rust, files))
        path = folder / PIECES_FILE
        if path.is_file():
            return SentencePieceCodec(
                path.read_bytes(),
                add_bos=config.get("add_bos_token", True),
                add_eos=config.get("add_eos_token", False),
                added={token.content: number for number, token in files.added.items()},
                hidden=[token.content for token in files.added.values() if token.special],
            )
        path = folder / "vocab.json"
        if path.is_file() and (folder / "merges.txt").is_file():
            return JsonCodec(_with_added(_byte_level(folder, files), files))
    except ValueError as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"{path} {error}") from error
    return None


def _byte_level(folder: Path, files: TokenizerFiles) -> Tokenizer:
    """GPT-2's or Qwen2's byte-pair encoding from its two files, without added tokens."""
    model = models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    tokenizer = Tokenizer(model)
    path = folder / CONFIG_FILE
    kind = read_json(path).get("model_type") if path.is_file() else None
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if kind == "qwen2" or files.kind == "Qwen2Tokenizer":
        tokenizer.normalizer = normalizers.NFC()  # pyright: ignore[reportAttributeAccessIssue]
        bytes_ = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(QWEN2_PIECES), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    tokenizer.pre_tokenizer = bytes_  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    if "<|endoftext|>" not in {token.content for token in files.added.values()}:
        tokenizer.add_special_tokens(["<|endoftext|>"])
    return tokenizer


def _with_added(rust: Tokenizer, files: TokenizerFiles) -> bytes:
    """A tokenizer.json with the added tokens that other files of the folder name."""
    there = {token.content for token in rust.get_added_tokens_decoder().values()}
    rust.add_tokens([one for _, one in sorted(files.added.items()) if one.content not in there])
    for number, token in files.added.items():
        if (own := rust.token_to_id(token.content)) != number:
            raise UsageError(
                f"{files.folder}: the added token {token.content} is {number} in one file and "
                f"{own} by the others"
            )
    refuse_far_ids(rust)
    return rust.to_str().encode()


def _special_tokens(config: dict[str, Any]) -> dict[str, str]:
    named = {name: value for name, value in config.items() if name.endswith("_token")}
    contents = {n: v.get("content") if isinstance(v, dict) else v for n, v in named.items()}
    return {name: value for name, value in contents.items() if isinstance(value, str)}


def _template(folder: Path, config: dict[str, Any]) -> tuple[Path, str | None]:
    """Of a file of its own, or in the tokenizer's config: one, or `default` among named ones ->
    the file, the template.

    Raises:
        UsageError: it is no text, or no named one is the default.
    """
    path = folder / TEMPLATE_FILE
    if path.is_file():
        try:
            return path, path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise UsageError(f"{path}: chat template: {error}") from error
    path, found = folder / TOKENIZER_CONFIG_FILE, config.get("chat_template")
    if found is None or isinstance(found, str):
        return path, found
    is_list = isinstance(found, list) and all(isinstance(one, dict) for one in found)
    named = {str(one.get("name")): one.get("template") for one in found} if is_list else {}
    if not is_list or not all(isinstance(one, str) for one in named.values()):
        raise UsageError(f"{path}: chat_template must be a text, or a list of named ones")
    if named and "default" not in named:
        raise UsageError(
            f"{path}: of its chat templates ({', '.join(named)}) none is named default; name the "
            f"one that is meant so, or write it to {TEMPLATE_FILE}"
        )
    return path, named.get("default")
