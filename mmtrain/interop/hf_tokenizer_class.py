"""The tokenizers that transformers' classes build from a folder's files.

From version 5 on most classes bring normaliser and pre-tokenizer themselves and take from
tokenizer.json the vocabulary alone; only the plain ones take that file as it is.
https://github.com/huggingface/transformers: tokenization_utils_tokenizers.py and models/*.
"""

import base64
import functools
import json
from collections.abc import Callable, Iterable
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from mmtrain.data.text.clip_bpe import EOT, SOT, ClipBpe
from mmtrain.errors import UsageError
from mmtrain.interop.foreign_config import read_json
from mmtrain.interop.hf_tokenizer_files import (
    CONFIG_FILE,
    JSON_FILE,
    Token,
    TokenizerFiles,
    content_of,
    json_object,
)

PLAIN = ("PreTrainedTokenizer", "TokenizersBackend", "PythonBackend", "")
"""Classes that take tokenizer.json as it is. `Fast` at a class's end says nothing."""
LEFT = ("Siglip2Tokenizer", "GemmaTokenizer")
"""Classes that pad on the left unless the folder says otherwise."""
SPECIAL = {SOT: "<|startoftext|>", EOT: "<|endoftext|>"}
"""The names of CLIP's special tokens in transformers' files."""
NOTHING = "{folder} holds no vocab.json, tokenizer.json or spiece.model"


def build_backend(files: TokenizerFiles) -> tuple[Tokenizer, int | None]:
    """The tokenizer that the folder's class builds, and the id of its padding token.

    Raises:
        UsageError: the class is none that we can build, or a file is missing or damaged.
    """
    build = _plain if files.kind in PLAIN else _BUILDERS.get(files.kind)
    if build is None:
        raise UsageError(
            f"{files.folder / CONFIG_FILE}: tokenizer_class = {files.kind} is not read; we read "
            f"{', '.join(('SiglipTokenizer', *_BUILDERS))} and PreTrainedTokenizerFast, as which "
            "any other with a tokenizer.json can be saved"
        )
    try:
        rust, pad = build(files)
    except UsageError:
        raise
    except Exception as error:  # the library raises nothing more precise
        line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(f"{files.folder}: its tokenizer cannot be built: {line}") from error
    _right_side(files, rust)
    return rust, None if pad is None else rust.token_to_id(content_of(pad))


def _right_side(files: TokenizerFiles, rust: Tokenizer) -> None:
    standard = "left" if files.kind in LEFT else "right"
    padding, truncation = rust.padding or {}, rust.truncation or {}
    for key, value in (
        ("padding_side", files.config.get("padding_side") or padding.get("direction") or standard),
        ("truncation_side", files.config.get("truncation_side") or truncation.get("direction")),
    ):
        if value == "left":
            said = (
                f"tokenizer_class = {files.kind} without {key}"
                if key not in files.config
                else (f"{key} = left")
            )
            raise UsageError(
                f"{files.folder / CONFIG_FILE}: {said} cuts or fills texts on the left; we read "
                f'{key} = "right"'
            )


def _add_tokens(rust: Tokenizer, files: TokenizerFiles, named: Iterable[Token | None]) -> None:
    """Added and special tokens that the backend has not, in transformers' order: ids that are not
    in the vocabulary follow from the order, not from what the folder wrote."""
    there = rust.get_added_tokens_decoder().values()
    known = {repr(token) for token in there}
    tokens: list[Token] = [t for _, t in sorted(files.added.items()) if repr(t) not in known]
    contents = {token.content for token in there} | {content_of(token) for token in tokens}
    named = [token for token in named if token]
    for token in [*named, *files.extra]:
        # A token may come twice, as an end and an unknown token: the flags of the last count.
        if content_of(token) not in contents and token not in tokens:
            tokens.append(token)
    specials = {content_of(token) for token in named}
    made = [AddedToken(one, special=True) if isinstance(one, str) else one for one in tokens]
    for token in made:
        token.special = token.special or token.content in specials
    rust.add_tokens(made)


def _with_id(rust: Tokenizer, token: Token | None) -> tuple[str, int]:
    content = content_of(token)
    number = rust.token_to_id(content)
    if number is None:
        raise UsageError(f"the tokenizer has no {content}, which stands around its texts")
    return content, number


