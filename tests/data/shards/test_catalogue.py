"""Catalogues: the same samples as without, and whatever became of the shards is told."""

import multiprocessing
import os
import pickle
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmtrain.cli import main
from mmtrain.data.images.header_size import header_size
from mmtrain.data.sample_error import SampleError
from mmtrain.data.shards import opened, opening
from mmtrain.data.shards.catalogue import Catalogue, load_catalogue
from mmtrain.data.shards.check import check_shards, index_shards
from mmtrain.data.shards.index_file import load_index, save_index
from mmtrain.data.shards.source import ShardSource
from mmtrain.errors import UsageError
from tests.data.shard_files import build_data, encoded, pairs, picture, write_set, write_shard
from tests.data.shards.test_shards import CHANGES, flip, texts

NAME = "shards.catalogue"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three shards of 3, 4 and 5 samples."""
    folder = tmp_path / "set"
    folder.mkdir()
    for number, size in enumerate((3, 4, 5)):
        write_shard(folder / f"{number:02}.tar", texts(100 * number, size))
    return folder


def catalogued(folder: Path, *options: str) -> Path:
    """Index a folder as a user does; only the catalogue is left of it."""
    assert main(["data", "index", str(folder), "--workers", "1", *options]) == 0
    for index in folder.glob("*.index"):
        index.unlink()
    return folder / NAME


def opened_at(path: Path) -> Catalogue:
    catalogue = load_catalogue(path)
    assert catalogue is not None
    return catalogue


def everything(source: ShardSource) -> list[tuple[str, dict[str, bytes]]]:
    return [(source.key(i), source.read(i)) for i in range(source.num_samples)]


def all_texts(source: ShardSource) -> list[str]:
    return [source.read(i)["txt"].decode() for i in range(source.num_samples)]


def count(monkeypatch: pytest.MonkeyPatch, module: object, name: str) -> list[object]:
    calls: list[object] = []
    real = getattr(module, name)
    monkeypatch.setattr(module, name, lambda *a, **k: (calls.append(a), real(*a, **k))[1])
    return calls


def test_the_same_with_a_catalogue_and_without(tmp_path: Path, monkeypatch):
    train = write_set(tmp_path / "train", (6, 1, 5))
    plain = ShardSource(train)
    index_shards(train)
    indexed = ShardSource(train)
    catalogued(tmp_path / "train")
    made, read = (
        count(monkeypatch, opening, "build_index"),
        count(monkeypatch, opened, "load_index"),
    )
    source = ShardSource(train)
    assert everything(source) == everything(indexed) == everything(plain)
    assert source.fingerprint == indexed.fingerprint != plain.fingerprint
    assert source.shard_sizes == plain.shard_sizes == [6, 1, 5]
    assert [shard.path for shard in source.shards[1:]] == [shard.path for shard in plain.shards[1:]]
    copy = pickle.loads(pickle.dumps(source))
    assert everything(copy) == everything(plain) and not made
    assert len(read) == 6  # of the two others
    monkeypatch.undo()
    batches = [build_data(train, batch_size=3).batch(n) for n in range(4)]
    for name in (NAME, "*.index"):
        for path in (tmp_path / "train").glob(name):
            path.unlink()
        other = [build_data(train, batch_size=3).batch(n) for n in range(4)]
        for one, two in zip(batches, other, strict=True):
            assert torch.equal(one.images_BCHW, two.images_BCHW)
            assert torch.equal(one.tokens_BT, two.tokens_BT)


def test_parts_of_several_machines_join_to_the_same_file(folder: Path, tmp_path: Path, capsys):
    copy = shutil.copytree(folder, tmp_path / "copy")
    whole = catalogued(folder).read_bytes()
    for part in ("1/2", "0/2"):
        assert main(["data", "index", str(copy), "--merge"]) == 2
        assert "have no index with checksums" in capsys.readouterr().err
        assert main(["data", "index", str(copy), "--shard-range", part]) == 0
        assert not (copy / NAME).exists()
    assert main(["data", "index", str(copy), "--merge"]) == 0
    assert (copy / NAME).read_bytes() == whole
    assert main(["data", "index", str(copy), "--shard-range", "3/4"]) == 2
    assert "choose fewer parts" in capsys.readouterr().err


def test_processes_index_as_one_does(tmp_path: Path):
    write_set(tmp_path / "a", (2,) * 18)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    one = catalogued(tmp_path / "a")
    assert main(["data", "index", str(tmp_path / "b"), "--workers", "2"]) == 0
    assert (tmp_path / "b" / NAME).read_bytes() == one.read_bytes()


def test_an_interrupted_command_goes_on(folder: Path, monkeypatch):
    whole = catalogued(folder)
    expected = whole.read_bytes()
    whole.unlink()
    real = opening.build_index

    def stop(shard, **options):
        if "02" in shard.path:
            raise KeyboardInterrupt
        return real(shard, **options)

    monkeypatch.setattr(opening, "build_index", stop)
    with pytest.raises(KeyboardInterrupt):
        index_shards(str(folder), workers=1)
    assert not whole.exists() and len([*folder.glob("*.index")]) == 2
    monkeypatch.undo()
    made = count(monkeypatch, opening, "build_index")
    assert main(["data", "index", str(folder), "--trust"]) == 0
    assert len(made) == 1 and whole.read_bytes() == expected
    assert {path.suffix for path in folder.iterdir()} == {".tar", ".index", ".catalogue"}


@pytest.mark.parametrize("index_dir", [None, "indexes"])
def test_a_moved_folder(folder: Path, tmp_path: Path, monkeypatch, index_dir):
    """Beside the shards it goes with them; elsewhere it stays behind, and indexes are made."""
    kept = None if index_dir is None else str(tmp_path / index_dir)
    options = () if kept is None else ("--index-dir", kept)
    assert main(["data", "index", str(folder), *options]) == 0
    for index in [*folder.glob("*.index"), *(tmp_path / "indexes").glob("*.index")]:
        index.unlink()
    assert all_texts(ShardSource(str(folder), index_dir=kept, verify=True))
    made = count(monkeypatch, opening, "build_index")
    expected = all_texts(ShardSource(str(folder), index_dir=kept))
    assert made == []
    moved = tmp_path / "moved"
    folder.rename(moved)
    assert all_texts(ShardSource(str(moved), index_dir=kept)) == expected
    assert len(made) == (0 if index_dir is None else 3)


def test_shards_added_removed_and_renamed(folder: Path, monkeypatch):
    catalogue = catalogued(folder)
    before = catalogue.read_bytes()
    made = count(monkeypatch, opening, "build_index")
    write_shard(folder / "03.tar", texts(300, 2))
    assert all_texts(ShardSource(str(folder)))[-2:] == ["text 300", "text 301"]
    assert len(made) == 1 and (folder / "03.tar.index").exists()
    (folder / "01.tar").unlink()
    assert ShardSource(str(folder)).shard_sizes == [3, 5, 2]
    assert ShardSource(str(folder / "{00,02}.tar")).shard_sizes == [3, 5]
    (folder / "00.tar").rename(folder / "04.tar")
    assert all_texts(ShardSource(str(folder)))[-3:] == ["text 0", "text 1", "text 2"]
    # Under a name that another shard had, it is another shard.
    (folder / "04.tar").rename(folder / "01.tar")
    with pytest.raises(UsageError, match=r"1 of 3 shards .*01\.tar .*is not in its index"):
        ShardSource(str(folder))
    assert catalogue.read_bytes() == before
    assert main(["data", "index", str(folder)]) == 0
    assert opened_at(catalogue).names() == ["01.tar", "02.tar", "03.tar"]
    assert ShardSource(str(folder), verify=True).shard_sizes == [3, 5, 2]


def test_a_part_of_a_set_leaves_the_others_in(folder: Path):
    catalogue = catalogued(folder)
    write_shard(folder / "03.tar", texts(300, 2))
    (folder / "00.tar").unlink()
    write_shard(folder / "01.tar", texts(700, 9))
    assert main(["data", "index", str(folder / "03.tar")]) == 0
    assert opened_at(catalogue).names() == ["02.tar", "03.tar"]


def test_data_check_compares_with_a_catalogue(folder: Path, capsys):
    path = catalogued(folder)
    assert check_shards(str(folder)).problems == ()
    assert all(shard.is_verified for shard in check_shards(str(folder)).shards)
    flip(folder / "01.tar", "100.txt")
    (problem,) = check_shards(str(folder)).problems
    assert problem == f"{folder}/01.tar: 100.txt has another content"
    assert main(["data", "check", str(folder), "--no-captions"]) == 2
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UsageError, match="is damaged or of another version"):
        check_shards(str(folder))


@pytest.mark.parametrize(("change", "told"), CHANGES)
@pytest.mark.parametrize("moment", ["start", "verify", "opening"])
def test_a_changed_shard_is_named(
    folder: Path, monkeypatch, capsys, change: Callable[[Path], None], told, moment: str
):
    """Also without the indexes, and in sets of which only sizes are compared at the start."""
    catalogue = catalogued(folder)
    before = catalogue.read_bytes()
    if moment != "start":
        monkeypatch.setattr(opening, "_MOST_COMPARED", 0)
    change(folder / "01.tar")
    with pytest.raises(UsageError, match=r"data.train: 1 of 3 shards changed since") as caught:
        everything(ShardSource(str(folder), verify=moment == "verify"))
    assert all(line in str(caught.value) for line in told), str(caught.value)
    assert f"mmtrain data index {folder}/01.tar" in str(caught.value)
    assert catalogue.read_bytes() == before
    assert main(["data", "index", str(folder)]) == 0
    said = capsys.readouterr().out
    assert all(line in said for line in told if line != "and 11 more")
    assert everything(ShardSource(str(folder), verify=True))


def test_a_change_between_the_pieces_is_told_by_the_member(tmp_path: Path, monkeypatch):
    path = write_shard(tmp_path / "0.tar", pairs(0, 30))
    catalogued(tmp_path)
    source = ShardSource(str(path), verify=True)
    entry = source._reader.index(0).members(7)["txt"]
    with path.open("r+b") as file:
        file.seek(entry.offset)
        file.write(b"X")
    with pytest.raises(SampleError, match="checksum wrong"):
        ShardSource(str(path), verify=True).read(7)


@pytest.mark.parametrize("at", range(0, 60))
def test_a_damaged_catalogue_is_told(folder: Path, at: int):
    """Cut or with a byte changed, anywhere: never other samples."""
    expected = everything(ShardSource(str(folder)))
    path = catalogued(folder)
    data = bytearray(path.read_bytes())
    position = at * len(data) // 60
    if at % 5 == 0:
        del data[position:]
    else:
        data[position] ^= 1 << at % 8
    path.write_bytes(data)
    try:
        assert everything(ShardSource(str(folder))) == expected  # a byte that only fills up
    except UsageError as error:
        assert NAME in str(error) and "data index" in str(error)
    assert main(["data", "index", str(folder)]) == 0
    assert everything(ShardSource(str(folder))) == expected


def test_one_made_anew_while_in_use(folder: Path):
    path = catalogued(folder)
    source = ShardSource(str(folder))
    sent = pickle.dumps(source)
    write_shard(folder / "03.tar", texts(300, 2))
    assert main(["data", "index", str(folder)]) == 0
    assert len(everything(source)) == 12  # what was opened stays
    with pytest.raises(UsageError, match="made anew while it was in use; start again"):
        pickle.loads(sent)
    assert len(Catalogue(path)) == 4


def _open(train: str, gate, made) -> None:
    real = opening.build_index

    def build_slowly(*arguments, **options):
        time.sleep(0.1)
        return real(*arguments, **options)

    opening.build_index = build_slowly  # in a process of its own
    gate.wait()
    made.put(sum(shard.is_new for shard in ShardSource(train).shards))


def test_processes_that_start_together_index_once(tmp_path: Path):
    train = write_set(tmp_path / "train", (30,) * 12)
    context = multiprocessing.get_context("fork")
    gate, made = context.Barrier(4), context.Queue()
    workers = [context.Process(target=_open, args=(train, gate, made)) for _ in range(4)]
    for worker in workers:
        worker.start()
    assert sorted(made.get(timeout=60) for _ in workers) == [0, 0, 0, 12]
    for worker in workers:
        worker.join()


@pytest.mark.parametrize("kind", ["index", "catalogue"])
@pytest.mark.parametrize("read", [ShardSource, check_shards, index_shards])
def test_what_another_process_has_just_written_is_not_damaged(
    folder: Path, monkeypatch: pytest.MonkeyPatch, read: Callable[[str], object], kind: str
):
    """It was not there when it was to be read, and is when that is judged."""
    if kind == "catalogue":
        catalogued(folder)
    else:
        index_shards(str(folder))
    aside = folder.parent / "aside"
    aside.mkdir()
    written = [shutil.move(path, aside) for path in sorted(folder.glob(f"*.{kind}"))]
    assert written
    real = os.path.lexists

    def lexists(path: str | Path) -> bool:
        if (aside / Path(path).name).exists():
            shutil.move(aside / Path(path).name, path)
        return real(path)

    monkeypatch.setattr(os.path, "lexists", lexists)
    found = read(str(folder))
    assert not list(aside.iterdir())
    match found:
        case ShardSource():
            assert found.num_samples == 12 and not any(one.is_new for one in found.shards)
        case _:
            assert not getattr(found, "problems", ()) and not getattr(found, "changes", ())


def test_many_shards_at_once_read_no_index_again(tmp_path: Path, monkeypatch):
    """More than files are held open, in any order."""
    train = write_set(tmp_path / "train", (2,) * 150)
    source = ShardSource(train)
    read = count(monkeypatch, opened, "load_index")
    before = len(os.listdir("/proc/self/fd"))
    order = np.random.default_rng(0).permutation(300)
    for _ in range(2):
        assert [source.read(int(i))["txt"].decode() for i in order] == [
            f"picture {i}" for i in order
        ]
    assert len(read) == 150
    assert len(os.listdir("/proc/self/fd")) - before <= 128


@pytest.mark.parametrize("size", [(40, 30), (1, 300), (257, 16)])
def test_sizes_of_images_are_those_of_their_headers(tmp_path: Path, size: tuple[int, int]):
    image = picture(size)
    exif = Image.Exif()
    exif[0x010E] = "x" * 30_000
    files = {
        "jpg": encoded(image, "JPEG"),
        "progressive.jpg": encoded(image, "JPEG", progressive=True),
        "exif.jpg": encoded(image, "JPEG", exif=exif),
        "grey.jpg": encoded(image.convert("L"), "JPEG"),
        "png": encoded(image, "PNG"),
        "webp": encoded(image, "WEBP"),
        "lossless.webp": encoded(image, "WEBP", lossless=True),
        "alpha.webp": encoded(picture(size, mode="RGBA"), "WEBP"),
    }
    assert {name: header_size(data) for name, data in files.items()} == dict.fromkeys(
        files, size[::-1]
    )
    for data in files.values():
        for end in range(0, 40):
            assert header_size(data[:end]) in ((0, 0), size[::-1])
    samples = [
        ("a", {"jpg": files["exif.jpg"], "txt": "a", "json": {}}),
        ("b", {"txt": "no image"}),
        ("c", {"png": files["png"], "seg.png": encoded(picture((5, 5)), "PNG")}),
        ("d", {"gif": encoded(image, "GIF"), "txt": "not told by its header here"}),
        ("e", {"picture": files["webp"], "txt": "by its content"}),
    ]
    write_shard(tmp_path / "0.tar", samples)
    index = opened_at(catalogued(tmp_path)).index(0)
    assert index is not None
    width, height = size
    assert index.height_S.tolist() == [height, 0, height, 0, height]
    assert index.width_S.tolist() == [width, 0, width, 0, width]


def test_sizes_are_added_to_an_index_from_before(folder: Path, capsys):
    index_shards(str(folder))
    for path in folder.glob("*.index"):
        index = load_index(path)
        assert index is not None
        save_index(replace(index, summary=replace(index.summary, has_sizes=False)), path)
    assert main(["data", "index", str(folder), "--trust"]) == 0
    assert "0 indexes written" in capsys.readouterr().out
    assert main(["data", "index", str(folder)]) == 0
    assert "3 indexes written" in capsys.readouterr().out
    assert opened_at(folder / NAME).summary(0).has_sizes
