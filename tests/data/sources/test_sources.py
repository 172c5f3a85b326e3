"""Manifests, ImageFolder, saved data sets and synthetic samples train through the same order."""

import csv
import io
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from mmtrain.data.config import DataConfig
from mmtrain.data.image_text import ImageTextData
from mmtrain.data.images.transforms import PreprocessConfig
from mmtrain.data.questions.source import open_questions
from mmtrain.data.sample_error import SampleError
from mmtrain.data.shards.source import ShardSource
from mmtrain.data.sources.image_folder import ImageFolderSource
from mmtrain.data.sources.open import open_source
from mmtrain.data.sources.source import SampleSource
from mmtrain.data.text.tokenizer import TokenizerConfig, build_tokenizer
from mmtrain.errors import UsageError
from tests.data.questions.vqa_files import write_set

NUM = 12
COLORS = ["red", "green", "blue"]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """red/00.png ... in class folders."""
    folder = tmp_path_factory.mktemp("images")
    for number in range(NUM):
        color = COLORS[number % 3]
        (folder / f"{color}_thing").mkdir(exist_ok=True)
        image = Image.radial_gradient("L").resize((40, 30 + number)).convert("RGB")
        tint = Image.new("RGB", image.size, color)
        Image.blend(image, tint, 0.5).save(folder / f"{color}_thing/{number:02d}.png")
    return folder


def rows(images: Path) -> list[dict[str, str]]:
    """A row an image; one caption spans lines and has the separators in it."""
    return [
        {
            "filepath": f"{images.name}/{path.relative_to(images)}",
            "title": f'a "{path.parent.name}",\n\tnumber {path.stem} – é',
        }
        for path in sorted(images.rglob("*.png"))
    ]


def write_manifest(images: Path, suffix: str) -> Path:
    """The manifest beside the folder of images."""
    path = images.parent / f"pairs{suffix}"
    with path.open("w", newline="", encoding="utf-8") as file:
        if suffix == ".jsonl":
            file.writelines(json.dumps(row) + "\n" for row in rows(images))
        else:
            delimiter = "," if suffix == ".csv" else "\t"
            writer = csv.DictWriter(file, ["filepath", "title"], delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows(images))
    return path


def build(train: str, **config) -> ImageTextData:
    """Batches of four."""
    return ImageTextData(
        DataConfig(train=train, **config),
        preprocess=PreprocessConfig(image_size=16),
        tokenizer=build_tokenizer(TokenizerConfig(context_length=24)),
        seed=0,
        batch_size=4,
    )


def seen(data: ImageTextData, epochs: int = 1) -> list[str]:
    """Keys in the order of training."""
    stop = epochs * data.batches_per_epoch
    return [key for batch in data.iterate(0, stop) for key in batch.keys]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_manifest(images: Path, suffix: str) -> None:
    """Every row once an epoch, its caption and pixels; resumed anywhere, the same batch."""
    path = write_manifest(images, suffix)
    data = build(str(path), captions={"title": 1.0}, caption_lines=False)
    assert data.num_samples == NUM
    keys = seen(data, epochs=2)
    everything = sorted(row["filepath"] for row in rows(images))
    assert sorted(keys[:NUM]) == everything == sorted(keys[NUM:]) and keys[:NUM] != keys[NUM:]
    again = next(data.iterate(4, 5))
    assert list(again.keys) == keys[16:20]
    source = open_source(str(path), image_key="filepath")
    fields = json.loads(source.read(3)["json"])
    assert fields == rows(images)[3]
    assert source.read(3)["png"] == (images.parent / fields["filepath"]).read_bytes()