def _vocabulary(files: TokenizerFiles) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Of a byte-pair encoding: the ids, and the merges in order."""
    folder = files.folder
    if (folder / JSON_FILE).is_file():
        model = json_object(folder / JSON_FILE).get("model") or {}
        vocabulary, merges = model.get("vocab"), model.get("merges")
        if not isinstance(vocabulary, dict) or not isinstance(merges, list):
            raise UsageError(
                f"{folder / JSON_FILE} is no byte-pair encoding, as {files.kind} needs one"
            )
        return vocabulary, _pairs(merges)
    words, merges = folder / "vocab.json", folder / "merges.txt"
    if not words.is_file():
        raise UsageError(NOTHING.format(folder=folder))
    own, pairs = clip_words()
    if not merges.is_file():
        if read_json(words) != own:  # of which the merges follow
            raise UsageError(f"{words} is not CLIP's own, and there is no merges.txt beside it")
        return own, pairs
    vocabulary, found = models.BPE.read_file(str(words), str(merges))
    if vocabulary == own and found != pairs:
        raise UsageError(
            f"{merges} has {len(found):,} merges that are not the {len(pairs):,} of CLIP's own "
            f"words, which {words.name} holds: it is cut or of another model"
        )
    return vocabulary, found


@functools.cache
def clip_words() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Ids and merges of CLIP's published byte-pair encoding, as transformers spells them."""
    model = json.loads(ClipBpe().serialize())["model"]
    words = {SPECIAL.get(word) or word: number for word, number in model["vocab"].items()}
    return words, _pairs(model["merges"])


def _pairs(merges: list[Any]) -> list[tuple[str, str]]:
    split = (merge.split(" ") if isinstance(merge, str) else merge for merge in merges)
    return [(left, right) for left, right in split]


CLIP_PIECES = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)


def clip_backend(vocabulary: dict[str, int], merges: Any, *, unk: str) -> Tokenizer:
    """CLIPTokenizer's parts, without special tokens and template."""
    model = models.BPE(
        vocab=vocabulary,
        merges=merges,
        continuing_subword_prefix="",
        end_of_word_suffix="</w>",
        fuse_unk=False,
        unk_token=unk,
    )
    rust = Tokenizer(model)
    rust.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    rust.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(CLIP_PIECES), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    # transformers writes spaces for the ends of words after decoding; here the file says it.
    rust.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace("</w>", " ")])
    return rust


def _clip(files: TokenizerFiles) -> tuple[Tokenizer, Token | None]:
    end = "<|endoftext|>"
    named = files.named(bos="<|startoftext|>", eos=end, unk=end, pad=end)
    vocabulary, merges = _vocabulary(files)
    rust = clip_backend(vocabulary, merges, unk=content_of(named["unk_token"]))
    _add_tokens(rust, files, named.values())
    end, start = (_with_id(rust, named[key]) for key in ("eos_token", "bos_token"))
    rust.post_processor = processors.RobertaProcessing(
        end, start, trim_offsets=False, add_prefix_space=False
    )
    return rust, named["pad_token"]


def _gemma(files: TokenizerFiles) -> tuple[Tokenizer, Token | None]:
    if not (files.folder / JSON_FILE).is_file():
        raise UsageError(f"{files.folder} holds no {JSON_FILE}, which {files.kind} needs")
    named = files.named(bos="<bos>", eos="<eos>", unk="<unk>", pad="<pad>", mask="<mask>")
    vocabulary, merges = _vocabulary(files)
    rust = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=merges,
            fuse_unk=True,
            unk_token=content_of(named["unk_token"]),
            byte_fallback=True,
        )
    )
    spaces = normalizers.Replace(" ", "\u2581")
    lowers = files.kind == "Siglip2Tokenizer"
    rust.normalizer = normalizers.Sequence([normalizers.Lowercase(), spaces]) if lowers else spaces
    rust.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous")
    rust.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    _take_from_file(rust, files)
    _add_tokens(rust, files, named.values())
    return rust, named["pad_token"]


def _t5(files: TokenizerFiles) -> tuple[Tokenizer, Token | None]:
    path = files.folder / JSON_FILE
    content = json_object(path) if path.is_file() else {}
    pieces = (content.get("model") or {}).get("vocab")
    if not isinstance(pieces, list):
        raise UsageError(
            f"{files.folder} holds no {JSON_FILE} with pieces, which T5Tokenizer needs"
        )
    named = files.named(eos="</s>", unk="<unk>", pad="<pad>")
    rust = Tokenizer(models.Unigram([tuple(piece) for piece in pieces], unk_id=2))
    charsmap = _charsmap(content.get("normalizer"))
    if charsmap is not None:
        rust.normalizer = normalizers.Precompiled(charsmap)
    metaspace = {"replacement": "\u2581", "prepend_scheme": "always", "split": True}
    rust.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(**metaspace)]
    )
    rust.decoder = decoders.Metaspace(**metaspace)
    _take_from_file(rust, files)
    extra = [f"<extra_id_{i}>" for i in range(files.config.get("extra_ids", 100))]
    has_extra = (
        "extra_special_tokens" in files.config or "additional_special_tokens" in files.config
    )
    _add_tokens(rust, files, [*named.values(), *([] if has_extra else extra)])
    rust.post_processor = processors.TemplateProcessing(
        single=["$A", "</s>"],
        pair=["$A", "</s>", "$B", "</s>"],
        special_tokens=[("</s>", _with_id(rust, named["eos_token"])[1])],
    )
    return rust, named["pad_token"]


