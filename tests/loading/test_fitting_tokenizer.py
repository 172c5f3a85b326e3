"""A text tower that looks for its texts where the tokenizer does not put them is refused."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import mmtrain
from mmtrain.cli import main
from mmtrain.data.text.tokenizer import Tokenizer, TokenizerConfig, build_tokenizer
from mmtrain.errors import UsageError
from mmtrain.loading import export_model
from mmtrain.loading.fitting_tokenizer import refuse_unfit_tokenizer
from mmtrain.models import TextConfig
from mmtrain.nn import TransformerConfig
from tests.suite.folders import write_model

OWN = build_tokenizer(TokenizerConfig(context_length=16))
SOT, END = OWN.sot_id, OWN.eot_id
CAUSAL = TextConfig(
    transformer=TransformerConfig(dim=16, num_layers=1, num_heads=2, mask="causal"),
    context_length=16,
)
FULL = replace(CAUSAL, transformer=replace(CAUSAL.transformer, mask="full"))


class Bare:
    """CLIP's words without an end: what a folder with another library's template may give."""

    file_name, sot_id, eot_id, pad_id = "none", None, END, 0
    vocab_size = OWN.vocab_size

    def token_ids(self, texts: Any, *, limit: int) -> list[list[int]]:
        return [OWN.turn_ids(text) or [1] for text in texts]

    def text(self, ids: Any) -> str:
        raise NotImplementedError

    serialize: Any = text


def bare(**fields: Any) -> Tokenizer:
    given = {"kind": "json", "path": "x", "context_length": 16, "add_eot": False} | fields
    model: Any = Bare()
    return Tokenizer(TokenizerConfig(**given), model)


FIT: dict[str, tuple[TextConfig, Tokenizer]] = {
    "the end token": (CAUSAL, OWN),
    "the largest id": (replace(CAUSAL, end_token_id=None), OWN),
    "padded with the end token": (
        CAUSAL,
        build_tokenizer(TokenizerConfig(context_length=16, pad_id=END)),
    ),
    "a mean of what is no padding": (replace(FULL, pool="mean"), OWN),
    "the array's last": (replace(FULL, pool="last", end_token_id=7), bare()),
    "the first, and padding is seen": (
        replace(FULL, pool="first", mask_padding=False, end_token_id=7),
        OWN,
    ),
    "a shorter text": (replace(CAUSAL, context_length=20), OWN),
    "learned vectors": (replace(CAUSAL, context_length=20, num_context=4), OWN),
    "more rows than ids": (replace(CAUSAL, vocab_size=50000), OWN),
}
UNFIT: dict[str, tuple[TextConfig, Tokenizer, str]] = {
    "a wrong end token": (
        replace(CAUSAL, end_token_id=5),
        OWN,
        f"token 5, which the tokenizer never writes; .*end token is {END}$",
    ),
    "the start token for the end": (
        replace(CAUSAL, end_token_id=SOT),
        OWN,
        f"token {SOT}, which in 'a photo .*' is token 1 and not the last of its 11",
    ),
    "no end token, and padding of that id": (
        CAUSAL,
        bare(pad_id=END),
        f"token {END}, which the tokenizer never writes",
    ),
    "a largest id that is a word": (
        replace(CAUSAL, end_token_id=None),
        bare(),
        "largest id of a text, which in 'a photo of .* not the last of its 9",
    ),
    "padding that is seen for want of an end": (
        replace(FULL, pool="mean", end_token_id=5),
        OWN,
        "token 5, which the tokenizer never writes",
    ),
    "ids without embeddings": (
        replace(CAUSAL, vocab_size=49407, end_token_id=END),
        OWN,
        "the tokenizer has 49408 ids, but the model's vocab_size = 49407; put the model's own",
    ),
    "more tokens than positions": (
        replace(CAUSAL, context_length=12),
        OWN,
        "texts have 16 tokens, but the model's context_length = 12",
    ),
    "more with the learned ones": (
        replace(CAUSAL, num_context=4),
        OWN,
        "texts have 16 tokens and the model adds 4, but the model's context_length = 16",
    ),
    "a tower that reads its padding, and less of it": (
        replace(FULL, pool="last", context_length=20),
        OWN,
        "texts have 16 tokens, but the model's context_length = 20",
    ),
}


@pytest.mark.parametrize("what", FIT)
def test_what_fits_is_loaded(what: str) -> None:
    text, tokenizer = FIT[what]
    refuse_unfit_tokenizer(text, tokenizer, source="x")


@pytest.mark.parametrize("what", UNFIT)
def test_what_does_not_fit_is_refused_in_one_line(what: str) -> None:
    text, tokenizer, told = UNFIT[what]
    with pytest.raises(UsageError, match=f"^x: .*{told}") as caught:
        refuse_unfit_tokenizer(text, tokenizer, source="x")
    assert len(str(caught.value).splitlines()) == 1


def _hf(config: Any) -> None:
    config["text_config"]["eos_token_id"] = 49404


def _open_clip(config: Any) -> None:
    config["model_cfg"]["text_cfg"] |= {"pool_type": "eos", "eos_id": 49404}


def _ours(config: Any) -> None:
    config["model"]["text"]["end_token_id"] = 49404


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "name", "spoil"),
    [
        ("mmtrain", "config.json", _ours),
        ("hf", "config.json", _hf),
        ("open-clip", "open_clip_config.json", _open_clip),
    ],
)
def test_a_wrong_end_token_of_any_form_is_refused(
    form: str, name: str, spoil: Callable[[Any], None], tmp_path: Path
) -> None:
    """It gave the padding's features, the same for many texts, without a word."""
    write_model(tmp_path / "own", 0)
    export_model(tmp_path / "own", out=tmp_path / form, form=form)
    mmtrain.load(tmp_path / form)
    path = tmp_path / form / name
    content = json.loads(path.read_text())
    spoil(content)
    path.write_text(json.dumps(content))
    with pytest.raises(UsageError, match=r"token 49404, which the tokenizer never writes; correct"):
        mmtrain.load(tmp_path / form)


@pytest.mark.parametrize("tower", [[], ["--model.text.pool", "mean"]])
def test_texts_without_an_end_are_refused_before_training(
    tower: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their lengths are known there alone: every use of the model would look elsewhere."""
    pieces = "mmtrain/demo/vqa/sentencepiece.model"
    words = ["--tokenizer.kind", "sentencepiece", "--tokenizer.path", pieces, *tower]
    words += ["--tokenizer.add_eot", "false", "--run-dir", str(tmp_path / "run")]
    assert main(["train", "configs/debug_clip.toml", *words]) == 2
    assert "tokenizer.add_eot = false leaves texts without the end" in capsys.readouterr().err
