"""Shards as one list of samples: patterns, indexes, reading, and files that are wrong."""

import contextlib
import dataclasses
import errno
import gzip
import os
import pickle
import re
import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest
import webdataset
from webdataset import tariterators

from mmtrain.data.fingerprint import same_data, split_fingerprint
from mmtrain.data.sample_error import SampleError
from mmtrain.data.shards import index_file, reading
from mmtrain.data.shards.check import check_shards, index_shards
from mmtrain.data.shards.index_file import load_index, load_summary
from mmtrain.data.shards.opening import open_shards
from mmtrain.data.shards.patterns import expand_patterns
from mmtrain.data.shards.source import ShardSource
from mmtrain.errors import UsageError
from tests.data.shard_files import write_shard


def texts(first: int, num: int) -> list[tuple[str, dict[str, str]]]:
    return [
        (f"{i:03}", {"txt": f"text {i}", "json": f'{{"i": {i}}}'})
        for i in range(first, first + num)
    ]


@pytest.fixture
def folder(tmp_path) -> Path:
    """Three shards of 3, 4 and 5 samples."""
    for number, size in enumerate((3, 4, 5)):
        write_shard(tmp_path / f"{number:02}.tar", texts(100 * number, size))
    return tmp_path


def all_texts(source: ShardSource) -> list[str]:
    return [source.read(i)["txt"].decode() for i in range(source.num_samples)]


EXPECTED = [f"text {100 * shard + i}" for shard, size in enumerate((3, 4, 5)) for i in range(size)]


@pytest.mark.parametrize(
    "patterns",
    [
        "{}/*.tar",
        "{}",
        "{}/{{00..02}}.tar",
        "{}/{{00,01,02}}.tar",
        ("{}/02.tar", "{}/0[01].tar", "{}"),
    ],
)
def test_patterns_find_each_shard_once(folder, patterns):
    filled = (
        patterns.format(folder)
        if isinstance(patterns, str)
        else tuple(each.format(folder) for each in patterns)
    )
    source = ShardSource(filled)
    assert (source.num_samples, source.shard_sizes) == (12, [3, 4, 5])
    assert all_texts(source) == EXPECTED


def test_a_pattern_of_the_indexes_too_finds_shards_only(folder):
    ShardSource(str(folder))
    assert (folder / "00.tar.index").exists()
    assert expand_patterns(f"{folder}/*") == [str(folder / f"0{i}.tar") for i in range(3)]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("", "names no shards"),
        ((), "names no shards"),
        ("{}/x*.tar", "data.train = {}/x*.tar: the glob matches no file"),
        ("{}/none.tar", "data.train = {}/none.tar: the shard does not exist"),
        ("{}/empty", "the folder has no *.tar"),
        ("{}/{{00..05}}.tar", "3 of 6 do not exist, the first is {}/03.tar"),
        ("{}/{{05..00}}.tar", "the range is empty"),
        ("{}/{{0..99999999999}}.tar", "the range stands for 100,000,000,000 names"),
        ("{}/{{0..9999}}/{{0000..9999}}.tar", "the range stands for 100,000,000 names"),
        ("{}/\0.tar", "the shard does not exist"),
        ("hdfs://host/{{00..05}}.tar", "hdfs: is not read, only local files"),
        ("pipe:cat {}/00.tar", "pipe: is not read by ranges; a recipe reads it with data.stream"),
    ],
)
def test_patterns_that_name_nothing(folder, pattern, message):
    (folder / "empty").mkdir()
    filled = pattern.format(folder) if pattern else pattern
    with pytest.raises(UsageError, match=re.escape(message.format(folder))) as caught:
        ShardSource(filled)
    assert "\n" not in str(caught.value)


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"<!DOCTYPE html>\n<html>" + b" " * 2000,
            "a web page, no tar (it begins '<!DOCTYPE html>",
        ),
        (b"<html>404</html>", "a web page, no tar (it begins '<html>404</html>')"),
        (b"", "empty; fetch it again"),
        (LFS, "a git-lfs pointer; run git lfs pull"),
        (gzip.compress(b"x" * 5000, mtime=0), "gzip-compressed; unpack it"),
        (b"PK\x03\x04" + bytes(2000), "a zip; repack it as a tar"),
        (b"\xff\xd8\xff" + b"\x17" * 2000, "no tar (it begins"),
    ],
)
def test_what_is_no_tar(folder, content, message):
    (folder / "01.tar").write_bytes(content)
    with pytest.raises(UsageError, match=re.escape(message)) as caught:
        ShardSource(str(folder))
    assert str(folder / "01.tar") in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (folder / "01.tar.index").exists()


