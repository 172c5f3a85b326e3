"""Tokenizer files: the same ids here and in transformers, both ways."""

import json
import pickle
import warnings
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers

from mmtrain.data.text.json_tokenizer import JsonTokenizer
from mmtrain.data.text.tokenizer import TokenizerConfig, build_tokenizer, load_tokenizer
from mmtrain.errors import UsageError
from mmtrain.interop.hf_tokenizer import read_hf_tokenizer
from mmtrain.interop.hf_tokenizer_writing import has_clips_words, write_hf_tokenizer
from tests.interop.peers import CAPTIONS, ROOT

TEXTS = [caption for caption in CAPTIONS if "&" not in caption]


def transformers_ids(folder: Path, texts: list[str], length: int) -> torch.Tensor:
    from transformers import AutoTokenizer

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tokenizer = AutoTokenizer.from_pretrained(folder)
        fields = {"padding": "max_length", "max_length": length, "truncation": True}
        return tokenizer(texts, return_tensors="pt", **fields).input_ids


def write_bert(folder: Path) -> None:
    """A word-piece tokenizer with [CLS] and [SEP], as the library itself trains and saves it."""
    folder.mkdir()
    rust = RustTokenizer(models.WordPiece(unk_token="[UNK]"))
    rust.normalizer = normalizers.Lowercase()
    rust.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=special)
    rust.train_from_iterator(CAPTIONS, trainer)
    rust.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    rust.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def test_a_tokenizer_json_gives_transformers_ids_and_travels(tmp_path):
    write_bert(tmp_path / "bert")
    ours = read_hf_tokenizer(tmp_path / "bert", context_length=12)
    want = transformers_ids(tmp_path / "bert", TEXTS, 12)
    assert torch.equal(ours(TEXTS), want)
    assert (ours.sot_id, ours.eot_id, ours.pad_id) == (2, 3, 0)
    ours.save(tmp_path / "ours")
    again = load_tokenizer(tmp_path / "ours")
    assert torch.equal(again(TEXTS), want)
    assert torch.equal(pickle.loads(pickle.dumps(again))(TEXTS), want)
    write_hf_tokenizer(again, tmp_path / "out")
    assert torch.equal(transformers_ids(tmp_path / "out", TEXTS, 12), want)
    assert torch.equal(read_hf_tokenizer(tmp_path / "out", context_length=12)(TEXTS), want)


def test_texts_that_a_reader_would_not_clean_are_refused(tmp_path):
    write_bert(tmp_path / "bert")
    ours = read_hf_tokenizer(tmp_path / "bert", context_length=12, clean="canonicalize")
    with pytest.raises(UsageError, match=r'clean = "canonicalize": others read'):
        write_hf_tokenizer(ours, tmp_path / "out")
    write_hf_tokenizer(ours, tmp_path / "out", cleans=True)


@pytest.mark.parametrize("form", ["vocab.json", "tokenizer.json"])
def test_clips_own_is_recognised_by_its_whole_vocabulary(tmp_path, form):
    """Written by us, read by transformers: the same ids up to and with the end token."""
    ours = build_tokenizer(TokenizerConfig(context_length=16))
    write_hf_tokenizer(ours, tmp_path)
    if form == "tokenizer.json":
        from transformers import AutoTokenizer

        AutoTokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path)
        for name in ("vocab.json", "merges.txt"):
            (tmp_path / name).unlink(missing_ok=True)
    theirs = transformers_ids(tmp_path, TEXTS, 16)
    tokens, length = ours.encode(TEXTS)
    for row, n in enumerate(length):
        assert theirs[row, :n].tolist() == tokens[row, :n].tolist()
    back = read_hf_tokenizer(tmp_path, context_length=16)
    assert has_clips_words(back) and torch.equal(back(TEXTS), theirs)
    write_hf_tokenizer(back, tmp_path / "again")
    assert {"vocab.json", "merges.txt"} <= {path.name for path in (tmp_path / "again").iterdir()}
    assert torch.equal(transformers_ids(tmp_path / "again", CAPTIONS, 16), back(CAPTIONS))


def test_sentence_piece_models_travel(tmp_path):
    config = TokenizerConfig(
        kind="sentencepiece",
        path=str(ROOT / "mmtrain/demo/debug/sentencepiece.model"),
        context_length=20,
        clean="canonicalize",
    )
    ours = build_tokenizer(config)
    write_hf_tokenizer(ours, tmp_path)
    assert torch.equal(transformers_ids(tmp_path, TEXTS, 20), ours(TEXTS))
    back = read_hf_tokenizer(tmp_path, context_length=20)
    assert torch.equal(back(TEXTS), ours(TEXTS))
    write_hf_tokenizer(back, tmp_path / "again")
    assert torch.equal(transformers_ids(tmp_path / "again", CAPTIONS, 20), back(CAPTIONS))
    (tmp_path / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "SiglipTokenizer", "pad_token": "<none>"}'
    )
    with pytest.raises(UsageError, match="the token <none> is no piece of"):
        read_hf_tokenizer(tmp_path, context_length=20)


def test_what_gives_other_ids_elsewhere_is_refused(tmp_path):
    pieces = str(ROOT / "mmtrain/demo/debug/sentencepiece.model")
    for config, message in (
        (TokenizerConfig(kind="sentencepiece", path=pieces, clean="lower"), 'clean = "lower"'),
        (
            TokenizerConfig(kind="sentencepiece", path=pieces, clean="canonicalize", add_sot=True),
            "add_sot = true",
        ),
        (TokenizerConfig(clean="canonicalize"), 'tokenizer.clean = "canonicalize"'),
    ):
        with pytest.raises(UsageError, match=message):
            write_hf_tokenizer(build_tokenizer(config), tmp_path / "out")


def test_damaged_and_missing_files_are_refused_in_one_line(tmp_path):
    write_bert(tmp_path / "bert")
    path = tmp_path / "bert" / "tokenizer.json"
    content = json.loads(path.read_text())
    double = content["post_processor"]["single"]
    content["post_processor"]["single"] = [double[0], *double]
    path.write_text(json.dumps(content))
    with pytest.raises(UsageError, match="more than one token"):
        read_hf_tokenizer(path.parent, context_length=8)
    path.write_text("{}")
    with pytest.raises(UsageError, match=r"is not a tokenizer\.json") as caught:
        read_hf_tokenizer(path.parent, context_length=8)
    assert "\n" not in str(caught.value)
    path.unlink()
    with pytest.raises(UsageError, match=r"holds no vocab\.json, tokenizer\.json or spiece"):
        read_hf_tokenizer(path.parent, context_length=8)


def test_a_tokenizer_json_needs_no_template():
    """Without start and end token, add_eot must be off."""
    rust = RustTokenizer(models.WordLevel({"a": 0, "b": 1, "[PAD]": 2}, unk_token="[PAD]"))
    rust.enable_padding(pad_id=2, pad_token="[PAD]")
    model = JsonTokenizer(rust.to_str().encode())
    assert (model.sot_id, model.eot_id, model.pad_id, model.vocab_size) == (None, None, 2, 3)
    assert model.token_ids(["a", "b"], limit=5) == [[0], [1]]
