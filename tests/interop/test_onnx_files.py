"""Graphs that run without mmtrain give the features that mmtrain gives, or are not written."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import Tensor

import mmtrain
from mmtrain.cli import main
from mmtrain.data.text.tokenizer import TokenizerConfig, build_tokenizer
from mmtrain.interop import onnx_program, tower_graphs
from mmtrain.interop.graph_folder import describe_tokenizer
from mmtrain.loading import save_model
from mmtrain.models import Clip, ClipConfig
from tests.loading.test_loading import CONFIG, PREPROCESS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/onnx.md").read_text(encoding="utf-8")
PIECES = ROOT / "mmtrain/demo/debug/sentencepiece.model"
TEXTS = ["a photo of two DOGS", "an  apple, red", "word " * 40]


def program() -> str:
    """The first one of the page, which then shows that it loaded none of ours."""
    written = PAGE.split("```python\n")[1].split("```")[0]
    return written + 'assert not {"torch", "mmtrain"} & sys.modules.keys()\n'


def build(folder: Path, config: ClipConfig = CONFIG, **preprocess: str) -> Path:
    model = Clip(config).init_weights(0).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(
                0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
            )
        model.logit_scale.fill_(2.0)
    size = config.vision.image_size
    how = replace(PREPROCESS, image_size=size, **preprocess)  # pyright: ignore[reportArgumentType]
    tokenizer = build_tokenizer(TokenizerConfig(context_length=config.text.context_length))
    save_model(folder, model=model, tokenizer=tokenizer, preprocess=how)
    return folder


def picture(folder: Path, width: int, height: int) -> Path:
    noise = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "photo.png")
    return folder / "photo.png"


def run(folder: Path, tower: str, inputs: Tensor) -> Tensor:
    told = json.loads((folder / "model.json").read_text())[tower]
    session = onnxruntime.InferenceSession(folder / told["file"])
    return torch.from_numpy(session.run(None, {told["input"]["name"]: inputs.numpy()})[0])


@torch.no_grad()
def logits_of(folder: Path, photo: Path) -> list[float]:
    model, preprocess, tokenizer = mmtrain.load(folder)
    image = model.encode_image(preprocess(Image.open(photo).convert("RGB"))[None])
    bias = 0 if model.logit_bias is None else model.logit_bias
    logits = image @ model.encode_text(tokenizer(TEXTS)).T * model.logit_scale.exp() + bias
    return logits[0].tolist()


def said_by_program(folder: Path, photo: Path) -> list[float]:
    words = [sys.executable, "-I", "-c", program(), str(folder), str(photo), *TEXTS]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [float(line.split()[0]) for line in done.stdout.splitlines()]


@pytest.mark.parametrize(
    "config",
    [
        TokenizerConfig(context_length=12),
        *(
            TokenizerConfig(kind="sentencepiece", path=str(PIECES), context_length=12, clean=clean)
            for clean in ("canonicalize", "lower", "whitespace", "none")
        ),
    ],
    ids=lambda config: f"{config.kind}, {config.clean}",
)
def test_the_page_reads_texts_as_mmtrain_does(tmp_path: Path, config: TokenizerConfig):
    """Its rows of texts, and texts of ids, by the file and the facts that an export holds."""
    tokenizer = build_tokenizer(config)
    tokenizer.save(tmp_path)
    page: dict[str, Any] = {}
    exec(program().split("def features")[0], page)
    how = describe_tokenizer(tokenizer)
    encode, decode = page["reader"](tmp_path, how)
    for text in ("is it a RED_circle?", "(what's) there", *TEXTS):
        row = page["ids"](text, encode=encode, **how)
        assert row == tokenizer.encode([text])[0][0].tolist()
        ends = tokenizer.sot_id, tokenizer.eot_id
        said = decode([token for token in row if token not in ends])
        assert said.replace("</w>", " ").strip() == tokenizer.decode(row)


@pytest.mark.slow
def test_the_pages_program_runs_an_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Without torch and mmtrain; one message a tower; nothing of this machine in the files."""
    source, out = build(tmp_path / "model"), tmp_path / "above" / "out"
    assert main(["export", str(source), "--out", str(out), "--format", "onnx"]) == 0
    captured = capsys.readouterr()
    # On a slow machine how far it is is told too.
    assert all(line.endswith(" of 4 parts") for line in captured.err.splitlines())
    assert len(captured.out.splitlines()) == 3
    photo = picture(tmp_path, 50, 31)
    assert said_by_program(out, photo) == pytest.approx(logits_of(source, photo), abs=2e-4)
    files = {path.name: path.read_bytes() for path in out.iterdir()}
    assert files.keys() == {
        *("image.onnx", "text.onnx", "model.json", "tokenizer.json", "tokenizer_config.json")
    }
    assert all(str(ROOT).encode() not in content for content in files.values())
    told = json.loads(files["model.json"])
    assert (told["opset"], told["weights"]) == (18, "fp32")
    assert told["image"]["mean"] == list(CONFIG.vision.mean)
    assert main(["embed", "--model", str(out), "--data", str(photo), "--out", "x"]) == 2
    assert "graphs that other programs run" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["hf", "fp16"], ["mmtrain", "fp32"], ["torch-export", "int8"]])
