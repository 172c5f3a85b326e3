"""What an export says of ids that change is what the other library does with the folder."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mmtrain.cli import main
from mmtrain.data.images.transforms import PreprocessConfig
from mmtrain.data.text.tokenizer import Tokenizer, TokenizerConfig, build_tokenizer
from mmtrain.interop.hf_tokenizer import read_hf_tokenizer
from mmtrain.interop.open_clip_config import config_from_open_clip
from mmtrain.interop.open_clip_files import read_open_clip_tokenizer
from mmtrain.interop.tokenizer_differences import PROBES
from mmtrain.loading import save_model
from mmtrain.models import Clip
from tests.interop.peers import ROOT, tiny_open_clip
from tests.interop.tokenizer_folders import FOLDERS, fuzzed, write_json

LENGTH = 24
PIECES = str(ROOT / "mmtrain/demo/debug/sentencepiece.model")
CLEANS = ("whitespace", "lower", "canonicalize")


def folder_of(name: str, tmp_path: Path, clean: str | None = None) -> Tokenizer:
    FOLDERS[name][0](tmp_path / name)
    return read_hf_tokenizer(tmp_path / name, context_length=LENGTH, clean=clean)


OURS: dict[str, Callable[[Path], Tokenizer]] = {
    "clip": lambda _: build_tokenizer(TokenizerConfig(context_length=LENGTH)),
    "clip of transformers": lambda path: folder_of("clip_saved", path),
    "pieces": lambda _: build_tokenizer(
        TokenizerConfig(
            kind="sentencepiece", path=PIECES, context_length=LENGTH, clean="canonicalize"
        )
    ),
    "siglip": lambda path: folder_of("siglip", path),
    "siglip2": lambda path: folder_of("siglip2", path),
    "plain, cleaned": lambda path: folder_of("plain", path, "whitespace"),
}


def ids_elsewhere(folder: Path, form: str) -> Callable[[str], list[int]]:
    """What the other library makes of a text, without padding."""
    import open_clip
    from transformers import AutoTokenizer

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if form == "hf":
            theirs = AutoTokenizer.from_pretrained(folder)
            return lambda text: theirs(text, truncation=True, max_length=LENGTH).input_ids
        theirs = open_clip.get_tokenizer(f"local-dir:{folder}")
    return lambda text: theirs([text])[0].tolist()


def is_same(here: list[int], there: list[int]) -> bool:
    """Whether the ids are the same up to padding."""
    return there[: len(here)] == here and len(set(there[len(here) :])) <= 1


@pytest.mark.filterwarnings("ignore:This sequence already has")
@pytest.mark.parametrize("form", ["hf", "open-clip"])
@pytest.mark.parametrize("name", OURS)
def test_the_lines_are_true(tmp_path, capsys, monkeypatch, name, form):
    """Each kind of text that is told has other ids there, each other has the same."""
    # It is about ids alone: the tower is CLIP's, whose largest id ends no text of these tokenizers.
    monkeypatch.setattr("mmtrain.loading.models.refuse_unfit_tokenizer", lambda *_, **__: None)
    tokenizer = OURS[name](tmp_path)
    sizes = {"vocab_size": tokenizer.vocab_size, "context_length": LENGTH}
    changes: dict[str, Any] = {"text_cfg": sizes}
    config = config_from_open_clip(tiny_open_clip(quick_gelu=True, **changes))
    model = Clip(config).init_weights(0)
    preprocess = PreprocessConfig(image_size=32)
    save_model(tmp_path / "ours", model=model, tokenizer=tokenizer, preprocess=preprocess)
    out = tmp_path / "out"
    words = ["export", str(tmp_path / "ours"), "--out", str(out), "--format", form]
    assert main(words) == 0
    shown = capsys.readouterr().out
    elsewhere = ids_elsewhere(out, form)
    for kind, text in PROBES.items():
        here, there = tokenizer.encode([text])[0][0].tolist(), elsewhere(text)
        told = f"other ids for {kind}: {text!r}" in shown
        assert told != is_same(here, there), (kind, here, there)
    if name == "clip":
        assert ("HTML entities" in shown) == (form == "hf")


@pytest.mark.parametrize("clean", CLEANS)
@pytest.mark.parametrize("name", ["clip_added", "siglip_added", "siglip2_own", "t5", "plain"])
def test_a_folders_tokenizer_behind_open_clips_cleaning(tmp_path, name, clean):
    """open_clip cleans a text, then transformers' class of the folder cuts it."""
    import open_clip

    write, tokens = FOLDERS[name]
    write(tmp_path / name)
    text_cfg = {
        "context_length": LENGTH,
        "vocab_size": 60_000,
        "hf_tokenizer_name": "any",
        "tokenizer_kwargs": {"clean": clean},
    }
    model_cfg = tiny_open_clip(text_cfg=text_cfg)
    write_json(tmp_path / name / "open_clip_config.json", {"model_cfg": model_cfg})
    config = config_from_open_clip(model_cfg)
    ours = read_open_clip_tokenizer(model_cfg["text_cfg"], config, tmp_path / name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = open_clip.get_tokenizer(f"local-dir:{tmp_path / name}")
        texts = fuzzed(100, tokens)
        assert torch.equal(ours(texts), theirs(texts))


def test_what_open_clip_does_and_we_do_not_is_refused(tmp_path, capsys):
    """Settings of its tokenizers that would give other ids."""
    model = Clip(config_from_open_clip(tiny_open_clip())).init_weights(0)
    tokenizer = build_tokenizer(TokenizerConfig(context_length=LENGTH))
    preprocess = PreprocessConfig(image_size=32)
    save_model(tmp_path / "ours", model=model, tokenizer=tokenizer, preprocess=preprocess)
    hub = tmp_path / "hub"
    words = ["export", str(tmp_path / "ours"), "--out", str(hub)]
    assert main([*words, "--format", "open-clip"]) == 0
    path = hub / "open_clip_config.json"
    content = json.loads(path.read_text())
    for number, (field, value) in enumerate(
        (
            ("tokenizer_kwargs", {"reduction_mask": "simple"}),
            ("tokenizer_kwargs", {"additional_special_tokens": ["<a>"]}),
            ("tokenizer_kwargs", {"clean": "none"}),
            ("tokenizer_mode", "clips"),
        )
    ):
        text_cfg = content["model_cfg"]["text_cfg"] | {field: value}
        if field == "tokenizer_mode":
            text_cfg["hf_tokenizer_name"] = "any"
        write_json(path, content | {"model_cfg": content["model_cfg"] | {"text_cfg": text_cfg}})
        out = str(tmp_path / f"out{number}")
        assert main(["export", str(hub), "--out", out, "--format", "mmtrain"]) == 2
        said = capsys.readouterr().err
        assert next(iter(value)) in said if isinstance(value, dict) else field in said
