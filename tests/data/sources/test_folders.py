"""Folders of shards, of classes, of images with captions; and those that may be several of them."""

import json
import os
import shutil
import tarfile
from pathlib import Path

import pytest

from mmtrain.cli import main
from mmtrain.data.sample_error import SampleError
from mmtrain.data.shards.source import ShardSource
from mmtrain.data.sources.arrow import ArrowSource
from mmtrain.data.sources.image_folder import CaptionFolderSource, ImageFolderSource
from mmtrain.data.sources.manifest import ManifestSource
from mmtrain.data.sources.open import open_source
from mmtrain.data.sources.source import SampleSource
from mmtrain.errors import UsageError
from mmtrain.eval.classify.layouts import open_labelled
from tests.data.shard_files import encoded, picture, write_shard

PNG = encoded(picture((8, 8)), "PNG")
PLACES = {
    "flat": ["0.png", "1.JPG", "2.gif"],
    "classes": ["cat/0.png", "cat/1.png", "a_dog/2.png"],
    "nested": ["00000/0.png", "00000/deep/er/1.png", "00001/2.v2.png"],
    "top and folders": ["0.png", "a/1.png", "b/2.png"],
    "one folder": ["images/0.png", "images/1.png", "images/2"],
}
LEFT_BEHIND = [
    *(".DS_Store", "._0.png", "cat/._0.png", ".ipynb_checkpoints/0-checkpoint.png", "Thumbs.db"),
    *("__MACOSX/cat/0.png", "__MACOSX/._0.png", "cat/.x.txt", "desktop.ini", "cat/Thumbs.db"),
    *(".cache/huggingface/a.png", ".git/a.jsonl", "._metadata.csv", "._00000.tar", "@eaDir/0.png"),
]


def write(folder: Path, *names: str, content: bytes = PNG) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def opened(path: Path | str, image_key: str = "filepath") -> SampleSource:
    return open_source(str(path), image_key=image_key)


def told(path: Path | str, image_key: str = "filepath") -> str:
    with pytest.raises(UsageError) as caught:
        opened(path, image_key)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def texts(source: SampleSource) -> dict[str, str]:
    """The .txt of each sample, by its key."""
    found = {}
    for number in range(source.num_samples):
        members = source.read(number)
        assert PNG in members.values()
        found[source.key(number)] = members.get("txt", b"").decode()
    return found


@pytest.mark.parametrize("beside", ["stem", "name"])
@pytest.mark.parametrize("place", PLACES)
def test_captions_beside_images_are_read_wherever_they_are(tmp_path, place, beside) -> None:
    names = PLACES[place]
    write(tmp_path, *names, *LEFT_BEHIND)
    for name in names:
        path = tmp_path / name
        text = path.with_suffix(".txt") if beside == "stem" else Path(f"{path}.txt")
        text.write_text(f"caption of {name}")
        text.with_suffix(".json").write_text(json.dumps({"alt": name}))
    source = opened(tmp_path)
    assert texts(source) == {name: f"caption of {name}" for name in names}
    assert {json.loads(source.read(n, {"json"})["json"])["alt"] for n in range(3)} == set(names)
    before = source.fingerprint
    assert opened(tmp_path).fingerprint == before
    next(tmp_path.rglob("0*.txt")).write_text(f"caption  f {names[0]}")  # of the same length
    assert opened(tmp_path).fingerprint != before


@pytest.mark.parametrize("extra", [[], LEFT_BEHIND])
def test_classes_are_the_folders_that_nobody_hid(tmp_path, extra) -> None:
    source = opened(write(tmp_path, *PLACES["classes"], *extra))
    assert isinstance(source, ImageFolderSource) and source.classes == ["a_dog", "cat"]
    assert list(texts(source).values()) == ["a dog", "cat", "cat"]
    classes = open_labelled({"data": str(tmp_path)}).classes
    assert classes.ids == ("a_dog", "cat")


def test_photographs_alone_are_images_without_captions(tmp_path) -> None:
    source = opened(write(tmp_path, *PLACES["flat"], *LEFT_BEHIND))
    assert texts(source) == dict.fromkeys(PLACES["flat"], "")


