"""Fuzzed texts get the ids that transformers gives, for folders of every kind."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mmtrain.data.text.tokenizer import Tokenizer, load_tokenizer
from mmtrain.interop.hf_tokenizer import read_hf_tokenizer
from tests.interop.tokenizer_folders import FOLDERS, fuzzed


def read_theirs(folder: Path) -> Any:
    from transformers import AutoTokenizer

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return AutoTokenizer.from_pretrained(folder)


def transformers_ids(tokenizer: Any, texts: list[str], length: int) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fields = {"padding": "max_length", "max_length": length, "truncation": True}
        return tokenizer(texts, return_tensors="pt", **fields).input_ids


def assert_same_ids(tokenizer: Tokenizer, their_tokenizer: Any, texts: list[str]) -> None:
    ours = tokenizer(texts)
    theirs = transformers_ids(their_tokenizer, texts, tokenizer.context_length)
    wrong = (ours != theirs).any(1).nonzero().flatten().tolist()
    told = [(texts[i][:80], ours[i].tolist()[:20], theirs[i].tolist()[:20]) for i in wrong[:3]]
    assert not wrong, f"{len(wrong)} of {len(texts)}, such as {told}"


@pytest.mark.parametrize("name", FOLDERS)
def test_ids_equal_transformers(tmp_path, name):
    write, tokens = FOLDERS[name]
    write(tmp_path / name)
    texts = fuzzed(300, tokens)
    theirs = read_theirs(tmp_path / name)
    assert_same_ids(read_hf_tokenizer(tmp_path / name, context_length=8), theirs, texts)
    ours = read_hf_tokenizer(tmp_path / name, context_length=40)
    assert_same_ids(ours, theirs, texts)
    ours.save(tmp_path / "ours")
    assert torch.equal(load_tokenizer(tmp_path / "ours")(texts), ours(texts))


@pytest.mark.slow
@pytest.mark.parametrize("name", FOLDERS)
def test_five_thousand_texts_have_transformers_ids(tmp_path, name):
    write, tokens = FOLDERS[name]
    write(tmp_path / name)
    ours = read_hf_tokenizer(tmp_path / name, context_length=64)
    assert_same_ids(ours, read_theirs(tmp_path / name), fuzzed(5_000, tokens, seed=1))
