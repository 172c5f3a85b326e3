"""Whatever becomes of a tar after it was indexed, each member that is lost or altered is named."""

import os
import random
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from mmtrain.cli import main
from mmtrain.data.shards.check import ShardCheck, check_shards, index_shards
from tests.data.shard_files import pairs, write_shard

BLOCK = 512


@dataclass(frozen=True)
class Member:
    name: str
    start: int  # of its header
    content: int
    end: int  # of its content, without the zeros behind
    stop: int


class Tar:
    """A sound tar: its bytes, and where each member lies."""

    def __init__(self, path: Path) -> None:
        self.data = path.read_bytes()
        with tarfile.open(path) as tar:
            self.members = [
                Member(
                    one.name,
                    one.offset,
                    one.offset_data,
                    one.offset_data + one.size,
                    one.offset_data + -(-one.size // BLOCK) * BLOCK,
                )
                for one in tar.getmembers()
            ]

    def hit(self, start: int, stop: int) -> set[str]:
        """Members of which a byte in start..stop is."""
        return {m.name for m in self.members if start < m.end and stop > m.start}


Mutation = Callable[[Tar, random.Random], tuple[bytes, set[str]]]
"""-> the new bytes, and the members that are lost or altered in them."""


def flip(tar: Tar, dice: random.Random) -> tuple[bytes, set[str]]:
    """One bit of one content; the size stays."""
    one = dice.choice(tar.members)
    place = dice.randrange(one.content, one.end)
    data = bytearray(tar.data)
    data[place] ^= 1 << dice.randrange(8)
    return bytes(data), {one.name}


def flip_header(tar: Tar, dice: random.Random) -> tuple[bytes, set[str]]:
    one = dice.choice(tar.members)
    data = bytearray(tar.data)
    data[dice.randrange(one.start, one.content)] ^= 1 << dice.randrange(8)
    return bytes(data), {one.name}


def overwrite(tar: Tar, dice: random.Random) -> tuple[bytes, set[str]]:
    """A run of bytes, of several members perhaps; zeros, as a lost page leaves them, or noise."""
    start = dice.randrange(tar.members[-1].end)
    stop = min(start + dice.choice((1, 7, 100, BLOCK, 4096)), len(tar.data))
    new = bytes(stop - start) if dice.random() < 0.5 else dice.randbytes(stop - start)
    data = tar.data[:start] + new + tar.data[stop:]
    changed = [i for i in range(start, stop) if data[i] != tar.data[i]]
    hit = {m.name for m in tar.members if any(m.start <= i < m.end for i in changed)}
    return data, hit


def cut(tar: Tar, dice: random.Random) -> tuple[bytes, set[str]]:
    at = dice.randrange(BLOCK, tar.members[-1].end)
    return tar.data[:at], {m.name for m in tar.members if m.end > at}


def cut_cleanly(tar: Tar, dice: random.Random) -> tuple[bytes, set[str]]:
    """Between two members, and closed as a writer would; what is behind may be filled up."""
    at = dice.choice(tar.members[1:]).start
    filled = len(tar.data) - at if dice.random() < 0.5 else 2 * BLOCK
    return tar.data[:at] + bytes(filled), {m.name for m in tar.members if m.start >= at}


def leave_out(tar: Tar, dice: random.Random) -> tuple[bytes, set[str]]:
    """A sound tar without one member; the end is filled up to the size that it had, or not."""
    one = dice.choice(tar.members)
    data = tar.data[: one.start] + tar.data[one.stop :]
    return data + bytes(dice.choice((0, one.stop - one.start))), {one.name}


def lose_bytes(tar: Tar, dice: random.Random) -> tuple[bytes, set[str]]:
    start = dice.randrange(tar.members[-1].end - 1)
    stop = start + dice.choice((1, 100, BLOCK))
    return tar.data[:start] + tar.data[stop:], tar.hit(start, min(stop, tar.members[-1].end))


def rename(tar: Tar, dice: random.Random) -> tuple[bytes, set[str]]:
    one = dice.choice(tar.members)
    info = tarfile.TarInfo(f"zz{one.name}")
    info.size = one.end - one.content
    header = info.tobuf(tarfile.USTAR_FORMAT)
    return tar.data[: one.start] + header + tar.data[one.content :], {one.name}


def exchange(tar: Tar, dice: random.Random) -> tuple[bytes, set[str]]:
    """The contents of two members of the same size, under sound headers."""
    first = dice.choice(tar.members)
    same = [m for m in tar.members if m.end - m.content == first.end - first.content]
    second = dice.choice(same)
    data = bytearray(tar.data)
    data[first.content : first.end] = tar.data[second.content : second.end]
    data[second.content : second.end] = tar.data[first.content : first.end]
    altered = tar.data[first.content : first.end] != tar.data[second.content : second.end]
    return bytes(data), {first.name, second.name} if altered else set()


def replace(tar: Tar, dice: random.Random) -> tuple[bytes, set[str]]:
    """Another content under the name, of another size, in a sound tar."""
    one = dice.choice(tar.members)
    content = dice.randbytes(dice.randrange(1, 3000))
    info = tarfile.TarInfo(one.name)
    info.size = len(content)
    padded = content + bytes(-len(content) % BLOCK)
    new = info.tobuf(tarfile.USTAR_FORMAT) + padded
    return tar.data[: one.start] + new + tar.data[one.stop :], {one.name}


MUTATIONS: tuple[Mutation, ...] = (
    flip,
    flip_header,
    overwrite,
    cut,
    cut_cleanly,
    leave_out,
    lose_bytes,
    rename,
    exchange,
    replace,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A shard of six samples, and its bytes beside."""
    path = tmp_path / "set"
    path.mkdir()
    write_shard(path / "0.tar", pairs(0, 6), format=tarfile.USTAR_FORMAT)
    return path


def checked(folder: Path, data: bytes) -> ShardCheck:
    (folder / "0.tar").write_bytes(data)
    (report,) = check_shards(str(folder / "*.tar")).shards
    return report


def unnamed(report: ShardCheck, names: set[str]) -> set[str]:
    """Those that no line begins with."""
    return {n for n in names if not any(line.startswith(n + " ") for line in report.problems)}


def mutate(folder: Path, numbers: range) -> None:
    """Each must be told, and told by its members' names."""
    tar = Tar(folder / "0.tar")
    for number in numbers:
        mutation, dice = MUTATIONS[number % len(MUTATIONS)], random.Random(number)
        data, lost = mutation(tar, dice)
        report = checked(folder, data)
        told = f"{mutation.__name__}, seed {number}: {report.problems}"
        assert unnamed(report, lost) == set(), told
    assert checked(folder, tar.data).problems == ()


@pytest.mark.parametrize("kept", ["indexes", "a catalogue"])
def test_what_is_lost_or_altered_is_named(folder: Path, kept: str):
    index_of(folder, kept)
    mutate(folder, range(60))


@pytest.mark.slow
def test_two_thousand_mutations(folder: Path):
    index_of(folder, "a catalogue")
    mutate(folder, range(100, 2100))


def index_of(folder: Path, kept: str) -> None:
    assert main(["data", "index", str(folder)]) == 0
    assert (folder / "shards.catalogue").is_file()
    if kept == "indexes":
        os.remove(folder / "shards.catalogue")
    else:
        os.remove(folder / "0.tar.index")


def test_without_checksums_a_content_of_the_same_size_is_not_told(folder: Path):
    """What the table in docs/data.md says: only then, and only inside of contents."""
    index_shards(str(folder / "*.tar"), crc=False)
    tar, unseen = Tar(folder / "0.tar"), 0
    for number in range(40):
        mutation, dice = MUTATIONS[number % len(MUTATIONS)], random.Random(number)
        data, lost = mutation(tar, dice)
        report = checked(folder, data)
        assert not report.is_verified
        if unnamed(report, lost):
            unseen += 1
            assert len(data) == len(tar.data), mutation.__name__
            assert all(
                data[m.start : m.content] == tar.data[m.start : m.content] for m in tar.members
            ), mutation.__name__
    assert unseen