def test_manifest_gives_the_batches_of_the_same_shards(images: Path, tmp_path: Path) -> None:
    """Packed into one shard in the same order, the same pixels and tokens come out."""
    import tarfile

    shard = tmp_path / "one.tar"
    with tarfile.open(shard, "w") as tar:
        for number, row in enumerate(rows(images)):
            content = {"png": (images.parent / row["filepath"]).read_bytes()}
            content["json"] = json.dumps(row).encode()
            for extension, data in content.items():
                info = tarfile.TarInfo(f"{number:04d}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    path = write_manifest(images, ".jsonl")
    ours = build(str(path), captions={"title": 1.0}, caption_lines=False).batch(1)
    packed = build(str(shard), captions={"title": 1.0}, caption_lines=False).batch(1)
    assert torch.equal(ours.images_BCHW, packed.images_BCHW)
    assert torch.equal(ours.tokens_BT, packed.tokens_BT)


def test_image_folder(images: Path) -> None:
    """The caption is the class's name; the label groups a class."""
    data = build(str(images), label_key="class")
    batches = list(data.iterate(0, 3))
    keys = [key for batch in batches for key in batch.keys]
    labels = torch.cat([batch.label_B for batch in batches]).tolist()
    assert sorted(keys) == sorted(str(path.relative_to(images)) for path in images.rglob("*.png"))
    assert len(set(labels)) == 3
    assert len({(key.split("/")[0], label) for key, label in zip(keys, labels, strict=True)}) == 3
    assert ImageFolderSource(images).read(0)["txt"] == b"blue thing"


@pytest.mark.parametrize("form", ["arrow", "parquet"])
def test_saved_data_set(images: Path, tmp_path: Path, form: str) -> None:
    """A Hugging Face data set: images undecoded, every other column at hand."""
    import datasets

    table = {"image": [], "caption": []}
    for row in rows(images):
        content = (images.parent / row["filepath"]).read_bytes()
        table["image"].append({"bytes": content, "path": None})
        table["caption"].append(row["title"])
    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    saved = datasets.Dataset.from_dict(table, features=features)
    if form == "arrow":
        saved.save_to_disk(str(tmp_path / "set"))
    else:
        (tmp_path / "set").mkdir()
        saved.to_parquet(str(tmp_path / "set/0.parquet"))
    data = build(
        str(tmp_path / "set"), image_key="image", captions={"caption": 1.0}, caption_lines=False
    )
    assert sorted(seen(data)) == sorted(f"row {number}" for number in range(NUM))
    assert data.source.read(2)["png"] == table["image"][2]["bytes"]
    with pytest.raises(UsageError, match=r"image_key = filepath is no column .*image, caption"):
        build(str(tmp_path / "set"))


def saved_with_paths(images: Path) -> str:
    """A saved data set whose images are elsewhere."""
    import datasets

    table = [row | {"filepath": str(images.parent / row["filepath"])} for row in rows(images)]
    datasets.Dataset.from_list(table).save_to_disk(str(images.parent / "saved"))
    return str(images.parent / "saved")


def captions_beside(images: Path) -> str:
    """A folder of images with a caption beside each."""
    for path in images.rglob("*.png"):
        path.with_suffix(".txt").write_text(path.parent.name)
    return str(images)


@pytest.mark.parametrize(
    "open_made",
    [
        lambda images: open_source(str(write_manifest(images, ".csv")), image_key="filepath"),
        lambda images: open_source(str(images), image_key="filepath"),
        lambda images: open_source(captions_beside(images), image_key="filepath"),
        lambda images: open_source(saved_with_paths(images), image_key="filepath"),
        lambda images: open_questions(**write_set(images.parent / "asked")),
    ],
    ids=["manifest", "image folder", "captions beside", "saved", "questions"],
)
def test_no_image_is_opened_for_the_texts_alone(
    images: Path, tmp_path: Path, open_made: Callable[[Path], SampleSource]
) -> None:
    """Counting the answers of 80,000 photos must not read the photos."""
    source = open_made(Path(shutil.copytree(images, tmp_path / "images")))
    before = source.read(3)
    for path in tmp_path.rglob("*.png"):
        path.unlink()
    texts = source.read(3, {"json", "txt"})
    assert texts and texts == {name: before[name] for name in before.keys() & {"json", "txt"}}
    with pytest.raises(SampleError, match="image missing"):
        source.read(3)


def test_synthetic() -> None:
    """As many as asked for, the same every time."""
    data = build("synthetic:20")
    assert data.num_samples == 20 and sorted(seen(data), key=int) == [str(n) for n in range(20)]
    assert torch.equal(data.batch(2).images_BCHW, build("synthetic:20").batch(2).images_BCHW)
    with pytest.raises(UsageError, match="synthetic:N"):
        build("synthetic:many")


def test_missing_image_is_a_bad_sample(images: Path, tmp_path: Path) -> None:
    """Replaced and named, as in shards."""
    manifest = tmp_path / "pairs.jsonl"
    good = {"filepath": str(next(images.rglob("*.png"))), "title": "x"}
    gone = {"filepath": "gone.png", "title": "y"}
    lines = [good] * 7 + [gone]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in lines))
    batches = list(build(str(manifest), captions={"title": 1.0}, caption_lines=False).iterate(0, 2))
    bad = [sample for batch in batches for sample in batch.bad]
    assert [(one.key, one.reason, one.shard) for one in bad] == [
        ("gone.png", "image missing", f"{manifest}:8")
    ]
    assert bad[0].detail == f"looked for at {tmp_path / 'gone.png'}"
    with pytest.raises(SampleError, match="image missing"):
        open_source(str(manifest), image_key="filepath").read(7)


@pytest.mark.parametrize(
    ("content", "config", "told"),
    [
        ("filepath,title\n", {}, "has no rows"),
        ("image,title\na.png,x\n", {}, "set data.image_key = image"),
        ("filepath,title\na.png,x\n", {"verify": True}, "data.verify = true needs checksums"),
    ],
    ids=["empty", "column", "verify"],
)
def test_mistakes(tmp_path: Path, content: str, config: dict, told: str) -> None:
    """One line each."""
    path = tmp_path / "pairs.csv"
    path.write_text(content)
    with pytest.raises(UsageError, match=told):
        build(str(path), **config)


def test_folders_of_tars_stay_shards_and_sources_pickle(images: Path) -> None:
    """What was shards before is shards still; workers get a source by pickle or fork."""
    assert isinstance(open_source("mmtrain/demo/debug", image_key="webp"), ShardSource)
    for path in (str(images), str(write_manifest(images, ".csv")), "synthetic:3"):
        source = open_source(path, image_key="filepath")
        twin = pickle.loads(pickle.dumps(source))
        assert twin.key(1) == source.key(1) and twin.fingerprint == source.fingerprint


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_folder_of_indexes_is_for_shards(images: Path, tmp_path: Path, suffix: str) -> None:
    manifest = str(write_manifest(images, suffix))
    for key, option in (("data.train", r"data\.index_dir"), ("test", "index_dir")):
        with pytest.raises(UsageError, match=f"^{option} = x has no effect: {key} = "):
            open_source(manifest, index_dir="x", key=key)
