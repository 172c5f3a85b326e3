"""`image_key` says where images are, or is refused: no kind of data passes it over."""

import zipfile
from pathlib import Path

import pytest
from datasets import Dataset
from PIL import Image

from mmtrain.cli import main
from mmtrain.data.sources.open import open_source
from mmtrain.errors import UsageError
from mmtrain.eval.classify.layouts import open_labelled
from tests.data.shard_files import encoded, picture, write_shard
from tests.mistakes import mistake

PNG = encoded(picture((8, 8)), "PNG")
COLUMNS = "data.image_key = photo is no column of"
KINDS = {
    "shards": "none of 2 samples has it; the first, a, has .png, .seg, .txt",
    "classes": "has no column to choose",
    "captions": "has no column to choose",
    "metadata": "has no column to choose",
    "zip": "has no column to choose",
    "synthetic": "has no column to choose",
    "csv": COLUMNS,
    "jsonl": COLUMNS,
    "saved": COLUMNS,
    "parquet": COLUMNS,
}
"""What a key that is nowhere is told for."""


@pytest.fixture
def data(tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """Two samples of the kind; a manifest's images are under filepath."""
    kind, folder = request.param, tmp_path / "data"
    if kind == "synthetic":
        return "synthetic:2"
    folder.mkdir()
    if kind == "shards":
        files = {"png": PNG, "seg": PNG, "txt": "a thing"}
        return str(write_shard(tmp_path / "x.tar", [("a", files), ("b", files)]))
    for key in "ab":
        place = folder / key if kind == "classes" else folder
        place.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(place / f"{key}.png")
        if kind in ("captions", "zip"):
            (place / f"{key}.txt").write_text("a thing")
    if kind == "zip":
        with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
            for path in sorted(folder.iterdir()):
                archive.write(path, path.name)
        return str(tmp_path / "x.zip")
    if kind == "metadata":
        (folder / "metadata.csv").write_text("file_name,text\na.png,a thing\nb.png,another\n")
    rows = {"filepath": ["data/a.png", "data/b.png"], "txt": ["a thing"] * 2}
    if kind in ("csv", "jsonl"):
        path = tmp_path / f"x.{kind}"
        table = Dataset.from_dict(rows)
        table.to_csv(path, index=False) if kind == "csv" else table.to_json(path)
        return str(path)
    images = {"filepath": [{"bytes": PNG, "path": None}] * 2, "txt": ["a thing"] * 2}
    if kind == "parquet":
        Dataset.from_dict(images).to_parquet(tmp_path / "x.parquet")
        return str(tmp_path / "x.parquet")
    if kind == "saved":
        Dataset.from_dict(images).save_to_disk(tmp_path / "saved")
        return str(tmp_path / "saved")
    return str(folder)


@pytest.mark.parametrize(("data", "told"), KINDS.items(), indirect=["data"], ids=KINDS)
def test_a_key_that_is_nowhere_is_refused(
    data: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError, match="image_key = photo") as refused:
        open_source(data, image_key="photo")
    assert told in str(refused.value)
    assert open_source(data).num_samples == 2
    if data != "synthetic:2":
        assert "--image-key = photo" in mistake(
            capsys, "data", "check", data, "--image-key", "photo"
        )


@pytest.mark.parametrize("data", ["shards"], indirect=True)
def test_a_key_that_shards_have_is_read(data: str) -> None:
    assert open_source(data, image_key="seg").read(0).keys() == {"image", "txt"}


@pytest.mark.parametrize("data", ["csv"], indirect=True)
def test_a_key_may_be_of_one_of_two_sets(data: str, tmp_path: Path) -> None:
    """Of an evaluation that learns from a manifest and judges a folder of classes."""
    table = Path(data)
    table.write_text(table.read_text().replace("filepath", "photo"))
    folder = tmp_path / "classes" / "thing"
    folder.mkdir(parents=True)
    (folder / "a.png").write_bytes(PNG)
    (folder.parent / "another").mkdir()
    (folder.parent / "another" / "b.png").write_bytes(PNG)
    sets = {"train": str(folder.parent), "test": str(folder.parent)}
    with pytest.raises(UsageError, match="image_key = photo has no effect on train, test"):
        open_labelled(sets, image_key="photo")
    with pytest.raises(UsageError, match="test has its classes under 'concept' and train"):
        open_labelled(sets | {"test": data}, image_key="photo")


def test_a_run_is_refused_before_it_begins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    words = ["configs/debug_clip.toml", "--run-dir", str(run), "--data.image_key", "photo"]
    assert "data.image_key = photo: none of" in mistake(capsys, "train", *words)
    assert not run.exists()
    assert main(["train", *words[:3], "--train.steps", "1", "--data.image_key", "webp"]) == 0
