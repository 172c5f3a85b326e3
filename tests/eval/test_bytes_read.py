"""Evaluations, embeddings and the page's search read the files that they want, and no others."""

import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from mmtrain.data.members import read_members
from mmtrain.data.sources.open import open_source
from mmtrain.eval.captions import ReadCaptions
from mmtrain.eval.classify.classes import ClassList
from mmtrain.eval.classify.knn import evaluate_knn
from mmtrain.eval.classify.linear_probe import evaluate_linear_probe
from mmtrain.eval.classify.zero_shot import evaluate_zero_shot
from mmtrain.eval.features.embed import embed
from mmtrain.eval.look.look import look_at
from mmtrain.eval.retrieval import evaluate_retrieval
from mmtrain.serve.index import embed_now
from tests.data.shard_files import encoded, picture, write_shard
from tests.eval.tiny import make_encoder
from tests.serve.tiny import tiny_clip, tiny_encoder

NUM = 10
_HEADER = 512


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    """Small pictures with everything beside them that data may have, most of it large."""
    samples = []
    for number in range(NUM):
        files = {
            "mp4": os.urandom(90_000),
            "png": encoded(picture((20, 18), seed=number), "PNG"),
            "seg.png": os.urandom(40_000),
            "cls": str(number % 2),
            "txt": f"picture {number}",
            "npy": os.urandom(200_000),
            "json": {"concept": number % 2, "title": f"title {number}", "notes": "x" * 50_000},
        }
        samples.append((f"{number:05d}", files))
    path = write_shard(tmp_path / "a.tar", samples)
    open_source(str(path))  # the index is made
    return path


@pytest.fixture
def read_bytes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of each read of a shard."""
    counted: list[int] = []
    real = os.pread

    def pread(descriptor: int, count: int, offset: int) -> bytes:
        data = real(descriptor, count, offset)
        counted.append(len(data))
        return data

    monkeypatch.setattr(os, "pread", pread)
    return counted


def bytes_of(path: Path, *extensions: str) -> int:
    """Of these files of all samples, each with its header."""
    with tarfile.open(path) as tar:
        members = [m for m in tar.getmembers() if m.name.split(".", 1)[1] in extensions]
    return sum(member.size + _HEADER for member in members)


CLASSES = ClassList(ids=("0", "1"), names=("even", "odd"))


def zero_shot(path: Path, out: Path, key: str) -> None:
    evaluate_zero_shot(
        make_encoder(), data=str(path), classes=CLASSES, label_key=key, num_examples=0
    )


def probe(path: Path, out: Path) -> None:
    evaluate_linear_probe(
        make_encoder(),
        train=str(path),
        test=str(path),
        classes=CLASSES,
        label_key="cls",
        num_examples=0,
        strengths=(1.0,),
    )


def neighbours(path: Path, out: Path) -> None:
    evaluate_knn(
        make_encoder(),
        train=str(path),
        test=str(path),
        classes=CLASSES,
        label_key="cls",
        num_examples=0,
        neighbours=3,
    )


def retrieval(path: Path, out: Path, key: str) -> None:
    evaluate_retrieval(make_encoder(), data=str(path), captions=(key,), num_examples=0)


def look(path: Path, out: Path) -> None:
    read = ReadCaptions(fields=("txt",), lines=False)
    look_at(
        tiny_encoder(tiny_clip()),
        source=open_source(str(path)),
        read_text=lambda members: read(members)[0],
        names=("txt",),
    )


def search(path: Path, out: Path) -> None:
    index = embed_now(tiny_encoder(tiny_clip()), [str(path)])
    for number in range(NUM):
        index.thumbnail(number)


JOBS: dict[str, tuple[Callable[[Path, Path], object], int, tuple[str, ...]]] = {
    "zero-shot cls": (lambda p, o: zero_shot(p, o, "cls"), 1, ("png", "cls")),
    "zero-shot json": (lambda p, o: zero_shot(p, o, "concept"), 1, ("png", "json")),
    "linear probe": (probe, 2, ("png", "cls")),
    "knn": (neighbours, 2, ("png", "cls")),
    "retrieval txt": (lambda p, o: retrieval(p, o, "txt"), 1, ("png", "txt")),
    "retrieval json": (lambda p, o: retrieval(p, o, "title"), 1, ("png", "json")),
    "embed": (lambda p, o: embed(make_encoder(), data=str(p), out=o), 1, ("png",)),
    "look": (look, 1, ("png", "txt")),
    "search": (search, 2, ("png",)),
}


@pytest.mark.parametrize("job", JOBS)
def test_only_what_is_wanted_is_read(shard: Path, tmp_path: Path, read_bytes: list[int], job: str):
    run, times, extensions = JOBS[job]
    run(shard, tmp_path / "out")
    told_fresh = 3 * 4096 * 2  # what tells that an index is still its shard's, twice at most
    assert sum(read_bytes) <= times * bytes_of(shard, *extensions) + told_fresh
    assert sum(read_bytes) >= times * bytes_of(shard, *extensions)


def test_examples_read_the_picture_alone(shard: Path, read_bytes: list[int]):
    evaluate_retrieval(make_encoder(), data=str(shard), captions=("txt",), num_examples=3)
    assert sum(read_bytes) <= 3 * bytes_of(shard, "png", "txt") + 3 * 4096


def test_a_picture_under_another_name_is_still_found(tmp_path: Path, read_bytes: list[int]):
    files = {"photo": encoded(picture(), "PNG"), "cls": "1", "json": {"title": "x"}}
    source = open_source(str(write_shard(tmp_path / "b.tar", [("0", files)])))
    assert read_members(source, 0)["photo"] == files["photo"]
    shown = {"png": encoded(picture(), "PNG"), "cls": "1", "json": {"title": "x"}}
    source = open_source(str(write_shard(tmp_path / "c.tar", [("0", shown)])))
    assert read_members(source, 0).keys() == {"png"}
    assert read_members(source, 0, ("cls",), or_json=True).keys() == {"png", "cls"}
    assert read_members(source, 0, ("title",), or_json=True).keys() == {"png", "json"}
    assert read_members(source, 0, ("title",)).keys() == {"png"}
    assert read_members(source, 0, None).keys() == shown.keys()
