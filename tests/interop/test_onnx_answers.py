"""Models that answer, and decoders alone, as graphs: the page's program says what mmtrain says."""

import json
import shutil
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

import mmtrain
from mmtrain.cli import main
from mmtrain.data.images.tiles import Pieces
from mmtrain.errors import UsageError
from mmtrain.eval.questions.answerer import Answerer
from mmtrain.eval.questions.seeing import see_pieces
from mmtrain.eval.samples import cut_image
from mmtrain.interop import onnx_decoder
from mmtrain.interop.onnx_weights import shrink
from mmtrain.interop.package import VqaModel
from mmtrain.loading.models import Preprocess
from mmtrain.loading.vqa import save_vqa
from mmtrain.models.dialogues import DialogueGenerator, Told
from mmtrain.models.generate import generate
from mmtrain.models.prefill import left_pad, prefill
from mmtrain.models.sampling import GenerationConfig
from mmtrain.models.vqa import Vqa
from mmtrain.models.vqa_stage import Asked
from tests.eval.questions.answerers import (
    ANSWER_LENGTH,
    ANSWERS,
    CORE,
    SIDE,
    TOKENIZER,
    make_answerer,
)
from tests.interop.decoder_folders import write_peer
from tests.interop.test_onnx_files import PAGE, picture

SHORT = replace(CORE, num_layers=1)
WINDOWED = replace(SHORT, num_kv_heads=1, norm="rms", local_window=5, local_layers=(0,))
QUESTIONS = ["is it red?", "what  is THERE", "which of the two is larger, the left or the right?"]


def package(answerer: Answerer) -> VqaModel:
    names = ("model", "tokenizer", "preprocess", "vocabulary", "answer_length")
    return VqaModel(**{name: getattr(answerer, name) for name in names})


def with_both_heads() -> Answerer:
    """A decoder that sees its prompt whole, of windows and grouped heads, beside a classifier."""
    writes = make_answerer("prefix", core=SHORT)
    chooses = make_answerer(head="classify", core=SHORT)
    written, chosen = writes.model.config, chooses.model.config
    assert written.generate is not None
    generate = replace(written.generate, transformer=replace(WINDOWED, mask="prefix"))
    config = replace(chosen, generate=generate)
    both = Vqa(writes.model.clip, config).init_weights(0)
    both.load_state_dict(chooses.model.state_dict(), strict=False)
    draw = torch.Generator().manual_seed(2)
    for name, parameter in both.named_parameters():
        if name.startswith("generate") and ("embed.token" in name or "fuse" in name):
            parameter.data.normal_(0.0, 0.5, generator=draw)
            if "token" in name:
                parameter.data[TOKENIZER.eot_id] = 0.0  # never the likeliest: no answer ends early
    return replace(writes, model=both.eval(), vocabulary=chooses.vocabulary)


def session(folder: Path, file: str) -> Any:
    return onnxruntime.InferenceSession(folder / file)


def program(number: int = 2) -> str:
    """The second or third one of the page, behind what it takes of those before."""
    parts = [part.split("```")[0] for part in PAGE.split("```python\n")[1 : number + 1]]
    ends = "def features", "folder, photo, *questions"
    written = "".join(part.split(end)[0] for part, end in zip(parts[:-1], ends, strict=False))
    return written + parts[-1] + 'assert not {"torch", "mmtrain"} & sys.modules.keys()\n'


def said(words: list[str], *, number: int = 2) -> list[str]:
    """What a program of the page prints."""
    line = [sys.executable, "-I", "-c", program(number), *words]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def in_int8(folder: Path) -> Path:
    """An export as --weights int8 writes it."""
    small = Path(shutil.copytree(folder, folder.with_name("small")))
    for path in small.glob("*.onnx"):
        shrink(path, weights="int8", is_large=False)
    sizes = [sum(path.stat().st_size for path in place.glob("*.onnx")) for place in (small, folder)]
    assert sizes[0] < 0.3 * sizes[1]
    return small


@pytest.mark.slow
def test_the_pages_program_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Both heads, a dictionary before each, windows, questions of unequal length."""
    answerer, out = with_both_heads(), tmp_path / "out"
    source = tmp_path / "model"
    save_vqa(source, package(answerer))
    photo = picture(tmp_path, 23, 17)
    assert main(["export", str(source), "--out", str(out), "--format", "onnx"]) == 0
    assert "4 of 4 greedy answers of 6 tokens the same" in capsys.readouterr().out
    lines = said([str(out), str(photo), *QUESTIONS])
    ask = ["ask", "--model", str(source), "--image", str(photo), "--head", "generate"]
    assert main([*ask, *(word for each in QUESTIONS for word in ("--question", each))]) == 0
    asked = capsys.readouterr().out.splitlines()
    for question, line, told in zip(QUESTIONS, asked[1::2], lines, strict=True):
        answer = told.removeprefix(question).strip()
        assert answer and line.strip().startswith(answer), (line, told)
    choices(answerer, out, photo, atol=1e-4)
    choices(answerer, in_int8(out), photo, atol=0.1)


@pytest.mark.slow
def test_a_model_that_only_chooses_answers_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In fp16, by the page's program: what `mmtrain ask` puts first."""
    source, out = tmp_path / "model", tmp_path / "out"
    save_vqa(source, package(make_answerer(head="classify", core=SHORT)))
    photo = picture(tmp_path, 23, 17)
    words = ["export", str(source), "--out", str(out), "--format", "onnx", "--weights", "fp16"]
    assert main(words) == 0
    capsys.readouterr()
    ask = ["ask", "--model", str(source), "--image", str(photo)]
    assert main([*ask, *(word for each in QUESTIONS for word in ("--question", each))]) == 0
    asked = [line for line in capsys.readouterr().out.splitlines() if line.startswith(" ")]
    told = said([str(out), str(photo), *QUESTIONS])
    for question, line in zip(QUESTIONS, told, strict=True):
        answer = line.removeprefix(question).strip()
        assert answer in ANSWERS and any(each.strip().startswith(answer) for each in asked)


