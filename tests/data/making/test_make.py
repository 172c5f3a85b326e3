"""`mmtrain data make` and `split`: whatever can be read becomes shards that training reads."""

import gc
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import webdataset
from PIL import Image

from mmtrain.cli import main
from mmtrain.data.making.keys import readable_key
from mmtrain.data.making.split import part_of
from mmtrain.data.shards.check import check_shards
from mmtrain.data.shards.index import split_name
from mmtrain.data.shards.source import ShardSource
from tests.data.shard_files import build_data, encoded, pairs, picture, write_shard
from tests.mistakes import mistake


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten images of all kinds, some in a subfolder, with captions beside."""
    photos = tmp_path / "photos"
    (photos / "sub").mkdir(parents=True)
    for i in range(10):
        kind, suffix = (("PNG", "png"), ("JPEG", "JPG"), ("WEBP", "webp"), ("JPEG", "jpeg"))[i % 4]
        path = photos / ("sub" if i > 6 else "") / f"no {i}.v1.{suffix}"
        path.write_bytes(encoded(picture((20, 20), seed=i), kind))
        path.with_suffix(".txt").write_text(f"picture {i}\n")
    (photos / "no 3.v1.json").write_text('{"concept": "three"}')
    (photos / "notes.md").write_text("no image")
    return photos


def images_of(folder: Path) -> list[Path]:
    """In the order of a folder's samples."""
    found = [path for path in folder.rglob("no *") if path.suffix not in (".txt", ".json")]
    return sorted(found, key=lambda path: path.relative_to(folder).parts)


def make(source: object, out: Path, *options: str) -> Path:
    assert main(["data", "make", str(source), "--out", str(out), *options]) == 0
    return out


def read(out: Path) -> dict[str, dict[str, bytes]]:
    """Files by extension, by key; twice of a key is a mistake."""
    source = ShardSource(str(out), verify=True)
    found = {source.key(number): source.read(number) for number in range(source.num_samples)}
    assert len(found) == source.num_samples
    return found


def tars(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.glob("*.tar"))}