def test_shards_without_samples(tmp_path):
    write_shard(tmp_path / "a.tar", [])
    with pytest.raises(UsageError, match="the shards hold no samples"):
        ShardSource(str(tmp_path))
    write_shard(tmp_path / "b.tar", texts(0, 2))
    assert ShardSource(str(tmp_path)).shard_sizes == [0, 2]


def test_samples_are_webdatasets(tmp_path):
    """Keys and extensions as its own reader groups them, from what its own writer wrote."""
    path = tmp_path / "w.tar"
    with webdataset.TarWriter(str(path)) as writer:
        for key in ("000", "a.b/001", "deep/er/002"):
            writer.write({"__key__": key, "txt": key, "seg.png": b"s", "JSON": b"{}"})
    with path.open("rb") as stream:
        files = tariterators.tar_file_iterator(stream)
        groups = [
            {name: value for name, value in sample.items() if not name.startswith("__")}
            | {"key": sample["__key__"]}
            for sample in tariterators.group_by_keys({"__url__": "", **file} for file in files)
        ]
    source = ShardSource(str(path))
    ours = [dict(source.read(i)) | {"key": source.key(i)} for i in range(source.num_samples)]
    assert ours == groups
    assert ours[1] == {"key": "a.b/001", "txt": b"a.b/001", "seg.png": b"s", "json": b"{}"}


def test_files_that_belong_to_no_sample(tmp_path):
    path = tmp_path / "a.tar"
    write_shard(
        path, [("__meta__/x", {"json": "{}"}), ("d/.hidden", {"txt": "h"}), ("a", {"txt": "a"})]
    )
    source = ShardSource(str(path))
    assert [source.key(i) for i in range(source.num_samples)] == ["a"]
    assert source.shards[0].summary.num_ignored == 2


def test_only_wanted_files_are_read(folder, monkeypatch):
    source = ShardSource(str(folder))
    assert source.read(4, {"txt", "jpg"}) == {"txt": b"text 101"}
    assert source.key(4) == "101"
    shard, inside = source.locate(4)
    assert (shard.path, inside) == (str(folder / "01.tar"), 1)
    for wrong in (-1, 12):
        with pytest.raises(IndexError):
            source.read(wrong)


def test_few_files_are_open_at_once(folder, monkeypatch):
    monkeypatch.setattr(reading, "_MAX_OPEN", 2)
    source = ShardSource(str(folder))
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        assert all_texts(source) == EXPECTED
        assert len(os.listdir("/proc/self/fd")) <= before + 2


def test_a_source_travels_to_workers(folder):
    source = ShardSource(str(folder))
    all_texts(source)
    assert all_texts(pickle.loads(pickle.dumps(source))) == EXPECTED


def test_indexes_are_made_once_and_beside_the_shards(folder):
    assert all(shard.is_new for shard in open_shards(str(folder)))
    again = open_shards(str(folder))
    assert not any(shard.is_new for shard in again)
    assert [shard.index_path for shard in again] == [folder / f"0{i}.tar.index" for i in range(3)]


def test_indexes_in_a_folder_of_their_own(folder, tmp_path):
    (folder / "other").mkdir()
    write_shard(folder / "other" / "00.tar", texts(7, 1))  # the same name in another folder
    kept = folder / "indexes"
    patterns = (str(folder), str(folder / "other"))
    assert all(shard.is_new for shard in open_shards(patterns, index_dir=str(kept)))
    assert not list(folder.glob("*.index"))
    assert len(list(kept.iterdir())) == 4
    source = ShardSource(patterns, index_dir=str(kept))
    assert not any(shard.is_new for shard in source.shards)
    assert all_texts(source) == [*EXPECTED, "text 7"]


def test_shards_on_a_read_only_disk(folder, tmp_path_factory, monkeypatch):
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    save = index_file.save_index

    def save_elsewhere(index, path):
        if path.parent == folder:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return save(index, path)

    monkeypatch.setattr(index_file, "save_index", save_elsewhere)
    assert all_texts(ShardSource(str(folder))) == EXPECTED
    assert len(list((cache / "mmtrain" / "indexes").iterdir())) == 3
    assert not any(shard.is_new for shard in open_shards(str(folder)))
    blocked = folder / "blocked"
    blocked.write_text("a file")
    with pytest.raises(UsageError, match=r"index .* cannot be written .*; set data.index_dir"):
        ShardSource(str(folder), index_dir=str(blocked / "x"))


