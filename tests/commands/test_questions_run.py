"""A run that answers is exported, embedded, probed and summed up; what it has not is told."""

import json
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch

from mmtrain.cli import main
from mmtrain.data.images.transforms import eval_transform
from mmtrain.eval.samples import decode_sample
from mmtrain.loading.vqa import load_vqa
from mmtrain.models.answering_tower import AnsweringTower
from mmtrain.nn import unit_norm
from mmtrain.settings.decode import dump_toml
from tests.tasks.decoder_starts import CHATML, started_recipe, write_decoder
from tests.tasks.test_vqa_run import write_recipe

KINDS = ("both", "classify", "generate", "started")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run with both heads, one with either, one that began from a decoder's folder."""
    base = tmp_path_factory.mktemp("runs")
    for kind in KINDS:
        (base / kind).mkdir()
        if kind == "started":
            (base / "decoder").mkdir()
            decoder = write_decoder(base / "decoder", chat=CHATML)
            recipe = started_recipe(base / kind, decoder)
        else:
            recipe = write_recipe(base / kind)
            content = tomllib.loads(recipe.read_text())
            for other in {"classify": ("generate",), "generate": ("classify", "min_count")}.get(
                kind, ()
            ):
                del content["vqa"][other]
            if kind == "generate":
                content["vqa"]["front_door"]["places"] = ["image"]
            recipe.write_text(dump_toml(content | {"eval": {}}))
        assert main(["train", str(recipe), "--train.steps", "1"]) == 0
    return {kind: base / kind / "run" for kind in KINDS}


def one_line(capsys: pytest.CaptureFixture[str], words: list[str]) -> str:
    capsys.readouterr()
    assert main(words) == 2, words
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize("kind", KINDS)
def test_our_form_holds_all_of_it(runs, kind: str, tmp_path: Path):
    for command in (["export", str(runs[kind]), "--out"], ["convert", str(runs[kind])]):
        out = tmp_path / command[0]
        assert main([*command, str(out)]) == 0
        have, want = load_vqa(out), load_vqa(runs[kind])
        theirs = want.model.state_dict()
        assert all(torch.equal(x, theirs[name]) for name, x in have.model.state_dict().items())
        assert have.vocabulary == want.vocabulary and have.decoder_files == want.decoder_files
        assert have.answer_length == want.answer_length


@pytest.mark.parametrize("kind", KINDS)
def test_other_forms_say_what_it_has_not(runs, kind: str, tmp_path: Path, capsys):
    run, out = runs[kind], tmp_path / "out"
    for form in ("open-clip", "hf", "timm"):
        line = one_line(capsys, ["export", str(run), "--out", str(out), "--format", form])
        assert f"--format = {form}" in line and "before the last norm and the projection" in line
        assert ("or hf-decoder" in line) == (kind != "classify")
    words = ["export", str(run), "--out", str(out), "--format", "hf-decoder"]
    if kind == "started":
        assert main(words) == 0
    elif kind == "classify":
        assert "has no decoder to write" in one_line(capsys, words)
    else:
        assert "one that vqa.generate.init began can be written" in one_line(capsys, words)
    words = ["export", str(run), "--out", str(tmp_path / "x"), "--architecture", "ViT-B-32"]
    assert "--architecture = ViT-B-32 is for a CLIP's weights" in one_line(capsys, words)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_embedded_images_are_those_of_its_tower(runs, kind: str, tmp_path: Path, capsys):
    images, out = runs[kind].parent / "images", tmp_path / "rows"
    words = ["embed", "--model", str(runs[kind]), "--data", str(images), "--out", str(out)]
    assert main([*words, "--dtype", "float32"]) == 0
    assert "no text is in that space" in capsys.readouterr().out
    keys = json.loads((out / "keys-00000.json").read_text())
    rows = np.load(out / "features-00000.npy")
    saved = load_vqa(runs[kind])
    tower, transform = AnsweringTower(saved.model), eval_transform(saved.preprocess)
    files = sorted(images.iterdir())
    assert len(keys) == len(rows) == len(files)
    with torch.no_grad():
        for row, file in zip(rows, files, strict=True):
            pixels = transform(decode_sample({file.suffix[1:]: file.read_bytes()}))
            want = unit_norm(tower.encode_image(pixels[None]))[0]
            torch.testing.assert_close(torch.from_numpy(row), want, rtol=0, atol=1e-5)
    assert np.ptp(rows, axis=0).max() > 1e-3  # images differ


def test_images_are_classified_by_its_tower_and_texts_are_refused(runs, tmp_path: Path, capsys):
    for name in ("red", "blue"):
        for number in range(4):
            place = tmp_path / "data" / name
            place.mkdir(parents=True, exist_ok=True)
            source = sorted((runs["both"].parent / "images").iterdir())[number]
            (place / source.name).write_bytes(source.read_bytes())
    data, out = str(tmp_path / "data"), ["--out", str(tmp_path / "r.json")]
    sets = ["--train", data, "--test", data]
    model = ["--model", str(runs["both"])]
    assert main(["eval", "knn", *model, *sets, "--neighbours", "1", *out]) == 0
    assert json.loads((tmp_path / "r.json").read_text())["num_samples"] == 8
    line = one_line(capsys, ["eval", "zero-shot", *model, "--data", data, *out])
    assert "is no CLIP" in line and "`eval knn` for its image tower" in line


@pytest.mark.parametrize("kind", KINDS)
def test_the_summary_has_flops_by_part(runs, kind: str, capsys):
    shown: list[str] = []
    for what in (runs[kind], runs[kind].parent / "recipe.toml"):
        assert main(["summary", str(what)]) == 0
        shown.append(capsys.readouterr().out.splitlines()[-1].partition(": ")[2])
    model = load_vqa(runs[kind]).model
    assert shown[0] == shown[1]
    assert f"{sum(p.numel() for p in model.parameters()):,} parameters" in shown[0]
    for name in ("vision", "text", "classify", "generate"):
        assert (f"FLOPs {name}" in shown[0]) == (getattr(model, name) is not None), name
    assert main(["report", str(runs[kind])]) == 0
