"""Tokenizer folders in Hugging Face's form, trained here, and texts that try them."""

import functools
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import (
    AddedToken,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from tokenizers import Tokenizer as Rust

from mmtrain.data.text.tokenizer import TokenizerConfig, build_tokenizer
from mmtrain.interop.hf_tokenizer_writing import write_hf_tokenizer
from tests.data.text.test_tokenizer import EMOJI, WORDS, diverse_texts

CORPUS = [" ".join(WORDS[i:] + EMOJI) for i in range(len(WORDS))] * 3
SPACES = [
    " ",
    "  ",
    "\n",
    "\r\n",
    "\t",
    " \n\n ",
    "\u00a0",
    "\u2028",
    "\u3000",
    "\x0b",
    "",
    "\u2581",
]


def fuzzed(num: int, tokens: Sequence[str], seed: int = 0) -> list[str]:
    """`num` texts: words, marks, entities, controls and spaces of every kind, `tokens` among them.

    A lone surrogate, which no tokenizer of theirs takes, is the replacement character.
    """
    rng = random.Random(seed)
    texts = list(_plain_texts(num))
    pool = [
        *tokens,
        *tokens,
        *(t.upper() for t in tokens),
        *WORDS,
        *EMOJI,
        "it\u2019s",
        "&amp;",
        "e\u0301",
    ]
    for place in range(1, len(texts), 2):
        words = rng.choices(pool, k=rng.randint(0, 14))
        texts[place] = "".join(rng.choice(SPACES) + word for word in words) + rng.choice(SPACES)
    return texts


@functools.cache
def _plain_texts(num: int) -> list[str]:
    texts = (
        t.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for t in diverse_texts(num)
    )
    # One of 100 KB will do.
    return ["word " * 20_000, *(text for text in texts if len(text) < 5_000)]


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def change(path: Path, **fields: Any) -> None:
    """Lay fields over a JSON file; None takes one away."""
    content = json.loads(path.read_text(encoding="utf-8")) | fields
    write_json(path, {key: value for key, value in content.items() if value is not None})


def token(content: str, **flags: bool) -> dict[str, Any]:
    plain = dict.fromkeys(("lstrip", "rstrip", "single_word", "normalized", "special"), False)
    return {"content": content} | plain | flags


def clip_slow(folder: Path) -> None:
    """vocab.json and merges.txt, as the first CLIP folders."""
    write_hf_tokenizer(build_tokenizer(TokenizerConfig()), folder)
    write_json(folder / "config.json", {"model_type": "clip"})


def clip_bare(folder: Path) -> None:
    """Nothing but the words and the model's type."""
    clip_slow(folder)
    (folder / "tokenizer_config.json").unlink()


def clip_saved(folder: Path) -> None:
    """As transformers saves it again, in one tokenizer.json."""
    from transformers import AutoTokenizer

    clip_slow(folder)
    AutoTokenizer.from_pretrained(folder).save_pretrained(folder)
    for name in ("vocab.json", "merges.txt"):
        (folder / name).unlink(missing_ok=True)


def clip_added(folder: Path) -> None:
    """Tokens added by added_tokens_decoder, with all flags."""
    clip_slow(folder)
    added = {
        "49406": token("<|startoftext|>", normalized=True, special=True),
        "49407": token("<|endoftext|>", special=True),
        "49408": token("<cat>", lstrip=True, special=True),
        "49409": token("[Dog]", rstrip=True),
        "49410": token("Tree", normalized=True),
        "49411": token("sun", single_word=True),
    }
    change(folder / "tokenizer_config.json", added_tokens_decoder=added)


def clip_legacy(folder: Path) -> None:
    """added_tokens.json and special_tokens_map.json, as older files have them."""
    clip_slow(folder)
    change(folder / "tokenizer_config.json", pad_token=None)
    write_json(folder / "added_tokens.json", {"<cat>": 49408, "Dog": 49409})
    end = token("<|endoftext|>", normalized=True)
    del end["special"]
    special = {"pad_token": "!", "eos_token": end, "additional_special_tokens": ["<cat>"]}
    write_json(folder / "special_tokens_map.json", special)


def _gemma_json(folder: Path, *, lowers: bool = False) -> None:
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{b:02X}>" for b in range(256))]
    rust = Rust(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    spaces = normalizers.Replace(" ", "\u2581")
    rust.normalizer = normalizers.Sequence([normalizers.Lowercase(), spaces]) if lowers else spaces
    rust.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous")
    rust.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.Fuse()])
    rust.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=900, special_tokens=special))
    rust.post_processor = processors.TemplateProcessing(
        single="$A:0 <eos>:0", pair="$A:0 $B:1 <eos>:1", special_tokens=[("<eos>", 1)]
    )
    folder.mkdir()
    rust.save(str(folder / "tokenizer.json"))
    content = json.loads((folder / "tokenizer.json").read_text())
    # The bytes are words of the model, not tokens that texts may spell.
    content["added_tokens"] = content["added_tokens"][:5]
    content["added_tokens"].append(
        {"id": max(content["model"]["vocab"].values()) + 1} | token("\n\n")
    )
    write_json(folder / "tokenizer.json", content)