@pytest.mark.parametrize(
    ("place", "captioned", "readings"),
    [
        ("classes", 1, ["classes:", "captions:"]),
        ("one folder", 2, ["classes:", "captions:"]),
        ("top and folders", 0, ["classes:", "captions:"]),
    ],
)
def test_two_readings_are_refused_and_each_can_be_asked_for(
    tmp_path, place, captioned, readings
) -> None:
    names = PLACES[place]
    write(tmp_path, *names)
    for name in names[:captioned]:
        (tmp_path / name).with_suffix(".txt").write_text("x")
    message = told(tmp_path)
    assert all(f"{reading}{tmp_path}" in message for reading in readings)
    assert isinstance(opened(f"classes:{tmp_path}"), ImageFolderSource)
    captions = opened(f"captions:{tmp_path}")
    assert isinstance(captions, CaptionFolderSource) and captions.num_samples == 3


def test_a_flat_folder_with_some_captions_has_one_reading(tmp_path) -> None:
    write(tmp_path, *PLACES["flat"])
    (tmp_path / "1.txt").write_text("x")
    assert texts(opened(tmp_path)) == {"0.png": "", "1.JPG": "x", "2.gif": ""}


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
@pytest.mark.parametrize("place", PLACES)
def test_a_metadata_table_is_read_for_its_folder(tmp_path, place, suffix) -> None:
    """Hugging Face's ImageFolder."""
    names = PLACES[place]
    write(tmp_path, *names, *LEFT_BEHIND)
    rows = [{"file_name": name, "text": f"caption of {name}"} for name in names]
    path = tmp_path / f"metadata{suffix}"
    lines = [json.dumps(row) for row in rows]
    if suffix == ".csv":
        lines = ["file_name,text", *(",".join(row.values()) for row in rows)]
    path.write_text("\n".join(lines))
    source = opened(tmp_path)
    assert isinstance(source, ManifestSource)
    assert texts(source) == {name: f"caption of {name}" for name in names}
    path.write_text("\n".join(lines[:-1]))
    assert str(path) in told(tmp_path)  # an image that the table does not name
    assert opened(path, "file_name").num_samples == 2
    path.write_text("\n".join(lines))
    (tmp_path / names[0]).with_suffix(".txt").write_text("another caption")
    assert str(path) in told(tmp_path) and f"captions:{tmp_path}" in told(tmp_path)


@pytest.mark.parametrize("table", ["pairs.csv", "a.TSV", "captions.txt", "Captions.json"])
@pytest.mark.parametrize("place", ["flat", "classes", "one folder"])
def test_a_table_beside_folders_of_images_is_not_passed_over(tmp_path, place, table) -> None:
    write(tmp_path, *PLACES[place])
    write(tmp_path, table, content=b"filepath,title\n")
    assert f"{tmp_path}/{table}" in told(tmp_path)
    assert f"captions:{tmp_path}" in told(tmp_path)


@pytest.mark.parametrize("splits", [["train", "val"], ["train"], ["Test", "validation", "dev"]])
@pytest.mark.parametrize("beside", [None, ".txt", "metadata.csv"])
def test_splits_are_not_mixed(tmp_path, splits, beside) -> None:
    for split in splits:
        write(tmp_path, f"{split}/cat/0.png")
        if beside == ".txt":
            write(tmp_path, f"{split}/cat/0.txt", content=b"x")
        elif beside:
            write(tmp_path, f"{split}/{beside}", content=b"file_name,text\ncat/0.png,x\n")
    assert all(str(tmp_path / split) in told(tmp_path) for split in splits)
    assert opened(tmp_path / splits[0]).num_samples == 1


@pytest.mark.parametrize(
    "others",
    [
        ["00000.parquet", "00000_stats.json"],
        ["dataset_info.json"],
        ["metadata.csv", "a.png", "a.txt"],
        ["cat/0.png", "._00000.tar", "classnames.txt"],
        ["__MACOSX/._00000.tar", "notes.jsonl"],
    ],
)
@pytest.mark.parametrize("name", ["00000.tar", "00000.TAR"])
def test_a_folder_with_tars_is_a_folder_of_shards(tmp_path, others, name) -> None:
    write_shard(tmp_path / name, [("a", {"png": PNG, "txt": "x"})])
    write(tmp_path, *others)
    source = opened(tmp_path)
    assert isinstance(source, ShardSource) and source.num_samples == 1


def test_hidden_members_and_shards_count_nowhere(tmp_path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        write(tmp_path / "x", "0.png", "0.txt", *LEFT_BEHIND)
        for name in ("0.png", "0.txt", *LEFT_BEHIND):
            tar.add(tmp_path / "x" / name, f"./{name}")
    shutil.copy(tmp_path / "a.tar", tmp_path / "._b.tar")
    write(tmp_path, "__MACOSX/a.tar", "desktop.ini", "Thumbs.db")
    for pattern in (f"{tmp_path}/*", str(tmp_path), f"{tmp_path}/**/*.tar"):
        source = open_source(pattern, image_key="filepath")
        assert [source.key(number) for number in range(source.num_samples)] == ["./0"]


# Hugging Face data sets.


def write_parquet(path: Path, columns: dict) -> Path:
    import pyarrow
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.table(columns), path)
    return path