@torch.no_grad()
def choices(answerer: Answerer, out: Path, photo: Path, *, atol: float) -> None:
    told = json.loads((out / "model.json").read_text())
    assert told["classify"]["answers"] == list(ANSWERS)
    image, classify = (session(out, told[name]["file"]) for name in ("image", "classify"))
    images = Preprocess(answerer.preprocess)(Image.open(photo))[None].expand(3, -1, -1, -1)
    (tokens,) = image.run(["classify_image_tokens"], {"images": images.numpy()})
    ids, lengths = answerer.tokenizer.encode(QUESTIONS)
    padded = answerer.tokenizer(QUESTIONS).numpy()
    feeds = {"classify_image_tokens": tokens, "input_ids": padded, "lengths": lengths.numpy()}
    asked = Asked(tokens_QT=ids, question_length_Q=lengths, length_Q=lengths)
    wanted = answerer.model.logits(images, asked).choice_QA
    found = torch.from_numpy(classify.run(None, feeds)[0])
    torch.testing.assert_close(found, wanted, rtol=0, atol=atol)


@pytest.mark.slow
def test_dialogues_about_several_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The page's program, of an image in tiles and of one that is not cut; in int8 too."""
    answerer, source, out = make_answerer("tiles", core=SHORT), tmp_path / "model", tmp_path / "out"
    save_vqa(source, package(answerer))
    assert main(["export", str(source), "--out", str(out), "--format", "onnx"]) == 0
    assert "4 of 4 greedy answers of 6 tokens the same" in capsys.readouterr().out
    photos = []
    for name, width in (("left", 2 * SIDE), ("right", SIDE)):
        photos.append(picture(tmp_path, width, SIDE).rename(tmp_path / f"{name}.png"))
    words = ["is it RED?", *map(str, photos)]
    assert said([str(out), *words], number=3) == [answer_of(answerer, *words)]
    (answer,) = said([str(in_int8(out)), *words], number=3)
    assert answer


@torch.no_grad()
def answer_of(answerer: Answerer, question: str, *photos: str) -> str:
    generator, tiles = answerer.model.generate, answerer.model.config.tiles
    assert isinstance(generator, DialogueGenerator) and tiles is not None
    cuts = [cut_image(Image.open(photo), answerer.preprocess, tiles) for photo in photos]
    pieces = Pieces.joined(cuts)
    assert pieces.counts == (3, 1)
    tokens = see_pieces(answerer, pieces, is_fixed=False).token_NPD
    asked = answerer.dialogue_text.ask(question, pieces.counts)
    told = Told(tokens_BT=torch.tensor([asked.ids]), image_BT=torch.tensor([asked.image]))
    start = prefill(generator.decoder, generator.placed(tokens, told), max_new_tokens=ANSWER_LENGTH)
    (ids,) = generate(generator.decoder, start, GenerationConfig(max_new_tokens=ANSWER_LENGTH))
    return answerer.tokenizer.decode(ids).strip()


@pytest.mark.slow
def test_a_decoder_alone(tmp_path: Path):
    """By its folder, what is written behind prompts of any length, from one token on; of weights
    in fp16 by a decoder whose own are rounded so."""
    write_peer("llama grouped, wide heads", tmp_path / "theirs")
    out = tmp_path / "out"
    words = ["export", str(tmp_path / "theirs"), "--out", str(out), "--format", "onnx"]
    assert main([*words, "--weights", "fp16"]) == 0
    told = json.loads((out / "model.json").read_text())
    read, step = (session(out, told[name]["file"]) for name in ("prefill", "step"))
    assert 0 < told["beside_torch"]["largest_difference"] < 1e-2
    decoder, _ = mmtrain.load_decoder(tmp_path / "theirs")
    for weight in decoder.parameters():
        weight.data = weight.data.half().float() if weight.numel() >= 1024 else weight.data
    names = [port.name for port in step.get_inputs()]
    for rows in ([[7]], [[3, 4, 5, 6, 7, 8], [9], [1, 2]]):
        tokens, real = left_pad(rows)
        start = prefill(decoder, tokens, real_BT=real, max_new_tokens=5)
        wanted = generate(decoder, start, GenerationConfig(max_new_tokens=5))
        ids = torch.tensor([row + [0] * (max(map(len, rows)) - len(row)) for row in rows]).numpy()
        lengths = torch.tensor([len(row) for row in rows]).numpy()
        logits, *cache = read.run(None, {"input_ids": ids, "lengths": lengths})
        written = [logits.argmax(-1)]
        for _ in range(4):
            logits, *cache = step.run(None, dict(zip(names, [written[-1], *cache], strict=True)))
            written.append(logits.argmax(-1))
        assert np.stack(written, axis=1).tolist() == wanted


def test_logits_that_are_not_torchs_are_an_error():
    logits = torch.tensor([[3.0, -40.0]])
    for apart, weights, is_refused in (
        (3e-3, "fp32", False),
        (8e-3, "fp32", True),
        (1.0, "int8", False),
    ):
        difference = onnx_decoder.logits_apart(logits + apart, logits)
        assert difference == pytest.approx(apart / 40, rel=1e-2)
        with pytest.raises(UsageError, match="from torch's") if is_refused else nullcontext():
            onnx_decoder.refuse_other_logits(difference, weights=weights, told="the decoder")
    assert onnx_decoder.logits_apart(logits * torch.nan, logits) == torch.inf