def test_a_folder(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = make(folder, tmp_path / "shards", "--samples-per-shard", "4")
    assert f'data.train = "{out}/*.tar"' in capsys.readouterr().out
    assert list(tars(out)) == ["00000.tar", "00001.tar", "00002.tar"]
    found = read(out)
    for image in images_of(folder):
        name = image.relative_to(folder).as_posix()
        files = found.pop(name.rpartition(".")[0].replace(" ", "-").replace(".", "-"))
        fields = json.loads(files.pop("json"))
        assert fields == {"file_name": name} | ({"concept": "three"} if " 3" in name else {})
        assert files.pop("txt") == image.with_suffix(".txt").read_bytes()
        assert files == {image.suffix[1:].lower(): image.read_bytes()}
    assert [*found] == []
    assert check_shards(str(out)).problems == ()
    assert build_data(str(out), batch_size=10).batch(0).bad == ()


def test_the_same_bytes_whatever_the_workers_and_parts(folder: Path, tmp_path: Path) -> None:
    size = ("--samples-per-shard", "3")
    once = tars(make(folder, tmp_path / "a", *size))
    assert once == tars(make(folder, tmp_path / "b", *size, "--workers", "2"))
    for part in ("2/3", "0/3", "1/3"):
        make(folder, tmp_path / "c", *size, "--shard-range", part)
    assert once == tars(tmp_path / "c")
    assert once != tars(make(folder, tmp_path / "d", *size, "--seed", "1"))
    kept = read(make(folder, tmp_path / "e", *size, "--keep-order"))
    assert [json.loads(files["json"])["file_name"] for files in kept.values()] == [
        image.relative_to(folder).as_posix() for image in images_of(folder)
    ]


def test_what_is_missing_is_made(folder: Path, tmp_path: Path) -> None:
    """After a kill, and where shards were removed; nothing torn is taken for whole."""
    options = ("--samples-per-shard", "1")
    once = tars(make(folder, tmp_path / "a", *options))
    out = tmp_path / "b"
    words = ["data", "make", str(folder), "--out", str(out), *options]
    program = [sys.executable, "-m", "mmtrain", *words]
    with subprocess.Popen(program, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()  # the first shard is there
        child.send_signal(signal.SIGKILL)
    (out / f".00003.tar.{os.uname().nodename}.{child.pid}.partial").write_bytes(b"torn")
    (out / "00000.tar").unlink()
    make(folder, out, *options)
    assert tars(out) == once
    assert {path.suffix for path in out.iterdir()} == {".tar", ".index", ".json"}


@pytest.mark.parametrize("change", [("--samples-per-shard", "9"), ("--seed", "4"), "data"])
def test_a_folder_of_another_job_is_left_alone(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: object
) -> None:
    out = make(folder, tmp_path / "out")
    if isinstance(change, str):
        (folder / "no 1.v1.txt").write_text("another")
    before = tars(out)
    words = change if isinstance(change, tuple) else ()
    line = mistake(capsys, "data", "make", str(folder), "--out", str(out), *words)
    assert f"--out {out} was begun with " in line and tars(out) == before


TABLE = [
    {"file_name": "no 0.v1.png", "caption": "zero, and more", "n": "1"},
    {"file_name": "sub/no 8.v1.png", "caption": "eight", "n": "2"},
    {"file_name": "no 0.v1.png", "caption": "nought", "n": "3"},
]


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
def test_a_table_beside_or_away_from_the_images(folder: Path, tmp_path: Path, kind: str) -> None:
    for place, images in ((tmp_path, ("--images", str(folder))), (folder, ())):
        table = place / f"captions.{kind}"
        separator = {"csv": ",", "tsv": "\t"}.get(kind, "")
        rows = [separator.join(f'"{cell}"' for cell in row.values()) for row in TABLE]
        lines = [json.dumps(row) for row in TABLE] if kind == "jsonl" else [
            separator.join(TABLE[0]), *rows
        ]  # fmt: skip
        table.write_text("\ufeff" + "\n".join(lines) + "\n")
        out = make(table, tmp_path / f"out-{place.name}", "--image-key", "file_name", *images)
        found = read(out)
        assert {key: files["txt"].decode() for key, files in found.items()} == {
            "no-0-v1": "zero, and more",
            "sub/no-8-v1": "eight",
        }
        fields = json.loads(found["no-0-v1"]["json"])
        assert fields["captions"] == ["zero, and more", "nought"] and fields["n"] == "1"
        assert "captions" not in json.loads(found["sub/no-8-v1"]["json"])


def test_a_saved_set_and_its_column(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    images = [picture((20, 20), seed=i) for i in range(3)]
    rows = {"image": images, "title": ["a", "b", "c"], "n": [1, 2, 3]}
    features = datasets.Features(
        {"image": datasets.Image(), "title": datasets.Value("string"), "n": datasets.Value("int64")}
    )
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path / "saved"))
    options = ("--image-key", "image", "--captions", "title", "--keep-order")
    found = read(make(tmp_path / "saved", tmp_path / "out", *options))
    assert [files["txt"] for files in found.values()] == [b"a", b"b", b"c"]
    assert [json.loads(files["json"])["n"] for files in found.values()] == [1, 2, 3]
    pixels = [Image.open(io.BytesIO(files["png"])).tobytes() for files in found.values()]
    assert pixels == [image.tobytes() for image in images]


def test_shards_again_are_the_same_samples(tmp_path: Path) -> None:
    """Other members, keys and bytes stay; a key that comes again gets a number."""
    samples = [(key, {**files, "cls": "3", "a.npy": b"\0"}) for key, files in pairs(0, 5)]
    write_shard(tmp_path / "0.tar", samples)
    write_shard(tmp_path / "1.tar", samples[:2])
    found = read(make(tmp_path / "*.tar", tmp_path / "out", "--shard-size", "4kB"))
    assert sorted(found) == ["00000", "00000+2", "00001", "00001+2", "00002", "00003", "00004"]
    source = ShardSource(str(tmp_path / "*.tar"))
    for number in range(5):
        assert found[source.key(number)] == source.read(number)
    assert len(tars(tmp_path / "out")) > 1


def test_webdataset_reads_the_same(folder: Path, tmp_path: Path) -> None:
    out = make(folder, tmp_path / "out", "--samples-per-shard", "4")
    urls = [str(path) for path in sorted(out.glob("*.tar"))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it leaves its files open
        theirs = {
            sample["__key__"]: {k: v for k, v in sample.items() if not k.startswith("__")}
            for sample in webdataset.WebDataset(urls, shardshuffle=False)
        }
        gc.collect()
    assert theirs == read(out)


@pytest.mark.parametrize("seed", range(5))
def test_keys_can_be_told_apart_and_read_back(tmp_path: Path, seed: int) -> None:
    """Names of any letters, folders and lengths; the tar gives the key back, whole."""
    rng = random.Random(seed)
    letters = ["a", "B", "7", " ", ".", "_", "-", "é", "猫", "+", "%", "'", "(", "~", "\u0301", "#"]
    names = {"".join(rng.choices(letters, k=rng.randint(1, 60))) for _ in range(60)}
    names |= {f"{rng.choice(['__x__', 'd.e', 'ü'])}/n{name}" for name in list(names)[:20]}
    for name in sorted(names):
        path = tmp_path / "images" / f"i{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(picture((8, 8)), "PNG"))
    found = read(make(f"captions:{tmp_path / 'images'}", tmp_path / "out", "--no-captions"))
    assert len(found) == len(names)
    for key, files in found.items():
        assert split_name(f"{key}.png") == (key, "png") and len(key.encode()) <= 84
        assert key.partition("+")[0] == readable_key(json.loads(files["json"])["file_name"])


def test_bad_samples_are_named_or_left_out(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "no 1.v1.txt").unlink()
    (folder / "no 2.v1.txt").write_text("  \n")
    image = folder / "no 5.v1.JPG"
    image.write_bytes(image.read_bytes()[:300])
    options = ["data", "make", str(folder), "--out", str(tmp_path / "out")]
    options += ["--samples-per-shard", "2", "--keep-order"]
    line = mistake(capsys, *options)
    assert line.startswith("3 of 10 samples cannot be used: ")
    assert "no 1.v1.JPG: no caption; " in line and "no 5.v1.JPG: image truncated; " in line
    assert line.endswith("; mend them, or leave them out with --skip-bad")
    assert len(tars(tmp_path / "out")) == 2  # the others
    assert main([*options, "--skip-bad"]) == 0
    assert "left out: 2 x no caption\nleft out: 1 x image truncated\n" in capsys.readouterr().out
    assert len(read(tmp_path / "out")) == 7


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--samples-per-shard", "0"], "0 must be an int, at least 1"),
        (["--shard-size", "5 parsecs"], "5 parsecs must be bytes, such as 500MB or 1.5GiB"),
        (["--shard-size", "1MB", "--samples-per-shard", "3"], "not allowed with argument"),
        (["--shard-range", "4/4"], "4/4 must be i/n with i from 0 to n - 1"),
        (["--shard-range", "1"], "1 must be i/n with i from 0 to n - 1"),
        (["--shard-range", "1/2"], "--shard-range 1/2: there are only 1 shards"),
        (["--captions", "tytle"], "--captions names other places"),
        (["--images", "{tmp}/none"], "only the paths in a table"),
        (["--out", "{tmp}/full"], "is not empty; name a new folder"),
        (["--out", "{tmp}/full/file"], "is not empty; name a new folder"),
        (["--seed", "1", "--keep-order"], "not allowed with argument"),
    ],
)
def test_mistakes_are_one_line(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    told: str,
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    given = ["--out", str(tmp_path / "out"), *(each.format(tmp=tmp_path) for each in options)]
    assert told in mistake(capsys, "data", "make", str(folder), *given)


def test_parts_by_key_are_the_same_whatever_else_is_there(tmp_path: Path) -> None:
    names = [f"{name:05}" for name in range(60)]
    for number in range(60):
        path = tmp_path / "all" / f"{number:05}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encoded(picture((8, 8), seed=number), "PNG"))
    shutil.copytree(tmp_path / "all", tmp_path / "some")
    for name in names[::2]:
        (tmp_path / "some" / f"{name}.png").unlink()
    make(tmp_path / "all", tmp_path / "shards", "--no-captions", "--samples-per-shard", "9")
    sides: list[dict[str, str]] = []
    for data, seed in (("all", "0"), ("some", "1"), ("shards", "2")):
        out = tmp_path / f"parts-{data}"
        words = ["--fractions", "train=0.7", "val=0.2", "test=0.1", "--seed", seed]
        given = ["data", "split", str(tmp_path / data), "--out", str(out), "--no-captions", *words]
        assert main(given) == 0
        sides.append({key: p.name for p in out.iterdir() for key in read(p)})
    everywhere, some, again = sides
    assert sorted(everywhere) == names and everywhere == again
    assert some == {name: everywhere[name] for name in names[1::2]}


def test_parts_are_as_large_as_asked_for() -> None:
    ends = (0.7, 0.9, 1.0)
    sides = [part_of(f"sample {number}", ends) for number in range(20_000)]
    assert [round(sides.count(part) / 20_000, 2) for part in range(3)] == [0.7, 0.2, 0.1]


@pytest.mark.parametrize(
    ("fractions", "told"),
    [
        (["train=0.9"], "come to 0.9; make them come to 1"),
        (["train=0.9", "val"], "must be NAME=X with X within 0 and 1"),
        (["a/b=0.5", "val=0.5"], "a/b=0.5 must be NAME=X with a folder's name"),
        (["val=0.5", "val=0.5"], "a name is there twice"),
        (["train=0.999999", "val=0.000001"], "val=1e-06: none of 10 samples falls there"),
    ],
)
def test_mistakes_of_parts(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    fractions: list[str],
    told: str,
) -> None:
    words = ("data", "split", str(folder), "--out", str(tmp_path / "out"), "--fractions")
    assert told in mistake(capsys, *words, *fractions)
    assert not (tmp_path / "out").exists()