def test_a_choice_of_weights_that_a_form_has_not(words: list[str], tmp_path: Path, capsys):
    source, out = build(tmp_path / "model"), tmp_path / "out"
    command = ["export", str(source), "--out", str(out), "--format", words[0]]
    assert main([*command, "--weights", words[1]]) == 2
    said = capsys.readouterr().err
    assert f"--weights = {words[1]} is not for --format = {words[0]}; use --format onnx" in said
    assert not out.exists()


@pytest.mark.parametrize("form", ["onnx", "torch-export"])
def test_what_fails_leaves_nothing(form: str, tmp_path: Path, monkeypatch, capsys):
    """Features that are other ones, and a tower that the exporter refuses."""
    source, out = build(tmp_path / "model"), tmp_path / "above" / "out"
    command = ["export", str(source), "--out", str(out), "--format", form]

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("no such operation\n  of a long story")

    monkeypatch.setattr(torch.export, "export", refuse)
    assert main(command) == 2
    said = capsys.readouterr().err
    assert "cannot take the image tower: RuntimeError: no such operation\n" in said
    assert sorted(tmp_path.iterdir()) == [source]


def test_the_extra_is_named(tmp_path: Path, monkeypatch, capsys):
    source, out = build(tmp_path / "model"), tmp_path / "out"
    monkeypatch.setattr(onnx_program, "find_spec", lambda _: None)
    assert main(["export", str(source), "--out", str(out), "--format", "onnx"]) == 2
    assert 'the package onnx; pip install "mmtrain[onnx]"' in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == [source]


def test_features_that_are_not_torchs_are_an_error(tmp_path: Path, monkeypatch, capsys):
    source, out = build(tmp_path / "model"), tmp_path / "above" / "out"
    monkeypatch.setattr(tower_graphs, "TOLERANCE", -1.0)
    assert main(["export", str(source), "--out", str(out), "--format", "torch-export"]) == 2
    assert "from torch's" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == [source]


@pytest.mark.slow
@torch.no_grad()
def test_torch_export_runs_at_any_batch(tmp_path: Path):
    source, out = build(tmp_path / "model"), tmp_path / "out"
    assert main(["export", str(source), "--out", str(out), "--format", "torch-export"]) == 0
    model, _, tokenizer = mmtrain.load(source)
    images = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)
    for name, inputs, encode in (
        ("image.pt2", images, model.encode_image),
        ("text.pt2", tokenizer([*TEXTS, "", "!"]), model.encode_text),
    ):
        tower = torch.export.load(out / name).module()
        assert str(ROOT).encode() not in (out / name).read_bytes()
        for batch in (1, 5):
            torch.testing.assert_close(tower(inputs[:batch]), encode(inputs[:batch]))