def siglip2(folder: Path) -> None:
    """SigLIP 2 by its model's type; the folder names Gemma's class, as the published do."""
    _gemma_json(folder)
    write_json(folder / "config.json", {"model_type": "siglip2"})
    config = {"tokenizer_class": "GemmaTokenizer", "padding_side": "right", "add_eos_token": True}
    write_json(folder / "tokenizer_config.json", config | {"pad_token": "<pad>"})


def siglip2_fixed(folder: Path) -> None:
    """The published of fixed resolution are of type siglip."""
    siglip2(folder)
    write_json(folder / "config.json", {"model_type": "siglip"})
    change(
        folder / "tokenizer_config.json", tokenizer_class="GemmaTokenizerFast", do_lower_case=True
    )


def siglip2_own(folder: Path) -> None:
    siglip2_fixed(folder)
    change(folder / "tokenizer_config.json", tokenizer_class="Siglip2Tokenizer")


def siglip(folder: Path) -> None:
    """SigLIP 1: spiece.model, its special tokens stripping the spaces around."""
    folder.mkdir()
    lines = iter(CORPUS)
    with (folder / "spiece.model").open("wb") as model:
        sentencepiece.SentencePieceTrainer.Train(
            sentence_iterator=lines, model_writer=model, vocab_size=400, pad_id=0, eos_id=1,
            unk_id=2, bos_id=-1, hard_vocab_limit=False, character_coverage=0.99, minloglevel=2,
        )  # fmt: skip
    write_json(folder / "config.json", {"model_type": "siglip"})
    config = {
        "tokenizer_class": "SiglipTokenizer", "do_lower_case": True, "model_max_length": 64,
        "eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>", "sp_model_kwargs": {},
        "additional_special_tokens": [], "model_input_names": ["input_ids"],
        "added_tokens_decoder": {
            "1": token("</s>", lstrip=True, rstrip=True, special=True),
            "2": token("<unk>", lstrip=True, rstrip=True, special=True),
        },
    }  # fmt: skip
    write_json(folder / "tokenizer_config.json", config)


def siglip_bare(folder: Path) -> None:
    """Without a tokenizer_config.json."""
    siglip(folder)
    (folder / "tokenizer_config.json").unlink()


