"""Graphs of other libraries' towers, of texts by SentencePiece, and of no model of answers."""

from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch

import mmtrain
from mmtrain.cli import main
from mmtrain.loading import load
from tests.interop.peers import tiny_open_clip
from tests.interop.test_onnx_kinds import export, least_cosine
from tests.interop.test_trunks import RESNET, write_folder
from tests.tasks.test_vqa_run import write_recipe

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
CONVNEXT = {"timm_model_name": "convnext_atto", "timm_pool": "avg", "image_size": 64}


def towers(vision_cfg: dict[str, Any]) -> dict[str, Any]:
    return tiny_open_clip() | {"vision_cfg": vision_cfg, "custom_text": True}


@pytest.mark.parametrize(
    ("vision_cfg", "weights"),
    [(RESNET, "fp32"), (CONVNEXT, "fp32"), (CONVNEXT, "int8")],
    ids=["ResNet", "timm", "timm in int8"],
)
def test_a_trunk(vision_cfg: dict[str, Any], weights: str, tmp_path: Path):
    write_folder(tmp_path / "theirs", towers(vision_cfg))
    told = export(tmp_path / "theirs", tmp_path / "out", "--weights", weights)
    cosine = least_cosine(tmp_path / "theirs", tmp_path / "out", told, batch=3)
    assert cosine > (1 - 1e-5 if weights == "fp32" else 0.98)


def test_a_trunk_that_cannot_be_traced_is_named(tmp_path: Path, monkeypatch, capsys):
    write_folder(tmp_path / "theirs", towers(CONVNEXT))
    network = load(tmp_path / "theirs")[0].vision.embed.trunk

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3)) if x.sum().item() > 0 else x.amax((2, 3))

    monkeypatch.setattr(type(network), "forward", forward)
    for form in ("onnx", "torch-export"):
        out = tmp_path / form
        words = ["export", str(tmp_path / "theirs"), "--out", str(out), "--format", form]
        assert main(words) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f'--format = {form} cannot take the image tower (trunk.kind = "timm"' in line
        assert "convnext_atto" in line and not out.exists()


def test_texts_that_sentencepiece_cuts(tmp_path: Path, monkeypatch):
    """As the page says to make ids of them; the run of a recipe of the sigmoid loss."""
    monkeypatch.chdir(ROOT)
    run = tmp_path / "run"
    words = ["configs/debug_siglip.toml", "--run-dir", str(run), "--train.steps", "2"]
    assert main(["train", *words]) == 0
    told = export(run, tmp_path / "out")
    assert least_cosine(run, tmp_path / "out", told, batch=3) > 1 - 1e-6
    assert told["logits"]["probabilities"] == "sigmoid of each pair"
    how = told["text"]
    assert how["tokenizer_read_by"] == "sentencepiece"
    file = str(tmp_path / "out" / how["tokenizer_file"])
    pieces = sentencepiece.SentencePieceProcessor(model_file=file)
    tokenizer = mmtrain.load(run)[2]
    for text in ("a red circle", "musical  NOTE", "word " * 30):
        cleaned = " ".join(text.split()).lower()
        room = how["context_length"] - len(how["start_ids"]) - len(how["end_ids"])
        row = how["start_ids"] + pieces.encode(cleaned)[:room] + how["end_ids"]
        row += [how["pad_id"]] * (how["context_length"] - len(row))
        assert row == tokenizer(text)[0].tolist()


@pytest.mark.parametrize("form", ["torch-export"])
def test_a_model_that_answers_is_refused(form: str, tmp_path: Path, capsys):
    source, out = tmp_path / "run", tmp_path / "out"
    recipe = write_recipe(tmp_path)
    assert main(["train", str(recipe), "--run-dir", str(source), "--train.steps", "1"]) == 0
    capsys.readouterr()
    assert main(["export", str(source), "--out", str(out), "--format", form]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"--format = {form} holds towers with their heads" in line and not out.exists()
    assert "use mmtrain, the whole model, onnx, what computes its answers" in line
