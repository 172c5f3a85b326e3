"""Shares of several machines, by `data index --shard-range`, that do not fit: one line each."""

import shutil
from pathlib import Path

import pytest

from mmtrain.cli import main
from tests.data.shard_files import write_set

NUM = 5


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_set(tmp_path / "set", (2,) * NUM)
    return tmp_path / "set"


def index(*words: object) -> int:
    return main(["data", "index", *map(str, words)])


def share(folder: Path | str, part: str, *words: object) -> int:
    return index(folder, "--shard-range", part, "--workers", "1", *words)


def told(capsys) -> str:
    """The one line of what went wrong."""
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize("part", ["0/6", "5/6", "7/100"])
def test_more_parts_than_shards_are_refused_by_every_machine(folder, capsys, part):
    """Not by those alone whose part is empty: the others would look as if all was well."""
    assert share(folder, part) == 2
    assert f"--shard-range {part}: there are only {NUM} shards; choose fewer parts" in told(capsys)
    assert not list(folder.glob("*.index"))


@pytest.mark.parametrize("part", ["2/2", "3/2", "-1/2", "1", "1/0", "a/b", "1/2/3"])
def test_a_part_that_is_none_is_refused(folder, capsys, part):
    assert index(folder, f"--shard-range={part}") == 2
    assert f"{part} must be i/n with i from 0 to n - 1" in told(capsys)


@pytest.mark.parametrize(
    ("parts", "num", "first"),
    [(["0/2"], 2, "001"), (["1/2", "1/2"], 3, "000"), (["0/3", "1/3", "1/3"], 1, "002")],
)
def test_a_part_that_is_missing_is_told_and_one_twice_does_no_harm(
    folder, capsys, parts, num, first
):
    for part in parts:
        assert share(folder, part) == 0
    capsys.readouterr()
    assert index(folder, "--merge") == 2
    line = told(capsys)
    assert f"{num} of {NUM} shards have no index" in line and f"{first}.tar; run mmtrain" in line
    assert not (folder / "shards.catalogue").exists()


def test_parts_of_another_listing_do_not_pass_for_all(folder, tmp_path, capsys):
    """One machine saw all shards, the other some: each has its own idea of every second one."""
    some = f"{folder}/00{{0,1,3,4}}.tar"
    assert share(folder, "0/2") == 0  # 0, 2, 4
    assert share(some, "1/2") == 0  # 1, 4
    capsys.readouterr()
    assert index(folder, "--merge") == 2
    assert f"1 of {NUM} shards have no index" in (line := told(capsys)) and "003.tar" in line
    assert index(some.replace(",3", ""), "--merge") == 0
    capsys.readouterr()
    shutil.copyfile(folder / "000.tar", folder / "003.tar.new")
    (folder / "003.tar.new").rename(folder / "002.tar")  # replaced since it was indexed
    assert index(folder, "--merge") == 2
    assert f"2 of {NUM} shards have no index with checksums that is theirs" in told(capsys)


def test_parts_in_another_place_are_not_found(folder, tmp_path, capsys):
    assert share(folder, "0/2", "--index-dir", tmp_path / "there") == 0
    assert share(folder, "1/2") == 0
    capsys.readouterr()
    assert index(folder, "--merge", "--index-dir", tmp_path / "other") == 2
    assert f"3 of {NUM} shards have no index" in told(capsys)


def test_a_merge_reads_no_shard_so_it_trusts_no_other_way(folder, capsys):
    assert index(folder, "--merge", "--trust") == 2
    assert "--trust has no effect with --merge" in told(capsys)