def siglip_added(folder: Path) -> None:
    """More tokens, upper case kept."""
    siglip(folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    size = sentencepiece.SentencePieceProcessor(
        model_file=str(folder / "spiece.model")
    ).vocab_size()
    more = {
        str(size): token("<cat>", lstrip=True, special=True),
        str(size + 1): token("dog", single_word=True),
        str(size + 2): token("<cat>s", rstrip=True),
    }
    change(
        folder / "tokenizer_config.json",
        do_lower_case=False,
        added_tokens_decoder=config["added_tokens_decoder"] | more,
    )


def t5(folder: Path) -> None:
    """A unigram, as open_clip's SigLIP folders have it."""
    rust = Rust(models.Unigram())
    rust.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=400, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>"
    )
    rust.train_from_iterator(CORPUS, trainer)
    rust.normalizer = normalizers.Nmt()  # which the class does not take over
    folder.mkdir()
    rust.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "additional_special_tokens": []}
    write_json(folder / "tokenizer_config.json", config | {"pad_token": "</s>"})


def t5_extra(folder: Path) -> None:
    """A hundred more tokens where nothing says how many."""
    t5(folder)
    change(folder / "tokenizer_config.json", extra_ids=None, additional_special_tokens=None)


def bert(folder: Path) -> None:
    """A word-piece tokenizer, as the library itself trains and saves it."""
    rust = Rust(models.WordPiece(unk_token="[UNK]"))
    rust.normalizer = normalizers.BertNormalizer()
    rust.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    rust.train_from_iterator(
        CORPUS, trainers.WordPieceTrainer(vocab_size=400, special_tokens=special)
    )
    rust.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    folder.mkdir()
    rust.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "BertTokenizerFast", "do_lower_case": False, "strip_accents": True}
    write_json(folder / "tokenizer_config.json", config)


def plain(folder: Path) -> None:
    """A tokenizer.json with a normaliser of its own and added tokens."""
    bert(folder)
    rust = Rust.from_file(str(folder / "tokenizer.json"))
    rust.normalizer = normalizers.Sequence(
        [normalizers.NFKD(), normalizers.StripAccents(), normalizers.Replace("&", " and ")]
    )
    rust.add_tokens([AddedToken("Red", normalized=True), AddedToken("<cat>", lstrip=True)])
    rust.enable_padding(pad_id=0, pad_token="[PAD]")
    rust.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "image_token": "<image>"}
    more = {"extra_special_tokens": ["<dog>"], "model_max_length": 9}
    write_json(folder / "tokenizer_config.json", config | more)


FOLDERS: dict[str, tuple[Callable[[Path], None], Sequence[str]]] = {
    "clip_slow": (clip_slow, ("<|endoftext|>", "<|startoftext|>")),
    "clip_bare": (clip_bare, ("<|endoftext|>", "<|startoftext|>")),
    "clip_saved": (clip_saved, ("<|endoftext|>", "<|startoftext|>")),
    "clip_added": (clip_added, ("<|endoftext|>", "<cat>", "[Dog]", "Tree", "sun")),
    "clip_legacy": (clip_legacy, ("<|endoftext|>", "<cat>", "Dog", "!")),
    "siglip": (siglip, ("</s>", "<unk>", "<pad>")),
    "siglip_bare": (siglip_bare, ("</s>", "<unk>", "<pad>")),
    "siglip_added": (siglip_added, ("</s>", "<unk>", "<cat>", "dog", "<cat>s")),
    "siglip2": (siglip2, ("<eos>", "<bos>", "<pad>", "<mask>", "\n\n", "<0x41>")),
    "siglip2_fixed": (siglip2_fixed, ("<eos>", "<bos>", "<pad>", "\n\n")),
    "siglip2_own": (siglip2_own, ("<eos>", "<bos>", "<pad>", "\n\n")),
    "t5": (t5, ("</s>", "<unk>", "<pad>")),
    "t5_extra": (t5_extra, ("</s>", "<unk>", "<extra_id_7>")),
    "bert": (bert, ("[CLS]", "[SEP]", "[MASK]")),
    "plain": (plain, ("[CLS]", "[SEP]", "Red", "<cat>", "<dog>", "<image>")),
}
"""By name: what writes it, and the tokens that a text may spell."""
