"""`mmtrain data check` says of every sample what a training would do with it, and why."""

import csv
import json
import re
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from mmtrain.cli import main
from mmtrain.data.images.transforms import PreprocessConfig
from mmtrain.data.sample_check import check_samples, joined_reports
from mmtrain.data.sources.open import open_source
from mmtrain.errors import UsageError
from mmtrain.eval.samples import EvalBatches, read_text_field, spans
from tests.data.shard_files import build_data, encoded, pairs, picture, write_set, write_shard

JPEG = encoded(picture(), "JPEG")
APART = r"\(its files stand apart in the tar; pack it sorted by name\)"
IN_FOLDERS = r"\(its files lie in several folders of the tar, .*?\)"
DOTTED = r"\(its name has dots, and the extension begins at the first one; .*?\)"


def write_members(path: Path, names: Iterable[str]) -> str:
    """A tar of members in this order: images, texts and .json by their last suffix."""
    files = {"jpg": JPEG, "txt": b"a cat", "json": b'{"title": "a cat"}', "cls": b"3"}
    samples = [name.rpartition(".") for name in names]
    return str(write_shard(path, [(stem, {ext: files[ext]}) for stem, _, ext in samples]))


def check(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    status = main(["data", "check", *words])
    out, err = capsys.readouterr()
    return status, out, err


def names(num: int, form: str) -> list[str]:
    return [form.format(n) for n in range(num)]


TORN = {
    "images first": ([*names(20, "{:04}.jpg"), *names(20, "{:04}.txt")], 40, APART),
    "folder by folder": ([*names(9, "{:04}.txt"), "x/y.jpg", *names(9, "{:04}.jpg")], 19, APART),
    "json apart": ([*names(5, "a/{:04}.jpg"), *names(5, "a/{:04}.txt")], 10, APART),
    "two folders": ([*names(7, "img/{:02}.jpg"), *names(7, "txt/{:02}.txt")], 14, IN_FOLDERS),
    "dotted": ([f"photo{n}.v1.2.{e}" for n in range(6) for e in ("jpg", "txt")], 6, DOTTED),
    "version": ([f"p{n}.{e}" for n in range(6) for e in ("en.jpg", "txt")], 0, ""),
    "texts dotted": ([f"p{n}.{e}" for n in range(6) for e in ("jpg", "en.txt")], 6, DOTTED),
    "named after the image": (
        [f"p{n}.{e}" for n in range(6) for e in ("jpg", "jpg.txt")],
        6,
        DOTTED,
    ),
    "several of one name": (["p.1.jpg", "p.1.txt", "p.2.jpg", "p.2.txt"], 1, DOTTED),
}


@pytest.mark.parametrize("case", TORN)
def test_names_that_tear_samples_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
):
    members, num_bad, why = TORN[case]
    path = write_members(tmp_path / "a.tar", members)
    status, out, err = check(capsys, path)
    assert status == (1 if num_bad else 0), err
    if not num_bad:
        assert f"{len(members) // 2} samples, all can be used" in out
        return
    assert f"{num_bad} of " in err and "would not be used" in err
    lines = err.splitlines()
    assert len(lines) == num_bad + 1
    tarred = [line for line in lines[:-1] if "x/y" not in line]
    assert all(re.search(why, line) for line in tarred), err
    assert all(line.startswith(f"mmtrain: {path}: ") for line in lines[:-1])
    with pytest.raises(UsageError, match=f"all of 1?[0-9] samples tried .*{why}"):
        for number in range(3):
            build_data(path, batch_size=1).batch(number)


def test_what_is_no_fault_of_names_is_not_said_to_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """A mask beside the image, and the same numbers in each class's folder."""
    members = ["0.jpg", "0.seg.png", "a/1.jpg", "b/1.jpg", "b/1.txt"]
    samples = [(name.partition(".")[0], name.partition(".")[2]) for name in members]
    path = write_shard(
        tmp_path / "a.tar", [(k, {e: b"a cat" if e == "txt" else JPEG}) for k, e in samples]
    )
    status, _, err = check(capsys, str(path))
    assert status == 1 and "2 of 3 samples would not be used (no caption: 2)" in err


