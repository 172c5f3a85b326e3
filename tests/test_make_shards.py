"""tools/make_shards.py: folders and tables of captions become shards that training reads."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from mmtrain.data.shards.check import check_shards
from mmtrain.data.shards.source import ShardSource
from tests.data.shard_files import build_data, encoded, picture

TOOL = Path(__file__).parent.parent / "tools" / "make_shards.py"


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("make_shards", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def folder(tmp_path) -> Path:
    """Ten images of all kinds, some in a subfolder, with captions beside."""
    photos = tmp_path / "photos"
    (photos / "sub").mkdir(parents=True)
    for i in range(10):
        kind, suffix = (("PNG", "png"), ("JPEG", "JPG"), ("WEBP", "webp"), ("JPEG", "jpeg"))[i % 4]
        path = photos / ("sub" if i > 6 else "") / f"{i}.{suffix}"
        path.write_bytes(encoded(picture((20, 20), seed=i), kind))
        path.with_suffix(".txt").write_text(f"picture {i}\n")
    (photos / "3.json").write_text('{"concept": "three"}')
    (photos / "notes.md").write_text("no image")
    return photos


def names(folder: Path) -> list[str]:
    return sorted(
        p.relative_to(folder).as_posix()
        for p in folder.rglob("*")
        if p.suffix[1:].lower() in ("png", "jpg", "webp", "jpeg")
    )


def read(out: Path) -> dict[str, tuple[bytes, str, dict]]:
    """Image, caption and fields by the image's path."""
    source = ShardSource(str(out), verify=True)
    found = {}
    for number in range(source.num_samples):
        members = source.read(number)
        fields = json.loads(members.pop("json"))
        assert fields.pop("key") == source.key(number)
        caption = members.pop("txt").decode()
        (image,) = members.values()
        found[fields.pop("file_name")] = (image, caption, fields)
    return found


def test_captions_beside(tool, folder, tmp_path, capsys):
    out = tmp_path / "shards"
    assert tool.main([str(folder), "--out", str(out), "--samples-per-shard", "4"]) == 0
    assert f'data.train = "{out}/*.tar"' in capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == [
        f"0000{i}.tar{suffix}" for i in range(3) for suffix in ("", ".index")
    ]
    found = read(out)
    assert sorted(found) == names(folder)
    for name, (image, caption, fields) in found.items():
        assert image == (folder / name).read_bytes()
        assert caption == f"picture {Path(name).stem}"
        assert fields == ({"concept": "three"} if "3" in name else {})
    assert list(found) != sorted(found)  # mixed, and all read as shards are
    assert check_shards(str(out)).problems == ()
    data = build_data(str(out), batch_size=10)
    assert sorted(data.batch(0).keys)[0] == "000000000"
    assert data.batch(0).bad == ()


def test_the_same_input_gives_the_same_bytes(tool, folder, tmp_path):
    for name, options in (("a", ()), ("b", ()), ("c", ("--seed", "1")), ("d", ("--keep-order",))):
        assert tool.main([str(folder), "--out", str(tmp_path / name), *options]) == 0
    a, b, c, d = ((tmp_path / name / "00000.tar").read_bytes() for name in "abcd")
    assert a == b != c
    assert d not in (a, c)
    assert list(read(tmp_path / "d")) == names(folder)


TABLE = [
    {"file_name": "0.png", "caption": "zero, and more", "n": 1},
    {"file_name": "sub/8.png", "caption": "eight", "n": 2},
    {"file_name": "0.png", "caption": "nought", "n": 3},
]


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
def test_captions_in_a_table(tool, folder, tmp_path, kind):
    table = tmp_path / f"captions.{kind}"
    if kind == "jsonl":
        table.write_text("\n".join(json.dumps(row) for row in TABLE) + "\n\n")
    else:
        cells = [list(TABLE[0]), *([f'"{v}"' for v in row.values()] for row in TABLE)]
        separator = {"csv": ",", "tsv": "\t"}[kind]
        table.write_text("\ufeff" + "\n".join(separator.join(row) for row in cells) + "\n")
    options = ["--captions", str(table), "--out", str(tmp_path / "out")]
    assert tool.main([str(folder), *options]) == 0
    found = read(tmp_path / "out")
    one, two = (1, 2) if kind == "jsonl" else ("1", "2")
    assert {name: sample[1:] for name, sample in found.items()} == {
        "0.png": ("zero, and more", {"n": one, "captions": ["zero, and more", "nought"]}),
        "sub/8.png": ("eight", {"n": two}),
    }


