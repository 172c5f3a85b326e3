"""Zips: the samples of the folder that they were made of, and what a damaged one means."""

import io
import json
import pickle
import struct
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from mmtrain.cli import main
from mmtrain.data.sample_error import SampleError
from mmtrain.data.sources.open import open_source
from mmtrain.data.sources.zip_archive import ZipSource
from mmtrain.errors import UsageError
from tests.data.shard_files import encoded, picture
from tests.mistakes import mistake


def files(num: int = 6) -> dict[str, bytes]:
    """Nested pictures; captions, fields, and what a system leaves behind."""
    found: dict[str, bytes] = {"README.md": b"hello", "__MACOSX/._0.jpg": b"no image"}
    for number in range(num):
        stem = f"part {number % 2}/é{number}.v1"
        found[f"{stem}.JPG"] = encoded(picture((20 + number, 18), seed=number), "JPEG")
        found[f"{stem}.txt"] = f"picture {number}".encode()
        found[f"{stem}.json"] = json.dumps({"number": number}).encode()
    found["top.png"] = encoded(picture((9, 9)), "PNG")
    return found


def write_zip(path: Path, content: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return path


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_it_is_the_folder_it_was_made_of(tmp_path: Path, method: int) -> None:
    for name, data in files().items():
        (tmp_path / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / name).write_bytes(data)
    folder = open_source(f"captions:{tmp_path}/folder")
    # After bytes of something else too, as self-unpacking ones have.
    path = write_zip(tmp_path / "a.zip", files(), method)
    path.write_bytes(b"#!/bin/sh\n" * 7 + path.read_bytes())
    source = pickle.loads(pickle.dumps(open_source(str(path))))
    assert isinstance(source, ZipSource) and source.num_samples == folder.num_samples == 7
    for number in range(7):
        assert source.key(number) == folder.key(number)
        for wanted in (None, {"txt"}, {"jpg", "json"}):
            assert source.read(number, wanted) == folder.read(number, wanted)


def test_its_fingerprint_is_its_content(tmp_path: Path) -> None:
    """Not its place, nor how it was packed."""
    one = ZipSource(write_zip(tmp_path / "a.zip", files())).fingerprint
    reversed_ = dict(reversed(files().items()))
    stored = write_zip(tmp_path / "b.ZIP", reversed_, zipfile.ZIP_STORED)
    assert one == ZipSource(stored).fingerprint
    other = files() | {"part 0/é0.v1.txt": b"picture 9"}
    assert one != ZipSource(write_zip(tmp_path / "c.zip", other)).fingerprint


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_damaged_member_spoils_no_other(tmp_path: Path, method: int) -> None:
    """A byte changed, its size understated, its header gone: a bad sample each."""
    path = write_zip(tmp_path / "a.zip", files(), method)
    whole = ZipSource(path)
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo("part 0/é2.v1.JPG")
    at, content = info.header_offset, path.read_bytes()
    lies = struct.pack("<L", info.file_size - 40)
    place = content.rindex(struct.pack("<L", info.file_size))
    damages = (
        content[: at + 120] + bytes([content[at + 120] ^ 255]) + content[at + 121 :],
        content[:place] + lies + content[place + 4 :],
        content[:at] + b"xx" + content[at + 2 :],
    )
    for damaged in damages:
        path.write_bytes(damaged)
        source = ZipSource(path)
        assert source.key(1) == "part 0/é2.v1.JPG"
        with pytest.raises(SampleError, match="damaged in the archive"):
            source.read(1)
        assert all(source.read(n).keys() == whole.read(n).keys() for n in (0, 2, 6))


def encrypted(path: Path) -> None:
    content = bytearray(write_zip(path, files()).read_bytes())
    content[content.rindex(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("write", "told"),
    [
        (lambda path: None, "cannot be read: No such file"),
        (lambda path: path.write_bytes(b"PK no zip"), "is damaged or no zip"),
        (lambda path: write_zip(path, {}), "holds no images"),
        (lambda path: write_zip(path, {"a.txt": b"a"}), "holds no images"),
        (encrypted, "is encrypted; unpack it"),
        (lambda path: write_zip(path, files(), zipfile.ZIP_BZIP2), "packed by another method"),
    ],
)
def test_what_is_refused(tmp_path: Path, write, told: str) -> None:
    write(tmp_path / "a.zip")
    with pytest.raises(UsageError, match=f"^mine = {tmp_path}/a.zip.*{told}"):
        open_source(str(tmp_path / "a.zip"), key="mine")


def test_a_training_reads_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the command, with workers; and as one of several paths it is refused."""
    content = {n: d for n, d in files(40).items() if n != "top.png"}
    path = str(write_zip(tmp_path / "a.zip", content))
    words = ("train", "configs/debug_clip.toml", "--run-dir", str(tmp_path / "run"))
    words += ("--train.steps", "2", "--data.label_key", "none", "--data.workers", "1")
    assert main([*words, "--data.train", path]) == 0
    assert Image.open(io.BytesIO(open_source(path).read(3)["jpg"])).size[1] == 18
    capsys.readouterr()
    two = json.dumps([path, "mmtrain/demo/debug/train.tar"])
    line = mistake(capsys, *words[:3], str(tmp_path / "no"), "--data.train", two)
    assert "a.zip is one of several paths" in line
