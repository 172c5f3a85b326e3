"""Damaged folders of features: each is one line that names the file, wherever it is read."""

import io
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmtrain.data.feature_files import read_job, read_npy, read_pieces
from mmtrain.data.joins.keyed import open_keyed
from mmtrain.data.members import StoredFeatures
from mmtrain.data.sample_error import SampleError
from mmtrain.errors import UsageError
from mmtrain.eval.features.embed_folder import EmbedFolder

ROWS = np.random.default_rng(0).normal(size=(9, 6)).astype(np.float32)
JOB = {"num_samples": 9, "piece": 3, "dtype": "float32"}
TOLD = ("data_fingerprint", "model_fingerprint", "preprocess", "precision")
Damage = Callable[[Path], Any]


def write_folder(path: Path, form: str) -> Path:
    """Three pieces of three rows, as `mmtrain embed` leaves them."""
    folder = EmbedFolder(
        path=path, job=dict.fromkeys(TOLD, "x") | JOB | {"format": form}, num_pieces=3
    )
    for number in folder.begin():
        rows = range(3 * number, 3 * number + 3)
        folder.save(number, ROWS[rows], [f"k{row}" for row in rows], [])
    folder.finish()
    return path


def changed(change: Callable[[np.ndarray], np.ndarray]) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / "features-00001.npy"
        np.save(path, change(np.load(path)), allow_pickle=True)

    return damage


def holding(name: str, content: bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(content)


def swap(one: str, other: str) -> Damage:
    def damage(folder: Path) -> None:
        (folder / one).rename(folder / "kept")
        (folder / other).rename(folder / one)
        (folder / "kept").rename(folder / other)

    return damage


def lose(*names: str) -> Damage:
    return lambda folder: [(folder / name).unlink() for name in names]


def rename(one: str, other: str) -> Damage:
    return lambda folder: (folder / one).rename(folder / other)


def copy(one: str, other: str) -> Damage:
    return lambda folder: shutil.copy(folder / one, folder / other)


def cut(name: str, size: int) -> Damage:
    return lambda folder: os.truncate(folder / name, size)


def pipe(name: str) -> Damage:
    return lambda folder: ((folder / name).unlink(), os.mkfifo(folder / name))


def archive(folder: Path) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, a=ROWS[3:6])
    (folder / "features-00001.npy").write_bytes(buffer.getvalue())


def told_of(**changes: Any) -> Damage:
    def damage(folder: Path) -> None:
        told = json.loads((folder / "embed.json").read_text())
        (folder / "embed.json").write_text(json.dumps(told | changes))

    return damage


NPY: dict[str, tuple[Damage, str]] = {
    "empty": (cut("features-00001.npy", 0), "features-00001.npy is cut"),
    "cut in its header": (cut("features-00000.npy", 40), "features-00000.npy is cut"),
    "cut": (cut("features-00002.npy", 150), "features-00002.npy is cut"),
    "a piece lost": (lose("features-00002.npy", "keys-00002.json"), "features-00002.npy"),
    "features lost": (lose("features-00001.npy"), "features-00001.npy"),
    "keys lost": (lose("keys-00001.json"), "keys-00001.json"),
    "features swapped": (
        swap("features-00000.npy", "features-00001.npy"),
        "00000.npy and its keys",
    ),
    "keys swapped": (swap("keys-00001.json", "keys-00002.json"), "features-00001.npy and its keys"),
    "pieces left over": (copy("features-00001.npy", "features-00003.npy"), "features-00003.npy"),
    "a copy beside": (copy("features-00001.npy", "features-copy.npy"), "features-copy.npy"),
    "fewer keys": (holding("keys-00001.json", b'["k3", "k4"]'), "with a key each"),
    "keys of numbers": (holding("keys-00001.json", b"[3, 4, 5]"), "keys-00001.json is no list"),
    "keys without end": (holding("keys-00001.json", b"[" * 100_000), "keys-00001.json is no JSON"),
    "keys of Latin-1": (holding("keys-00001.json", b'["\xe9"]'), "keys-00001.json is no JSON"),
    "no rows": (changed(lambda x: x[:0]), "with a key each"),
    "one number": (changed(lambda x: x[0, 0]), "with a key each"),
    "flat": (changed(lambda x: x[:, 0]), "with a key each"),
    "wider": (changed(lambda x: np.tile(x, 2)), "is 12 wide, others are 6"),
    "whole numbers": (changed(lambda x: x.astype(np.int64)), "is of int64"),
    "complex": (changed(lambda x: x.astype(np.complex64)), "is of complex64"),
    "texts": (changed(lambda x: x.astype("U8")), "not of real numbers"),
    "objects": (changed(lambda x: x.astype(object)), "features-00001.npy is cut or no file"),
    "an archive": (archive, "features-00001.npy is an archive"),
    "a pipe": (pipe("features-00001.npy"), "features-00001.npy is no file"),
    "a pipe of keys": (pipe("keys-00001.json"), "keys-00001.json is no file"),
    "unfinished": (
        lambda folder: (folder / "embed.json").rename(folder / "embed.partial.json"),
        "",
    ),
    "no description": (holding("embed.json", b"[1]"), "embed.json is no table"),
    "a spoilt one": (holding("embed.json", b"[" * 100_000), "embed.json is no JSON"),
    "more pieces": (told_of(num_pieces=10**12), "digests of embed.json"),
    "fewer rows": (told_of(num_rows=8), "9 rows, and embed.json tells of 8"),
    "other digests": (told_of(digests=[1, None, "a"]), "features-00000.npy and its keys"),
}
PARQUET: dict[str, tuple[Damage, str]] = {
    "cut": (cut("features-00001.parquet", 300), "features-00001.parquet"),
    "empty": (cut("features-00001.parquet", 0), "features-00001.parquet"),
    "lost": (lose("features-00002.parquet"), "features-00002.parquet"),
    "all lost": (lose(*(f"features-0000{n}.parquet" for n in range(3))), "features-00000.parquet"),
    "swapped": (swap("features-00000.parquet", "features-00001.parquet"), "00000.parquet and its"),
    "left over": (copy("features-00001.parquet", "features-00007.parquet"), "00007.parquet"),
}
EVERY = [("npy", *each) for each in NPY.values()] + [("parquet", *one) for one in PARQUET.values()]
NAMES = [f"npy, {name}" for name in NPY] + [f"parquet, {name}" for name in PARQUET]