def test_bad_images_are_named_or_left_out(tool, folder, tmp_path, capsys):
    (folder / "1.txt").unlink()
    (folder / "2.txt").write_text("  \n")
    (folder / "3.jpeg").write_bytes((folder / "3.jpeg").read_bytes()[:300])
    options = [str(folder), "--out", str(tmp_path / "out")]
    assert tool.main(options) == 2
    assert capsys.readouterr().err == (
        "make_shards: error: 3 of 10 images cannot be used: 1.JPG (no caption), "
        "2.webp (no caption), 3.jpeg (image truncated); mend them, or leave them out with "
        "--skip-bad\n"
    )
    assert not (tmp_path / "out").exists()
    assert tool.main([*options, "--skip-bad"]) == 0
    assert "left out: 2 x no caption\nleft out: 1 x image truncated\n" in capsys.readouterr().out
    assert len(read(tmp_path / "out")) == 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--samples-per-shard", "0"], "--samples-per-shard 0 must be within 1 and 10000"),
        (["--captions", "{}/none.csv"], "cannot be read: No such file or directory"),
        (["--captions", "{}/x.xlsx"], "must be one of .csv, .tsv, .jsonl"),
        (["--captions", "{}/a.csv"], "--caption-key = caption is no column of {}/a.csv"),
        (
            ["--captions", "{}/a.csv", "--caption-key", "text"],
            "{}/a.csv:2: row names an image that FOLDER has not (y.png;",
        ),
        (
            ["--captions", "{}/a.csv", "--image-key", "id"],
            "--image-key = id is no column of {}/a.csv",
        ),
        (["--captions", "{}/empty.csv"], "has no rows"),
        (["--captions", "{}/bad.jsonl"], "{}/bad.jsonl:2: row is no JSON"),
        (["--out", "{}/full"], "is not empty; name a new folder"),
    ],
)
def test_mistakes_are_one_line(tool, folder, tmp_path, capsys, options, message):
    (tmp_path / "a.csv").write_text("file_name,text\ny.png,why\n")
    (tmp_path / "empty.csv").write_text("file_name,caption\n")
    (tmp_path / "bad.jsonl").write_text('{"file_name": "0.png", "caption": "x"}\n{\n')
    (tmp_path / "x.xlsx").write_bytes(b"x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    arguments = ["--out", str(tmp_path / "out"), *(each.format(tmp_path) for each in options)]
    assert tool.main([str(folder), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("make_shards: ")
    assert message.format(tmp_path) in error
    assert error.count("\n") == 1


def test_malformed_rows_are_left_out_where_asked(tool, folder, tmp_path, capsys):
    table = tmp_path / "captions.csv"
    table.write_text(
        'file_name;caption\n0.png;a\u2028b\n1.JPG;"never closed\n2.webp;x;y\n4.png;d\n'
    )
    options = [str(folder), "--captions", str(table), "--out", str(tmp_path / "out")]
    assert tool.main(options) == 2
    assert f"{table}:3: row has a quote that is not closed" in capsys.readouterr().err
    assert tool.main([*options, "--skip-bad"]) == 0
    found = read(tmp_path / "out")
    assert found["0.png"][1] == "a\u2028b"
    assert len(found) == 2 or "4.png" not in names(folder)


def test_hidden_files_count_nowhere_and_tables_are_not_passed_over(tool, folder, tmp_path, capsys):
    for name in ("._0.png", ".ipynb_checkpoints/0.png", "__MACOSX/0.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"no image")
    assert tool.main([str(folder), "--out", str(tmp_path / "out")]) == 0
    assert len(read(tmp_path / "out")) == 10
    (folder / "1.txt").unlink()
    (folder / "metadata.csv").write_text("file_name,caption\n1.JPG,x\n")
    assert tool.main([str(folder), "--out", str(tmp_path / "other")]) == 2
    assert f"--captions {folder}/metadata.csv" in capsys.readouterr().err


def test_folders_without_images(tool, tmp_path, capsys):
    for folder, message in (
        (tmp_path / "none", "is no folder"),
        (tmp_path, "holds no image (.jpg"),
    ):
        assert tool.main([str(folder), "--out", str(tmp_path / "out")]) == 2
        assert message in capsys.readouterr().err


def test_as_a_program():
    result = subprocess.run(
        [sys.executable, str(TOOL), "--help"], capture_output=True, text=True, timeout=120
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert "--captions FILE" in result.stdout