def _charsmap(normalizer: dict[str, Any] | None) -> bytes | None:
    parts = normalizer or {}
    for part in parts.get("normalizers", [parts]):
        if part.get("type") == "Precompiled":
            return base64.b64decode(part["precompiled_charsmap"])
    return None


def _bert(files: TokenizerFiles) -> tuple[Tokenizer, Token | None]:
    path = files.folder / JSON_FILE
    vocabulary = (json_object(path).get("model") or {}).get("vocab") if path.is_file() else None
    if vocabulary is None and (files.folder / "vocab.txt").is_file():
        lines = (files.folder / "vocab.txt").read_text(encoding="utf-8").split("\n")
        vocabulary = {
            word: number for number, word in enumerate(lines) if word or number < len(lines) - 1
        }
    if not isinstance(vocabulary, dict):
        raise UsageError(f"{files.folder} holds no {JSON_FILE} with words, nor vocab.txt")
    named = files.named(unk="[UNK]", sep="[SEP]", pad="[PAD]", cls="[CLS]", mask="[MASK]")
    rust = Tokenizer(models.WordPiece(vocabulary, unk_token=content_of(named["unk_token"])))
    rust.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=files.config.get("tokenize_chinese_chars", True),
        strip_accents=files.config.get("strip_accents"),
        lowercase=files.config.get("do_lower_case", True),
    )
    rust.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    rust.decoder = decoders.WordPiece(prefix="##")
    _add_tokens(rust, files, named.values())
    start, end = content_of(named["cls_token"]), content_of(named["sep_token"])
    rust.post_processor = processors.TemplateProcessing(
        single=f"{start}:0 $A:0 {end}:0",
        pair=f"{start}:0 $A:0 {end}:0 $B:1 {end}:1",
        special_tokens=[_with_id(rust, word) for word in (start, end)],
    )
    return rust, named["pad_token"]


def _plain(files: TokenizerFiles) -> tuple[Tokenizer, Token | None]:
    path = files.folder / JSON_FILE
    if not path.is_file():
        raise UsageError(NOTHING.format(folder=files.folder))
    try:
        rust = Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # the library raises nothing more precise
        raise UsageError(f"{path} is not a tokenizer.json ({error})") from error
    standard = {} if rust.padding is None else {"pad": rust.padding["pad_token"]}
    named = files.named(**standard)
    _add_tokens(rust, files, named.values())
    return rust, named["pad_token"]


def _as_written(files: TokenizerFiles) -> tuple[Tokenizer, Token | None]:
    """tokenizer.json as it is, of classes that make the same of their own files."""
    rust, pad = _plain(files)
    return rust, pad or ("<pad>" if rust.token_to_id("<pad>") is not None else None)


def _take_from_file(rust: Tokenizer, files: TokenizerFiles) -> None:
    """The template, and how it pads, of tokenizer.json."""
    content = json_object(files.folder / JSON_FILE)
    model = dict(content["model"])
    if model.get("type") != "Unigram":
        model |= {"vocab": {}} | ({"merges": []} if "merges" in model else {})
    bare = Tokenizer.from_str(json.dumps(content | {"model": model, "added_tokens": []}))
    if bare.post_processor is not None:
        rust.post_processor = bare.post_processor
    if bare.padding is not None:
        rust.enable_padding(**bare.padding)
    if bare.truncation is not None:
        rust.enable_truncation(**bare.truncation)


_BUILDERS: dict[str, Callable[[TokenizerFiles], tuple[Tokenizer, Token | None]]] = {
    "CLIPTokenizer": _clip,
    "Siglip2Tokenizer": _gemma,
    "GemmaTokenizer": _gemma,
    "T5Tokenizer": _t5,
    "BertTokenizer": _bert,
    "RobertaTokenizer": _as_written,
    "XLMRobertaTokenizer": _as_written,
    "NllbTokenizer": _as_written,
}
