"""Distillation from features that a teacher made before, of whole images."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmtrain.cli import main
from mmtrain.data.config import DataConfig
from mmtrain.data.image_text import ImageTextData
from mmtrain.data.images.transforms import AugmentConfig
from mmtrain.data.members import StoredFeatures
from mmtrain.loading import load
from mmtrain.losses import feature_loss_B
from tests.mistakes import mistake

WHOLE = AugmentConfig(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0))
SHARDS = "mmtrain/demo/debug/train.tar"
TERM = '[{kind = "distill", features = "features", target = "features", weight = 0.5}]'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher's run, and its features of the shards: `all`, and `some` with 40 of 64."""
    folder = tmp_path_factory.mktemp("stored")
    words = ["--run-dir", str(folder / "teacher"), "--train.steps", "2"]
    assert main(["train", "configs/debug_clip.toml", *words]) == 0
    words = ["--model", str(folder / "teacher"), "--data", SHARDS, "--out", str(folder / "all")]
    assert main(["embed", *words]) == 0
    (folder / "some").mkdir()
    keys = json.loads((folder / "all" / "keys-00000.json").read_text())
    features_NE = np.load(folder / "all" / "features-00000.npy")
    (folder / "some" / "keys-00000.json").write_text(json.dumps(keys[:40]))
    np.save(folder / "some" / "features-00000.npy", features_NE[:40])
    return folder


def train(folder: Path, run: Path, *words: str, join: str = "all", term: str = TERM) -> list[Any]:
    words = ("--data.join", str(folder / join), "--loss.terms", term, "--run-dir", str(run), *words)
    assert main(["train", "configs/debug_clip.toml", "--train.steps", "4", *words]) == 0
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def batches(folder: Path, augment: AugmentConfig) -> Any:
    model, preprocess, tokenizer = load(folder / "teacher")
    data = ImageTextData(
        DataConfig(train=SHARDS, join=(str(folder / "all"),), augment=augment),
        preprocess=preprocess.config,
        tokenizer=tokenizer,
        seed=0,
        batch_size=16,
    )
    data.keep_stored(StoredFeatures(name="features", width=32), key="loss.terms[0]")
    return model, [data.batch(number) for number in range(4)]


def test_they_are_those_of_the_teacher_run_live_on_whole_images(folder: Path):
    model, given = batches(folder, WHOLE)
    with torch.no_grad():
        for batch in given:
            live_BE = model.encode_image(batch.images_BCHW)
            assert feature_loss_B(live_BE, batch.stored_BE).max() < 1e-6  # they are fp16


def test_beside_crops_they_stay_those_of_whole_images(folder: Path):
    _, whole = batches(folder, WHOLE)
    model, crops = batches(folder, AugmentConfig(crop_scale=(0.3, 0.5)))
    with torch.no_grad():
        for batch, other in zip(crops, whole, strict=True):
            assert torch.equal(batch.stored_BE, other.stored_BE)
            assert feature_loss_B(model.encode_image(batch.images_BCHW), batch.stored_BE).max() > 0


def test_a_run_learns_from_them(folder: Path, tmp_path: Path, capsys: Any):
    rows = train(folder, tmp_path / "one")
    for row in rows:
        assert row["loss"] == pytest.approx(row["loss/contrastive"] + 0.5 * row["loss/distill"])
    assert "features" in capsys.readouterr().err and rows[-1]["loss/distill"] > 0
    parts = train(folder, tmp_path / "parts", "--train.microbatches", "4", "--data.workers", "2")
    assert [r["loss"] for r in parts] == pytest.approx([r["loss"] for r in rows], rel=1e-4)


def test_samples_without_are_bad_or_left_out(folder: Path, tmp_path: Path):
    """16 of 24 without a row is too many to be all bad, unless that is allowed."""
    kept = train(folder, tmp_path / "keep", "--data.join_missing", "keep", join="some")
    assert sum(row["data_unjoined"] for row in kept) == 24
    assert all(row["loss/distill"] > 0 for row in kept)
    bad = train(folder, tmp_path / "bad", "--data.max_bad_fraction", "0.5", join="some")
    assert bad[-1]["epoch_accounts"]["data"]["bad"] == 24


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--loss.terms", '[{kind = "distill"}]'], "set either teacher or features"),
        (
            ["--loss.terms", '[{kind = "distill", features = "x", teacher = "y"}]'],
            "set either teacher or features",
        ),
        (["--loss.terms", '[{kind = "distill", features = "features"}]'], 'target = "features"'),
        (["--loss.terms", TERM], "none of 64 samples looked at has features.npy; data.join"),
        (
            ["--loss.terms", TERM.replace('"features", t', '"other", t'), "--data.join", "ALL"],
            "none of 64 samples looked at has other.npy",
        ),
        (
            ["--loss.terms", TERM, "--data.join", "ALL", "--model.embed_dim", "16"],
            "shape (32,), wanted 16 numbers",
        ),
    ],
)
def test_mistakes_are_one_line(
    folder: Path, tmp_path: Path, capsys: Any, words: list[str], told: str
):
    words = [str(folder / "all") if word == "ALL" else word for word in words]
    run = ["--run-dir", str(tmp_path / "run")]
    line = mistake(capsys, "train", "configs/debug_clip.toml", *words, *run)
    assert told in line, line