def test_an_index_is_made_anew_when_its_shard_changes(folder):
    open_shards(str(folder))
    # As many bytes as before, and another content.
    write_shard(folder / "01.tar", texts(500, 4))
    opened = open_shards(str(folder))
    assert [shard.is_new for shard in opened] == [False, True, False]
    assert all_texts(ShardSource(str(folder)))[3:7] == [f"text {i}" for i in range(500, 504)]


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "pickle", "version"])
def test_a_damaged_index_is_given_up_by_data_index_alone(folder, damage):
    """It may have held checksums; one that is gone is made anew."""
    index_shards(str(folder))
    path = folder / "01.tar.index"
    data = bytearray(path.read_bytes())
    match damage:
        case "cut":
            path.write_bytes(data[: len(data) // 2])
        case "flipped":
            with zipfile.ZipFile(path) as archive:
                at = archive.getinfo("size_M.npy").header_offset
            data[at + 64 : at + 80] = bytes(16)  # in the content behind a header of 60 bytes
            path.write_bytes(data)
        case "empty":
            path.write_bytes(b"")
        case "pickle":
            path.write_bytes(pickle.dumps({"summary": 1}))
        case "version":
            index = load_index(path)
            assert index is not None
            path.unlink()
    assert load_index(path) is None
    if path.exists():
        damaged = path.read_bytes()
        refused = contextlib.nullcontext()
        if damage != "flipped":  # there what tells of the shard is whole, and nothing is replaced
            refused = pytest.raises(
                UsageError, match=r"01\.tar\.index, the index of .*mmtrain data index "
            )
        with refused:
            ShardSource(str(folder))
        assert path.read_bytes() == damaged
        (problem,) = check_shards(str(folder)).problems
        assert "01.tar.index is damaged" in problem
        (change,) = index_shards(str(folder)).changes
        assert "01.tar: its index was damaged, so that nothing could be compared" in change
        assert check_shards(str(folder)).problems == ()
    assert all_texts(ShardSource(str(folder))) == EXPECTED


def test_an_index_lost_while_in_use(folder):
    source = ShardSource(str(folder))
    for path in folder.glob("*.index"):
        path.unlink()
    assert all_texts(source) == EXPECTED


def test_the_fingerprint_is_that_of_the_content(folder, tmp_path_factory):
    first = ShardSource(str(folder)).fingerprint
    copy = tmp_path_factory.mktemp("copy")
    for path in folder.glob("*.tar"):
        shutil.copy(path, copy)
    assert ShardSource(str(copy)).fingerprint == first
    write_shard(copy / "01.tar", [(f"x{key}", files) for key, files in texts(100, 4)])
    assert not same_data(first, ShardSource(str(copy)).fingerprint)


def test_the_fingerprint_covers_contents_where_there_are_checksums(folder):
    """Two texts of one length differ only in their checksums."""
    bare = ShardSource(str(folder)).fingerprint
    index_shards(str(folder))
    first = ShardSource(str(folder)).fingerprint
    assert same_data(bare, first) and same_data(first, bare)
    assert split_fingerprint(bare)[1] is None and split_fingerprint(first)[1] is not None
    flip(folder / "01.tar", "100.txt")
    index_shards(str(folder))
    changed = ShardSource(str(folder)).fingerprint
    assert not same_data(first, changed) and same_data(bare, changed)
    (folder / "02.tar.index").unlink()  # one shard without: nothing is known of all
    assert ShardSource(str(folder)).fingerprint == bare


def cut_shard(path: Path, bytes_left: int) -> None:
    with path.open("r+b") as file:
        file.truncate(bytes_left)


def test_damage_stops_unless_the_rest_is_wanted(folder):
    cut_shard(folder / "01.tar", 5 * 512 + 100)  # inside the second sample
    with pytest.raises(
        UsageError, match=r"1 of 3 shards are damaged, the first is .*01.tar at byte"
    ):
        ShardSource(str(folder))
    source = ShardSource(str(folder), on_damage="use_rest")
    assert all_texts(source)[:4] == [*EXPECTED[:3], "text 100"]


def test_a_shard_cut_while_in_use(folder):
    source = ShardSource(str(folder))
    source.read(3)
    cut_shard(folder / "01.tar", 5 * 512)
    assert source.read(3)["txt"] == b"text 100"
    with pytest.raises(SampleError, match="shard cut since it was indexed"):
        source.read(5)
    with pytest.raises(UsageError, match=r"01.tar was changed while it was in use; start again"):
        pickle.loads(pickle.dumps(source)).read(3)


def test_a_shard_overwritten_while_in_use(folder):
    source = ShardSource(str(folder))
    source.read(3)
    (folder / "01.tar").write_bytes(b"\x17" * (folder / "01.tar").stat().st_size)
    with pytest.raises(SampleError, match="shard changed since it was indexed"):
        source.read(3)


def test_verify_needs_and_uses_checksums(folder):
    with pytest.raises(UsageError, match=r"data.verify = true needs checksums.*mmtrain data index"):
        ShardSource(str(folder), verify=True)
    index_shards(str(folder), crc=True)
    source = ShardSource(str(folder), verify=True)
    assert all_texts(source) == EXPECTED
    flip(folder / "01.tar", "102.txt")
    with pytest.raises(SampleError, match="checksum wrong"):
        source.read(5)
    # Between the pieces that tell a changed shard: unseen without verify.
    assert ShardSource(str(folder)).read(5)["txt"] == b"Text 102"


def flip(path: Path, member: str) -> None:
    """Write another first letter into a member."""
    with tarfile.open(path) as tar:
        offset = tar.getmember(member).offset_data
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"T")


def lose(path: Path) -> None:
    write_shard(path, texts(100, 3))


def add(path: Path) -> None:
    write_shard(path, texts(100, 5))


def repack(path: Path) -> None:
    write_shard(path, texts(500, 4))


CHANGES = [
    (lambda path: flip(path, "100.txt"), ["100.txt has another content"]),
    (lambda path: flip(path, "103.txt"), ["103.txt has another content"]),
    (lose, ["103.txt is gone", "103.json is gone"]),
    (add, ["104.txt is not in its index"]),
    (repack, ["100.txt is gone", "and 11 more"]),
]


@pytest.mark.parametrize(("change", "told"), CHANGES)
@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize("kept", [None, "indexes"])
def test_reading_never_replaces_checksums(folder, change, told, verify, kept):
    index_dir = None if kept is None else str(folder / kept)
    index_shards(str(folder), index_dir=index_dir)
    before = {path: path.read_bytes() for path in folder.rglob("*.index")}
    assert len(before) == 3
    change(folder / "01.tar")
    found = check_shards(str(folder), index_dir=index_dir).problems
    for _ in range(2):
        with pytest.raises(UsageError, match=r"data.train: 1 of 3 shards changed since") as caught:
            ShardSource(str(folder), verify=verify, index_dir=index_dir)
        assert all(line in str(caught.value) for line in told), str(caught.value)
        assert f"mmtrain data index {folder}/01.tar" in str(caught.value)
    assert {path: path.read_bytes() for path in folder.rglob("*.index")} == before
    assert check_shards(str(folder), index_dir=index_dir).problems == found != ()
    report = index_shards(str(folder), index_dir=index_dir)
    assert set(told) - {"and 11 more"} <= {line.split(": ", 1)[1] for line in report.changes}
    assert check_shards(str(folder), index_dir=index_dir).problems == ()
    ShardSource(str(folder), verify=True, index_dir=index_dir)


def test_checksums_count_wherever_they_are(folder):
    """An index without them in the first place hides none with them in the second."""
    index_shards(str(folder))
    kept = folder / "indexes"
    open_shards(str(folder), index_dir=str(kept))
    assert not kept.exists()
    beside = {path: path.read_bytes() for path in folder.glob("*.index")}
    for path in beside:
        path.unlink()
    open_shards(str(folder), index_dir=str(kept))
    for path, data in beside.items():
        path.write_bytes(data)
    assert all(shard.summary.has_crc for shard in open_shards(str(folder), index_dir=str(kept)))
    flip(folder / "01.tar", "100.txt")
    with pytest.raises(UsageError, match=r"100.txt has another content"):
        ShardSource(str(folder), index_dir=str(kept))
    assert check_shards(str(folder), index_dir=str(kept)).problems


def test_an_index_of_an_older_version_has_the_same_fingerprint(folder):
    index_shards(str(folder))
    first = ShardSource(str(folder)).fingerprint
    for path in folder.glob("*.index"):
        index = load_index(path)
        assert index is not None
        older = dataclasses.replace(index.summary, crc_hash=None)
        index_file.save_index(dataclasses.replace(index, summary=older), path)
    assert ShardSource(str(folder)).fingerprint == first


def test_a_flipped_byte_makes_no_other_index(folder):
    path = open_shards(str(folder))[1].index_path
    good, data = load_index(path), path.read_bytes()
    assert good is not None
    for at in range(0, len(data), 5):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :])
        read = load_index(path)
        assert read is None or read.summary == good.summary
        assert read is None or read.offset_M.tolist() == good.offset_M.tolist()


def test_a_summary_says_what_a_shard_has(folder):
    summary = load_summary(open_shards(str(folder))[1].index_path)
    assert summary is not None
    assert (summary.num_samples, summary.num_members, summary.has_crc) == (4, 8, False)
    assert summary.extensions == ("json", "txt")
    assert summary.damage == ()