def test_every_reason_is_counted_and_every_sample_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    samples = pairs(0, 12)
    samples[1][1]["jpg"] = JPEG[: len(JPEG) // 2]
    samples[4][1].pop("txt")
    samples[5][1].pop("webp")
    samples[7][1]["jpg"] = b"<html>"
    samples[9][1]["txt"] = b"\xff\xfe"
    samples[10][1]["txt"] = "   "
    path = write_shard(tmp_path / "a.tar", samples)
    status, out, err = check(capsys, str(path), "--label-key", "concept", "--workers", "2")
    assert status == 1 and "label_key = concept: 6 of 12 samples have a label" in out
    for key, reason in (
        (1, "image truncated"),
        (4, "no caption"),
        (5, "no image"),
        (7, "no image that Pillow reads"),
        (9, "caption is no UTF-8"),
        (10, "no caption"),
    ):
        assert f"mmtrain: {path}: {key:05}: {reason}" in err
    assert "6 of 12 samples would not be used (no caption: 2, " in err.splitlines()[-1]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.tar"]  # nothing is written
    # The same samples that a training replaces.
    told = {line.split(": ")[2] for line in err.splitlines()[:-1]}
    data = build_data(str(path), batch_size=12, max_bad_fraction=1.0)
    assert told == {bad.key for bad in data.batch(0).bad}


def test_a_sound_set_is_0_and_damage_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    train = write_set(tmp_path, (6, 5))
    assert main(["data", "index", train]) == 0
    status, out, err = check(capsys, train)
    assert status == 0 and "11 samples, all can be used" in out and not err
    shard = tmp_path / "001.tar"
    shard.write_bytes(shard.read_bytes()[:2000])
    status, _, err = check(capsys, train)
    assert status == 2 and "cut inside" in err
    assert check(capsys, str(tmp_path / "x.tar"))[0] == 2
    assert check(capsys, train, "--captions", "txt", "--no-captions")[0] == 2


def test_a_long_list_is_cut(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = write_members(tmp_path / "a.tar", [*names(80, "{:04}.jpg"), *names(80, "{:04}.txt")])
    status, _, err = check(capsys, path)
    assert status == 1 and len(err.splitlines()) == 102
    assert "mmtrain: and 60 more" in err and "160 of 160 samples" in err


def test_captions_are_where_they_are_said_to_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = write_members(
        tmp_path / "a.tar", [f"{n}.{e}" for n in range(4) for e in ("jpg", "json")]
    )
    status, _, err = check(capsys, path)
    assert status == 1 and "in its .json: title; --captions names other places" in err
    assert check(capsys, path, "--captions", "title")[0] == 0
    assert check(capsys, path, "--no-captions")[0] == 0
    status, _, err = check(capsys, path, "--captions", "title", "--label-key", "concept")
    assert status == 2 and "--label-key = concept: 0 of 4 samples have it" in err


def write_manifest(folder: Path, form: str) -> str:
    rows = [{"filepath": f"{n}.jpg", "title": f"cat {n}"} for n in range(5)]
    rows[3]["filepath"] = "gone.jpg"
    for n in range(5):
        (folder / f"{n}.jpg").write_bytes(JPEG if n != 2 else JPEG[:200])
    path = folder / f"pairs.{form}"
    if form == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["filepath", "title"])
            writer.writeheader()
            writer.writerows(rows)
    return str(path)


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_manifests_are_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str):
    path = write_manifest(tmp_path, form)
    status, _, err = check(capsys, path, "--captions", "title")
    assert status == 1 and "2 of 5 samples would not be used" in err
    assert "image missing" in err and "image truncated" in err and path in err
    assert check(capsys, path, "--captions", "title", "--index-dir", str(tmp_path))[0] == 2


def test_a_malformed_row_is_named_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """FILE:LINE is all the name that it has."""
    path = Path(write_manifest(tmp_path, "jsonl"))
    path.write_text(path.read_text().replace('"title": "cat 1"}', '"title"'))
    line = f"{path}:2: row is no JSON"
    assert any(
        each.startswith(f"mmtrain: {line}")
        for each in check(capsys, str(path), "--captions", "title")[2].splitlines()
    )
    source = open_source(str(path), image_key="filepath")
    batches = EvalBatches(
        source, PreprocessConfig(image_size=16), read_value=dict, spans=spans(source.num_samples, 8)
    )
    assert any(str(fault).startswith(line) for fault in batches.batch(0).faults)


def test_class_folders_are_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for n in range(3):
            (tmp_path / name / f"{n}.jpg").write_bytes(JPEG)
    assert check(capsys, str(tmp_path))[0] == 0
    (tmp_path / "dog" / "1.jpg").write_bytes(b"GIF89a")
    status, _, err = check(capsys, str(tmp_path))
    assert status == 1 and "dog/1.jpg" in err and "1 of 6 samples" in err