TWO = {"image": [{"bytes": PNG, "path": None}] * 2, "caption": ["a", "b"]}


@pytest.mark.parametrize(
    "names",
    [
        ["0.parquet"],
        ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"],
        ["train/0000.parquet", "train/0001.parquet"],
    ],
)
def test_parquet_of_one_split(tmp_path, names) -> None:
    for name in names:
        write_parquet(tmp_path / name, TWO)
    write(tmp_path, "README.md", ".gitattributes", ".cache/test.parquet")
    source = opened(tmp_path, "image")
    assert isinstance(source, ArrowSource) and source.num_samples == 2 * len(names)
    assert source.read(1, {"txt"}) == {"txt": b"b"}
    assert opened(tmp_path / names[0], "image").num_samples == 2
    pattern = f"{tmp_path}/**/*.parquet"
    assert opened(pattern, "image").num_samples == 2 * len(names)


@pytest.mark.parametrize(
    ("names", "choices"),
    [
        (
            ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet",
             "data/test-00000-of-00001.parquet"],
            ["data/train-*.parquet", "data/test-00000-of-00001.parquet"],
        ),
        (["train.parquet", "validation.parquet"], ["train.parquet", "validation.parquet"]),
        (["a/0000.parquet", "b/0000.parquet"], ["a/0000.parquet", "b/0000.parquet"]),
    ],
)  # fmt: skip
def test_parquet_of_several_splits_names_them(tmp_path, names, choices) -> None:
    for name in names:
        write_parquet(tmp_path / name, TWO)
    for choice in choices:
        assert f"{tmp_path}/{choice}" in told(tmp_path, "image")
        assert opened(f"{tmp_path}/{choice}", "image").num_samples in (2, 4)


def test_parquet_with_paths_bytes_and_what_cannot_be_used(tmp_path) -> None:
    write(tmp_path, "images/0.png")
    write_parquet(tmp_path / "paths.parquet", {"image": ["images/0.png", "gone.png", None, ""]})
    source = opened(tmp_path / "paths.parquet", "image")
    assert source.read(0)["png"] == PNG
    for number, reason in ((1, "image missing"), (2, "no image"), (3, "no image path")):
        with pytest.raises(SampleError, match=f"^{reason}$") as caught:
            source.read(number)
        assert number != 1 or str(tmp_path / "gone.png") in caught.value.told
    write_parquet(tmp_path / "bytes.parquet", {"image": [PNG], "label": [float("nan")]})
    assert opened(tmp_path / "bytes.parquet", "image").read(0)["png"] == PNG
    write_parquet(tmp_path / "lists.parquet", {"image": [["images/0.png"] * 2]})
    assert "holds lists of images" in told(tmp_path / "lists.parquet", "image")
    write_parquet(tmp_path / "urls.parquet", {"image": ["https://x/y.jpg"] * 3})
    assert "holds URLs" in told(tmp_path / "urls.parquet", "image")


def test_parquet_beside_images_and_mixed_lists_are_refused(tmp_path) -> None:
    """img2dataset's form `files`."""
    write_parquet(tmp_path / "00000.parquet", {"url": ["x"]})
    write(tmp_path, "00000/0.png", "00000/0.txt")
    assert f"captions:{tmp_path}" in told(tmp_path)
    with pytest.raises(UsageError, match="one of several paths"):
        open_source((str(tmp_path / "a.csv"), str(tmp_path / "b.csv")), image_key="filepath")
    assert "several tables" in told(f"{tmp_path}/*.csv")


@pytest.mark.parametrize("splits", [["train"], ["test", "train"]])
def test_a_saved_data_set_of_splits(tmp_path, splits) -> None:
    import datasets

    rows = datasets.Dataset.from_dict(TWO)
    datasets.DatasetDict(dict.fromkeys(splits, rows)).save_to_disk(str(tmp_path / "set"))
    if len(splits) == 1:
        assert opened(tmp_path / "set", "image").num_samples == 2
        return
    assert all(f"{tmp_path}/set/{split}" in told(tmp_path / "set", "image") for split in splits)
    assert opened(tmp_path / "set/test", "image").read(1)["png"] == PNG


