"""What `mmtrain data index` and `data check` report of sound and of damaged shards."""

import gzip
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmtrain.cli import main
from mmtrain.data.shards.check import check_shards, index_shards
from mmtrain.errors import UsageError
from tests.data.shard_files import write_set, write_shard


@pytest.fixture
def train(tmp_path) -> str:
    return write_set(tmp_path / "train", (6, 5))


def shard(train: str, number: int = 1) -> Path:
    return Path(train).parent / f"{number:03}.tar"


def member(path: Path, name: str) -> tarfile.TarInfo:
    with tarfile.open(path) as tar:
        return tar.getmember(name)


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def test_sound_shards(train):
    report = index_shards(train)
    assert (report.num_samples, report.num_new, report.problems) == (11, 2, ())
    assert index_shards(train).num_new == 0
    checked = check_shards(train)
    assert checked.problems == ()
    assert [shard.num_samples for shard in checked.shards] == [6, 5]
    assert all(shard.is_indexed and shard.is_verified for shard in checked.shards)


def test_checksums_are_added_to_an_index_without(train):
    assert index_shards(train, crc=False).num_new == 2
    assert not any(shard.is_verified for shard in check_shards(train).shards)
    assert index_shards(train, crc=False).num_new == 0
    assert index_shards(train, crc=True).num_new == 2
    assert all(shard.is_verified for shard in check_shards(train).shards)


def test_checking_writes_nothing(train):
    before = sorted(os.listdir(Path(train).parent))
    checked = check_shards(train)
    assert checked.problems == ()
    assert not any(shard.is_indexed or shard.is_verified for shard in checked.shards)
    assert sorted(os.listdir(Path(train).parent)) == before


UNREADABLE = {
    "words": b"no tar" * 500,
    "nothing": b"",
    "half a header": b"s0.png" + bytes(94),
    "compressed": gzip.compress(bytes(1024)),
}


@pytest.mark.parametrize("what", [*UNREADABLE, "a cut one", "a flipped one"])
def test_what_cannot_be_read_is_not_called_readable(
    what: str, train: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor is a shard called verified that is not what was indexed; both end with a status."""
    sound, path = shard(train, 0), shard(train)
    index_shards(train)
    capsys.readouterr()
    if what in UNREADABLE:
        path.write_bytes(UNREADABLE[what])
    elif what == "a cut one":
        os.truncate(path, member(path, "00008.webp").offset)
    else:
        flip_a_pixel(path)
    assert main(["data", "check", train]) == 2
    told = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    assert told[str(sound)] == "6 samples, verified"
    wanted = {
        "a cut one": "2 samples, damaged or changed",
        "a flipped one": "5 samples, damaged or",
    }
    assert told[str(path)].startswith(wanted.get(what, "cannot be read"))
    assert not {"verified", "readable"} & set(told[str(path)].split())


def flip_a_pixel(path: Path) -> None:
    webp = member(path, "00008.webp")
    overwrite(path, webp.offset_data + webp.size // 2, b"\x17\x17")


def lose_the_last_sample(path: Path) -> None:
    """Cut between members, and closed again as a writer would."""
    end = member(path, "00010.jpg").offset
    path.write_bytes(path.read_bytes()[:end] + bytes(1024))


def cut_inside(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: member(path, "00007.jpg").offset_data + 20])


def swap_two_texts(path: Path) -> None:
    data = path.read_bytes()
    at = [member(path, f"000{n:02}.txt").offset for n in (7, 8)]
    texts = [data[o : o + 1024] for o in at]
    overwrite(path, at[0], texts[1])
    overwrite(path, at[1], texts[0])


@pytest.mark.parametrize(
    ("damage", "problems"),
    [
        (flip_a_pixel, ["00008.webp has another content"]),
        (
            lose_the_last_sample,
            [
                "00010.jpg is gone",
                "00010.json is gone",
                "00010.txt is gone",
                " bytes, its index says ",
            ],
        ),
        (swap_two_texts, ["00007.txt has moved or has another header"]),
        (
            lambda path: overwrite(path, member(path, "00007.txt").offset, b"x"),
            ["checksum is wrong"],
        ),
        (lambda path: overwrite(path, path.stat().st_size - 9, b"x"), ["zeros before the end"]),
        (cut_inside, ["cut inside 00007.jpg", "00007.jpg is gone", "00010.txt is gone"]),
        (lambda path: path.write_bytes(b"<html>" + bytes(4000)), ["a web page, no tar"]),
        (lambda path: path.write_bytes(b""), ["empty; fetch it again"]),
    ],
)
def test_damage_is_named(train, damage, problems):
    index_shards(train)
    damage(shard(train))
    report = check_shards(train)
    assert report.shards[0].problems == ()
    told = report.shards[1].problems
    assert told
    for problem in problems:
        assert any(problem in line for line in told), told
    assert all(line.startswith(str(shard(train))) for line in report.problems)
    assert not any("\n" in line for line in report.problems)


@pytest.mark.parametrize("place", [0.2, 0.4, 0.6, 0.8])
def test_indexing_again_reads_all_of_a_shard(tmp_path: Path, place: float, capsys: Any) -> None:
    """A change outside of the pieces that tell a stale index; trusted where that is asked for."""
    content = np.random.default_rng(0).bytes(200_000)
    samples = [(f"{i:04}", {"bin": content, "txt": f"text {i}"}) for i in range(10)]
    path = write_shard(tmp_path / "a.tar", samples)
    words = ["data", "index", str(path)]
    assert main(words) == 0
    before = path.with_name("a.tar.index").read_bytes()
    assert main(words) == 0 and "0 indexes written" in capsys.readouterr().out
    overwrite(path, int(path.stat().st_size * place), b"other bytes")
    assert main([*words, "--trust"]) == 0
    assert "0 indexes written" in capsys.readouterr().out
    assert path.with_name("a.tar.index").read_bytes() == before
    assert main(words) == 0
    told = capsys.readouterr().out
    assert "changed since the checksums that are replaced: " in told
    assert ".bin has another content" in told and "1 index written" in told
    assert check_shards(str(path)).problems == ()


def test_checksums_are_not_replaced_by_those_of_a_damaged_shard(train: str, capsys: Any) -> None:
    index_shards(train)
    path = shard(train)
    whole, kept = path.read_bytes(), path.with_name(f"{path.name}.index").read_bytes()
    overwrite(path, member(path, "00007.txt").offset, b"x")
    assert main(["data", "index", train]) == 2
    assert "checksum is wrong" in capsys.readouterr().err
    assert path.with_name(f"{path.name}.index").read_bytes() == kept
    path.write_bytes(whole)
    assert check_shards(train).problems == ()


def test_a_long_list_is_cut(tmp_path):
    path = write_shard(tmp_path / "a.tar", [(f"{i:04}", {"txt": "x"}) for i in range(150)])
    index_shards(str(path))
    write_shard(path, [(f"{i:04}", {"txt": "y"}) for i in range(150)])
    problems = check_shards(str(path)).problems
    assert len(problems) == 100
    assert problems[-1].endswith("and 51 more")


def test_damage_seen_while_indexing(train):
    path = shard(train)
    path.write_bytes(path.read_bytes()[: member(path, "00009.png").offset_data + 20])
    report = index_shards(train)
    assert report.num_samples == 9
    assert any("cut inside 00009.png" in line and str(path) in line for line in report.problems)


def test_shards_that_are_missing(tmp_path):
    for function in (index_shards, check_shards):
        with pytest.raises(UsageError, match=r"data = .*the glob matches no file"):
            function(str(tmp_path / "*.tar"))