@pytest.mark.parametrize("key", ["cls", "txt"])
def test_an_evaluation_explains_names_too(tmp_path: Path, key: str):
    path = write_members(tmp_path / "a.tar", [*names(3, "{}.jpg"), *names(3, "{}." + key)])

    def read(members: dict[str, bytes]) -> Any:
        return read_text_field(members, key, setting="label_key")

    batches = EvalBatches(
        open_source(path), PreprocessConfig(image_size=16), read_value=read, spans=spans(6, 6)
    )
    reasons = [fault.reason for fault in batches.batch(0).faults]
    assert len(reasons) == 6 and all("stand apart" in reason for reason in reasons)


def test_files_of_no_sample_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "a.tar"
    write_shard(path, pairs(0, 3))
    with tarfile.open(path, "a") as tar:
        tar.addfile(tarfile.TarInfo("README"))
    assert "1 files are of no sample" in check(capsys, str(path))[1]


@pytest.mark.parametrize("num", [1, 2, 4])
def test_parts_of_shards_find_together_what_one_check_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], num: int
):
    for shard in range(4):
        samples = [
            (f"{shard}{n}", {"png": encoded(picture((9, 9)), "PNG"), "txt": "a"}) for n in "ab"
        ]
        if shard % 3 == 1:
            samples.append((f"{shard}c", {"png": b"no image", "txt": "a"}))
        write_shard(tmp_path / f"{shard}.tar", samples)
    assert main(["data", "index", str(tmp_path)]) == 0
    with (tmp_path / "2.tar").open("r+b") as file:
        file.seek(600)
        file.write(b"damage")
    capsys.readouterr()
    lines: list[str] = []
    for number in range(num):
        status = main(["data", "check", str(tmp_path), "--shard-range", f"{number}/{num}"])
        told = capsys.readouterr()
        lines += [
            line for line in (told.out + told.err).splitlines() if "samples, verified" in line
        ]
        assert status == {0: 0, 1: 1, 2: 2}[max((0, 1, 2, 0)[number::num])]
    assert main(["data", "check", str(tmp_path)]) == 2
    told = capsys.readouterr().out
    assert sorted(lines) == sorted(line for line in told.splitlines() if "verified" in line)
    assert main(["data", "check", str(tmp_path), "--shard-range", "0/5"]) == 2
    assert "--shard-range 0/5: there are only 4 shards" in capsys.readouterr().err


def test_parts_of_a_table_are_stretches_of_its_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    rows = ["filepath,caption", *(f"{n}.png,a" for n in range(7))]
    (tmp_path / "t.csv").write_text("\n".join(rows) + "\n")
    for number in (0, 1, 2, 4, 6):
        (tmp_path / f"{number}.png").write_bytes(encoded(picture((9, 9)), "PNG"))
    found = []
    for number in range(3):
        words = ["data", "check", str(tmp_path / "t.csv"), "--shard-range", f"{number}/3"]
        found.append(main(words))
        found.append(capsys.readouterr().err.count("image missing"))
    assert found[::2] == [0, 1, 1]


@pytest.mark.parametrize("num", [1, 2, 3, 5])
@pytest.mark.parametrize("captions", [{"txt": 1.0}, {}])
def test_reports_of_parts_join_to_that_of_one_check(
    tmp_path: Path, num: int, captions: dict[str, float]
) -> None:
    """Names too, of which there are more than are kept, and what no sample has."""
    kinds = [{"png": b"no"}, {"txt": "a"}, {"jpg": JPEG[:200]}, {"jpg": JPEG, "txt": "a"}]
    for shard in range(5):
        rows = [(f"{shard}-{n:03}", kinds[(shard + n) % 4 if n % 3 else 0]) for n in range(41)]
        write_shard(tmp_path / f"{shard}.tar", rows)
    whole = check_samples(open_source(str(tmp_path)), captions=captions, label_key="no")
    parts = [
        check_samples(open_source(str(tmp_path), part=(n, num)), captions=captions, label_key="no")
        for n in range(num)
    ]
    places = [str(path) for path in sorted(tmp_path.glob("*.tar"))]
    assert len(whole.named) == 100 and len(whole.reasons) > 1
    assert joined_reports(parts, places=places) == whole


def test_a_hint_is_given_where_every_part_has_it(tmp_path: Path) -> None:
    mute, told = {"jpg": JPEG}, {"jpg": JPEG, "txt": "a"}
    for last in (mute, told):
        write_shard(tmp_path / "0.tar", [("a", mute), ("b", mute)])
        write_shard(tmp_path / "1.tar", [("c", last)])
        reports = [
            check_samples(open_source(str(tmp_path), part=part), captions={"txt": 1.0})
            for part in ((0, 1), (0, 2), (1, 2))
        ]
        assert joined_reports(reports[1:]) == reports[0]
        assert bool(reports[0].hint) == (last is mute)
        for path in tmp_path.iterdir():
            path.unlink()
