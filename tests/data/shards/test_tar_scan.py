"""The walk along a tar: every member of every format, and no loss without a word."""

import io
import random
import tarfile
from pathlib import Path

import pytest

from mmtrain.data.shards.tar_header import BLOCK
from mmtrain.data.shards.tar_scan import Damage, Member, scan
from mmtrain.data.storage.file import LocalFile

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def write(path: Path, files: dict[str, bytes], tar_format: int = tarfile.GNU_FORMAT) -> Path:
    with tarfile.open(path, "w", format=tar_format) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def walk(path: Path) -> tuple[dict[str, bytes], list[Damage]]:
    """Members' contents by name, and the damage told."""
    members: dict[str, bytes] = {}
    damage = []
    with LocalFile(str(path)) as tar:
        for found in scan(tar):
            if isinstance(found, Member):
                members[found.name] = tar.read(found.offset, found.size)
            else:
                damage.append(found)
    return members, damage


FILES = {f"{i:03}.{kind}": bytes([i]) * (i * 97 % 1500) for i in range(20) for kind in ("a", "b")}


@pytest.mark.parametrize("name", FORMATS)
def test_members_are_tarfiles(tmp_path, name):
    files = FILES | {
        "a/" * 30 + "deep.txt": b"deep",
        "x" * 99 + "/" + "y" * 99: b"prefix and name",
        "exactly-full": b"z" * BLOCK,
        "empty": b"",
    }
    if name != "ustar":
        files |= {"w" * 300 + ".jpg": b"long", "grüße/日本.txt": "日本".encode()}
    path = write(tmp_path / "a.tar", files, FORMATS[name])
    members, damage = walk(path)
    assert damage == []
    assert members == files
    with tarfile.open(path) as tar, LocalFile(str(path)) as own:
        offsets = [member.offset_data for member in tar.getmembers()]
        assert [found.offset for found in scan(own) if isinstance(found, Member)] == offsets


def test_folders_are_no_members_and_links_are_told(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        kinds = {"d": b"5", "link": b"2", "hard": b"1", "device": b"3", "holes": b"S"}
        for name, kind in kinds.items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "target"
            tar.addfile(member)
        tar.addfile(tarfile.TarInfo("file"))
    members, damage = walk(path)
    assert members == {"file": b""}
    to_pack = "holds no data: pack what it leads to (tar --dereference --hard-dereference)"
    assert [found.reason for found in damage] == [
        f"link is a link, which {to_pack}",
        f"hard is a link, which {to_pack}",
        "device is a special file, which holds no data: leave it out",
        "holes is a sparse member, which is not read: pack it without --sparse",
    ]


def test_a_size_in_base_256(tmp_path):
    """GNU's form for 8 GiB and more, which writers may use for less."""
    path = write(tmp_path / "a.tar", {"one": b"1234", "two": b"5"})
    data = bytearray(path.read_bytes())
    data[124:136] = b"\x80" + (4).to_bytes(11, "big")
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:BLOCK])
    path.write_bytes(data)
    assert walk(path) == ({"one": b"1234", "two": b"5"}, [])


def test_tars_joined_end_to_end_are_told(tmp_path):
    one = write(tmp_path / "1.tar", {"one": b"1"}).read_bytes()
    two = write(tmp_path / "2.tar", {"two": b"2"}).read_bytes()
    both = tmp_path / "both.tar"
    both.write_bytes(one + two)
    members, damage = walk(both)
    assert members == {"one": b"1", "two": b"2"}
    assert "second tar" in damage[0].reason


def test_every_cut_is_told(tmp_path):
    whole = write(tmp_path / "a.tar", FILES).read_bytes()
    end = len(whole.rstrip(b"\0")) // BLOCK * BLOCK
    path = tmp_path / "cut.tar"
    for length in range(BLOCK, end, 331):
        path.write_bytes(whole[:length])
        members, damage = walk(path)
        assert damage, length
        assert members.items() <= FILES.items()


@pytest.mark.parametrize("lost", [1, 100, BLOCK, BLOCK + 1, 960])
def test_bytes_missing_inside_a_member_cost_that_member_alone(tmp_path, lost):
    """It would swallow the headers behind it, and with them what they announce."""
    path = write(tmp_path / "a.tar", FILES)
    with tarfile.open(path) as tar:
        begin = tar.getmember("010.a").offset_data + 10
    assert len(FILES["010.a"]) == 970
    data = path.read_bytes()
    path.write_bytes(data[:begin] + data[begin + lost :])
    members, damage = walk(path)
    assert [found.reason for found in damage[:1]] == ["bytes are missing in 010.a"]
    assert members == {name: content for name, content in FILES.items() if name != "010.a"}


def mutate(data: bytes, rng: random.Random) -> bytes:
    """A piece lost, put in twice, zeroed or overwritten, or a few bits of headers flipped."""
    begin = rng.randrange(len(data))
    if rng.random() < 0.5:
        begin = begin // BLOCK * BLOCK
    end = begin + rng.choice([1, 7, BLOCK, 3 * BLOCK, rng.randrange(1, 5000)])
    match rng.randrange(4):
        case 0:
            return data[:begin] + data[end:]
        case 1:
            return data[:end] + data[begin:]
        case 2:
            return data[:begin] + bytes(len(data[begin:end])) + data[end:]
        case _:
            return data[:begin] + rng.randbytes(len(data[begin:end])) + data[end:]


def test_hardly_a_member_is_lost_without_a_word(tmp_path):
    """Of 400 tars damaged at random. What is a sound tar again is told by an index alone."""
    rng = random.Random(0)
    path = tmp_path / "mutated.tar"
    silent = {"ours": 0, "tarfile": 0}
    for turn in range(400):
        files = {
            f"{i:03}.{kind}": rng.randbytes(rng.randrange(1500))
            for i in range(12)
            for kind in ("jpg", "txt")
        }
        whole = write(path, files, list(FORMATS.values())[turn % 3]).read_bytes()
        path.write_bytes(mutate(whole, rng))
        members, damage = walk(path)
        silent["ours"] += not damage and not members.keys() >= files.keys()
        silent["tarfile"] += loses_silently(path, files)
        # The rest behind the damage is found again.
        assert sum(members.get(name) == data for name, data in files.items()) >= len(files) - 12
    assert silent["ours"] <= 2
    assert silent["tarfile"] > 100


def loses_silently(path: Path, files: dict[str, bytes]) -> bool:
    try:
        with tarfile.open(path) as tar:
            return not {member.name for member in tar} >= files.keys()
    except tarfile.TarError:
        return False