def saved_rows(folder: Path) -> Path:
    """The .arrow file of a saved data set of two rows."""
    import datasets

    kinds = datasets.Features(image=datasets.Image(), caption=datasets.Value("string"))
    datasets.Dataset.from_dict(TWO, features=kinds).save_to_disk(str(folder))
    return folder / "data-00000-of-00001.arrow"


def test_an_arrow_file_is_read_whole_or_refused(tmp_path) -> None:
    import pyarrow
    from pyarrow import feather, parquet

    path = saved_rows(tmp_path / "set")
    source = opened(path, "image")
    assert source.num_samples == 2 and source.read(1)["png"] == PNG
    assert source.read(1, {"txt"}) == {"txt": b"b"}
    for suffix in (".ARROW", ".feather"):
        copy = tmp_path / f"copy{suffix}"
        copy.write_bytes(path.read_bytes())
        assert opened(copy, "image").fingerprint == source.fingerprint  # by what it holds

    table = pyarrow.table({"image": [PNG], "caption": ["a"]})
    feather.write_feather(table, str(tmp_path / "file.arrow"))
    assert "file format (Feather)" in told(tmp_path / "file.arrow", "image")
    parquet.write_table(table, tmp_path / "other.arrow")
    assert "no Arrow stream" in told(tmp_path / "other.arrow", "image")
    content = path.read_bytes()
    for end in (0, 5, 300, len(content) - 8, len(content) - 1):  # without its end rows look whole
        (tmp_path / "cut.arrow").write_bytes(content[:end])
        assert "its end is missing" in told(tmp_path / "cut.arrow", "image")
    assert "No such file" in told(tmp_path / "gone.arrow", "image")
    assert "one is read" in told(f"{tmp_path}/*.arrow", "image")


def test_a_folder_of_arrow_files_names_what_can_be_read(tmp_path) -> None:
    path = saved_rows(tmp_path / "sets" / "train")
    assert f"name one: {tmp_path}/sets/train" in told(tmp_path / "sets", "image")
    (tmp_path / "cache" / "0.0.0").mkdir(parents=True)
    copy = tmp_path / "cache" / "0.0.0" / "photos-train.arrow"
    copy.write_bytes(path.read_bytes())
    assert f"name one file: {copy}" in told(tmp_path / "cache", "image")


def test_a_folder_with_what_is_no_file(tmp_path) -> None:
    """Pipes would be waited for without end; links that lead nowhere are missing files, or, where
    no name says what they are, nothing of ours."""
    write(tmp_path, *(f"{number}.png" for number in range(5)))
    for number in range(5):
        (tmp_path / f"{number}.txt").write_text("a text")
    for name in ("pipe", "5.png", "1.txt"):
        (tmp_path / name).unlink(missing_ok=True)
        os.mkfifo(tmp_path / name)
    for name, target in {"notes": "gone", "circle": "circle", "2.txt": "gone"}.items():
        (tmp_path / name).unlink(missing_ok=True)
        (tmp_path / name).symlink_to(target)
    (tmp_path / "5.txt").write_text("a text")
    source = opened(tmp_path)
    assert source.num_samples == 6 and source.fingerprint
    reasons = {}
    for number in range(6):
        try:
            source.read(number)
        except SampleError as error:
            reasons[source.key(number)] = str(error)
    assert reasons == {
        "1.png": ".txt is no file but a pipe or device",
        "2.png": ".txt missing",
        "5.png": "image is no file but a pipe or device",
    }
    (tmp_path / "t.csv").write_text("filepath\n5.png\n")
    with pytest.raises(SampleError, match="no file but a pipe"):
        opened(tmp_path / "t.csv").read(0)


def test_names_that_are_no_text(tmp_path, capsys) -> None:
    """No UTF-8, or with what would break a line or steer a terminal: read, told on one line."""
    write(tmp_path, os.fsdecode(b"\xe9.png"), "a\nb.png")
    write(tmp_path, "c\x1b[2J\nd.png", content=b"no image")
    for path in [*tmp_path.iterdir()]:
        path.with_suffix(".txt").write_text("a text")
    assert opened(tmp_path).fingerprint
    assert main(["data", "check", str(tmp_path)]) == 1
    first = capsys.readouterr().err.splitlines()[0]
    assert first.startswith(f"mmtrain: {tmp_path}: c\\x1b[2J\\nd.png: no image")
    assert main(["data", "make", str(tmp_path), "--out", str(tmp_path / "o"), "--skip-bad"]) == 0
    assert ShardSource(str(tmp_path / "o")).num_samples == 2