@pytest.mark.parametrize(("form", "damage", "told"), EVERY, ids=NAMES)
def test_a_damaged_folder_is_not_joined(
    tmp_path: Path, form: str, damage: Damage, told: str
) -> None:
    """Nor searched: the same reader serves both."""
    folder = write_folder(tmp_path / "f", form)
    damage(folder)
    with pytest.raises(UsageError) as caught:
        open_keyed(str(folder), key_column="key", index_dir=None)
    line = str(caught.value)
    assert line.startswith(f"data.join = {folder} cannot be read (") and told in line, line
    with pytest.raises((ValueError, OSError)):
        job = read_job(folder)
        assert job is not None
        list(read_pieces(folder, job))


def test_a_folder_that_is_finished_meanwhile_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By who embeds, as another process looks for the one description and for the other."""
    folder = write_folder(tmp_path / "f", "npy")
    done, begun, is_file = folder / "embed.json", folder / "embed.partial.json", Path.is_file
    done.rename(begun)

    def meanwhile(path: Path) -> bool:
        found = is_file(path)
        if path in (done, begun) and is_file(begun):
            begun.rename(done)
        return found

    monkeypatch.setattr(Path, "is_file", meanwhile)
    assert read_job(folder) is not None


@pytest.mark.parametrize("form", ["npy", "parquet"])
def test_a_whole_folder_and_one_without_digests_are(tmp_path: Path, form: str) -> None:
    folder = write_folder(tmp_path / "f", form)
    for _ in range(2):
        one = open_keyed(str(folder), key_column="key", index_dir=None)
        numbers = [one.index.row(f"k{row}") for row in range(9)]
        assert numbers == [*range(9)]
        told_of(digests=None)(folder)


def test_spoilt_headers_are_one_error() -> None:
    """numpy lets out errors of its parser too."""
    buffer, rng, refused = io.BytesIO(), random.Random(0), 0
    np.save(buffer, ROWS)
    for _ in range(400):
        content = bytearray(buffer.getvalue())
        for _ in range(rng.choice((1, 2, 4))):
            content[rng.randrange(118)] = ord(rng.choice("()[]{},:'\"09 eEjL\0\xff\n"))
        try:
            read_npy(io.BytesIO(bytes(content)))
        except ValueError:
            refused += 1
    assert refused > 200


def npy(values: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=True)
    return buffer.getvalue()


def test_features_that_teach_nothing_are_bad_samples() -> None:
    """A row of zeros has no direction, and would count as none at all."""
    stored, buffer = StoredFeatures(name="f", width=3), io.BytesIO()
    np.savez(buffer, a=np.ones(3))
    spoilt = [npy([1, 2]), npy([1j, 2, 3]), npy(["a", "b", "c"]), npy([object()] * 3), b"", b"PK"]
    spoilt += [buffer.getvalue(), npy([1, np.nan, 2]), npy([1e300, 1, 1]), npy(np.zeros(3))]
    for content in spoilt:
        with pytest.raises(SampleError, match=r"^f "):
            stored.read({"f.npy": content})
    found_E = stored.read({"f.npy": npy(np.array([1, 0, -2], dtype=">f8"))})
    assert found_E is not None and found_E.tolist() == [1, 0, -2]
