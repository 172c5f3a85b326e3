"""`mmtrain data stats` and `view`: what they count is what is there."""

import io
import json
import random
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmtrain.cli import main
from mmtrain.data.shards.source import ShardSource
from mmtrain.data.survey.duplicates import groups_of_pictures, picture_hash
from mmtrain.data.survey.scripts import script_of
from mmtrain.data.survey.seen import Seen
from mmtrain.data.survey.where import Where
from tests.data.shard_files import encoded, picture, write_shard
from tests.data.survey.pictures import landscape, sheet
from tests.mistakes import mistake


def stats_of(data: str, out: Path, *options: str) -> dict:
    assert main(["data", "stats", data, "--json", str(out), *options]) == 0
    return json.loads(out.read_text())


@pytest.mark.parametrize(("key", "looked"), [("klass", ()), ("Kind", ()), ("txt", ("--num", "9"))])
def test_a_label_that_no_sample_has_is_refused(
    key: str, looked: tuple[str, ...], shards: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Nothing is written, so that no figure of 0 labels passes for one of the data."""
    out = tmp_path / "s.json"
    words = ["data", "stats", shards, "--json", str(out), "--label-key", key, *looked]
    assert main(words) == 2 and not out.exists()
    num = "9" if looked else "25"
    told = f"--label-key = {key}: 0 of {num} samples looked at have it"
    assert told in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("workers", ["0", "2"])
def test_figures(shards: str, tmp_path: Path, workers: str) -> None:
    stats = stats_of(shards, tmp_path / "s.json", "--workers", workers, "--label-key", "kind")
    assert (stats["num_samples"], stats["num_usable"], stats["num_bad"]) == (25, 23, 2)
    assert stats["bad_by_reason"] == {"image truncated": 1, "no caption": 1}
    assert {row["key"] for row in stats["bad"]} == {"torn", "mute"}
    assert stats["formats"] == {"JPEG": 22, "PNG": 2}
    assert stats["width"]["max"] == 115 and stats["height"]["p50"] == 72
    assert stats["num_captions"] == 24 and stats["distinct_captions"] == 14
    assert stats["scripts"] == {"Latin": 21, "Cyrillic": 1, "Japanese": 1, "Han": 1}
    assert stats["caption_words"]["max"] == 5 and stats["captions_cut"] == 0
    assert stats["caption_tokens"]["min"] == 4  # "a dog" between start and end
    assert stats["labels"] == {"num_labelled": 20, "num_distinct": 2, "largest": 10}
    same = stats["duplicates"]["same_file"]
    assert [group["keys"] for group in same["largest"]] == [["000", "same"]]
    alike = stats["duplicates"]["same_picture"]
    assert sorted(group["keys"] for group in alike["largest"]) == [
        ["000", "same"],
        ["001", "smaller"],
        ["002", "again"],
    ]
    cut = stats_of(shards, tmp_path / "c.json", "--context-length", "5")
    assert cut["captions_cut"] == 12  # all but "a dog" and one of a single letter


def test_some_samples_are_drawn_and_told(shards: str, tmp_path: Path) -> None:
    one, again, other = (
        stats_of(shards, tmp_path / f"{n}.json", "--num", "6", "--seed", seed)
        for n, seed in enumerate(("1", "1", "2"))
    )
    assert one["num_looked_at"] == 6 and one == again != other


def test_the_page_of_figures_holds_itself(shards: str, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert main(["data", "stats", shards, "--out", str(page)]) == 0
    text = page.read_text()
    assert "image truncated" in text and "Japanese" in text and "001, smaller" in text
    assert text.count("<svg") >= 9 and text.count("data:image/webp;base64,") == 8
    assert not re.search(r"<script|(src|href)=\"(?!data:|#)|url\(", text)


def test_figures_of_data_that_cannot_be_used(tmp_path: Path) -> None:
    """Every column is empty, and the page is there all the same."""
    write_shard(tmp_path / "0.tar", [("a", {"jpg": b"no image", "txt": ""})])
    page = tmp_path / "page.html"
    stats = stats_of(str(tmp_path / "0.tar"), tmp_path / "s.json", "--out", str(page))
    assert stats["num_bad"] == 1 and stats["width"] == {}
    assert "no image" in page.read_text()


@pytest.mark.parametrize(
    ("options", "keys"),
    [
        (["--key", "00?", "--where", "kind=dog"], ["001", "003", "005", "007", "009"]),
        (["--where", "n>=17"], ["017", "018", "019"]),
        (["--where", "n>2", "--where", "n<5"], ["003", "004"]),
        (["--where", "image.kind=PNG"], ["smaller", "mute"]),
        (["--where", "image.width>113"], ["018", "019"]),
        (["--where", "txt~KATZEN", "--where", "n<3"], ["000", "002"]),
        (["--where", "kind!=dog", "--where", "kind!=cat", "--key", "s*"], ["same", "smaller"]),
        (["--bad"], ["torn", "mute"]),
        (["--where", "bad~trunc"], ["torn"]),
        (["--where", "txt=狗"], ["again"]),
        (["--key", "same", "mute"], ["same", "mute"]),
    ],
)
def test_a_sheet_has_what_is_meant(
    shards: str, tmp_path: Path, options: list[str], keys: list[str]
) -> None:
    assert sheet(shards, tmp_path / "page.html", *options) == keys


def test_a_sheet_is_drawn_by_its_seed_and_holds_itself(shards: str, tmp_path: Path) -> None:
    one, again, other = (
        sheet(shards, tmp_path / f"{n}.html", "--num", "5", "--seed", seed)
        for n, seed in enumerate(("1", "1", "2"))
    )
    assert len(one) == 5 and one == again != other
    assert len(sheet(shards, tmp_path / "all.html")) == 25
    text = (tmp_path / "all.html").read_text()
    assert "夕方の犬" in text and "image truncated" in text
    assert text.count("data:image/webp;base64,") == 24  # one has no picture
    assert not re.search(r"<script|(src|href)=\"(?!data:|#)|url\(", text)


def test_a_sheet_of_what_a_folder_says_is_text_alone(tmp_path: Path) -> None:
    """Captions and fields are shown, not run."""
    (tmp_path / "a.png").write_bytes(encoded(picture((20, 20)), "PNG"))
    (tmp_path / "a.txt").write_text("<script>alert(1)</script>")
    (tmp_path / "a.json").write_text(json.dumps({"<b>": "<img src=x>"}))
    sheet(str(tmp_path), tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert "&lt;script&gt;" in text and "<script" not in text and "<img src=x" not in text


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["view", "{}", "--out", "x.png"], "--out x.png must end in .html"),
        (["view", "{}", "--out", "x.html", "--where", "dog"], "--where dog must be NAME OP VALUE"),
        (["view", "{}", "--out", "x.html", "--where", "n<dog"], "'dog' is no number"),
        (["view", "{}", "--out", "x.html", "--where", "image.size=3"], "an image has width, "),
        (["view", "{}", "--out", "x.html", "--where", "n=99"], "none of 25 samples looked at"),
        (["view", "{}", "--out", "x.html", "--key", "zz*"], "none of 0 samples looked at is meant"),
        (["view", "none.tar", "--out", "x.html"], "does not exist"),
        (["view", "{}", "--out", "/no/such/x.html"], "--out /no/such/x.html cannot be written"),
        (["stats", "{}"], "nothing is asked for; name a page by --out"),
        (["stats", "{}", "--out", "x.json"], "--out x.json must end in .html"),
        (["stats", "{}", "--json", "/no/such/x.json"], "/no/such is no folder"),
        (["stats", "{}", "--json", "x.json", "--tokenizer", "a.txt"], "must be a .model or a"),
        (["stats", "{}", "--json", "x.json", "--tokenizer", "no.model"], "no.model"),
    ],
)
def test_mistakes_are_one_line(
    shards: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    told: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert told in mistake(capsys, "data", *(word.format(shards) for word in words))
    assert not list(tmp_path.glob("x.*"))


@pytest.mark.parametrize("seed", range(4))
def test_near_hashes_are_found_as_by_comparing_all(seed: int) -> None:
    rng = np.random.default_rng(seed)
    hashes = rng.integers(0, 1 << 63, 150, dtype=np.uint64)
    for number in range(0, 60, 2):  # near ones: up to 5 bits of their neighbour changed
        bits = rng.choice(64, int(rng.integers(0, 6)), replace=False)
        flips = sum(1 << int(bit) for bit in bits)
        hashes[number + 1] = np.uint64(int(hashes[number]) ^ flips)
    expected: dict[int, set[int]] = {n: {n} for n in range(150)}
    for a in range(150):
        for b in range(a):
            if (int(hashes[a]) ^ int(hashes[b])).bit_count() <= 3:
                joined = expected[a] | expected[b]
                expected |= dict.fromkeys(joined, joined)
    wanted = {tuple(sorted(each)) for each in expected.values() if len(each) > 1}
    assert {tuple(each.tolist()) for each in groups_of_pictures(hashes)} == wanted


def test_plain_pictures_are_not_taken_for_each_other() -> None:
    """A circle here and one there, on white, have hardly an edge in common."""
    images = []
    for seed in range(6):
        pixels = np.full((64, 64, 3), 255, dtype=np.uint8)
        x, y = random.Random(seed).choices(range(50), k=2)
        pixels[y : y + 9, x : x + 9] = 40
        images.append(pixels)
    hashes = np.array([picture_hash(pixels) for pixels in images], dtype=np.uint64)
    assert groups_of_pictures(hashes) == []


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("a dog, 2 cats", "Latin"),
        ("Füße über Öl", "Latin"),
        ("12 + 3 = 15!", "no letters"),
        ("", "no letters"),
        ("Привет, world", "Cyrillic"),
        ("一只猫", "Han"),
        ("猫がいる", "Japanese"),
        ("고양이", "Hangul"),
        ("قطة", "Arabic"),
        ("γάτα", "Greek"),
        ("बिल्ली", "Devanagari"),
        ("חתול", "Hebrew"),
        ("แมว", "Thai"),
        ("ｃａｔ", "Latin"),
    ],
)
def test_scripts(text: str, script: str) -> None:
    assert script_of(text) == script


def test_conditions_compare_numbers_as_numbers_and_lists_by_any() -> None:
    fields = {"n": 3, "s": "3.0", "tags": ["red", "blue"], "ok": True, "none": None}
    seen = Seen(number=0, key="k", place="p", fields=fields)
    for text, holds in {
        "n=3": True,
        "n=3.0": True,
        "s=3": True,
        "n!=3": False,
        "n<=2": False,
        "tags=red": True,
        "tags!=red": False,
        "tags~BLU": True,
        "ok=true": True,
        "ok=1": False,
        "none=None": False,
        "gone!=1": True,
        "gone=1": False,
        "key=k": True,
        " n >= 3 ": True,
    }.items():
        assert Where.of(text).holds(seen) == holds, text


def test_pictures_of_any_mode_are_counted(tmp_path: Path) -> None:
    for number, mode in enumerate(("L", "P", "RGBA", "CMYK", "1", "I;16")):
        stream = io.BytesIO()
        Image.new(mode, (30, 20)).save(stream, "TIFF")
        (tmp_path / f"{number}.tiff").write_bytes(stream.getvalue())
    shutil.copy(tmp_path / "0.tiff", tmp_path / "9.tiff")
    stats = stats_of(f"captions:{tmp_path}", tmp_path / "s.json", "--no-captions")
    assert stats["num_usable"] == 7 and stats["formats"] == {"TIFF": 7}
    assert stats["duplicates"]["same_file"]["num_superfluous"] == 1


@pytest.mark.parametrize(
    ("where", "num"),
    [
        (["image.width>=110"], 6),
        (["image.height<72"], 1),
        (["image.aspect>1.5", "image.width<112"], 3),
        (["image.width=100"], 1),
        (["image.width!=100"], 23),
    ],
)
def test_a_catalogue_tells_what_need_not_be_opened(
    shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: list[str], num: int
):
    """The same page; but of those that cannot be decoded a header may tell a size."""
    opened: list[int] = []
    read = ShardSource.read

    def counted(source: ShardSource, sample: int, *args: Any) -> dict[str, bytes]:
        opened.append(sample)
        return read(source, sample, *args)

    monkeypatch.setattr(ShardSource, "read", counted)
    words = [word for each in where for word in ("--where", each)]
    pages = []
    for name in ("before", "with"):
        opened.clear()
        out = tmp_path / f"{name}.html"
        assert main(["data", "view", shards, "--out", str(out), *words]) == 0
        pages.append(out.read_text())
        if name == "before":
            assert len({*opened}) == 25
            assert main(["data", "index", str(Path(shards).parent)]) == 0
    assert pages[0] == pages[1]
    if "!=" in where[0]:
        assert len({*opened}) == 25
    else:
        assert num <= len({*opened}) <= num + 1  # `torn` has the size of another


def test_a_member_that_is_named_as_the_image_has_no_size_in_the_catalogue(tmp_path: Path):
    files = {"jpg": encoded(landscape(1), "JPEG"), "mask.png": encoded(landscape(2, (8, 9)), "PNG")}
    write_shard(tmp_path / "0.tar", [("a", files | {"txt": "a"})])
    assert main(["data", "index", str(tmp_path)]) == 0
    out, words = str(tmp_path / "a.html"), ["--image-key", "mask.png", "--where", "image.width=8"]
    assert main(["data", "view", str(tmp_path), "--out", out, *words]) == 0


def test_no_sample_of_a_size_is_one_line(shards: str, tmp_path: Path, capsys):
    assert main(["data", "index", str(Path(shards).parent)]) == 0
    words = ["data", "view", shards, "--out", str(tmp_path / "a.html")]
    line = mistake(capsys, *words, "--where", "image.width>5000")
    assert line.startswith("none of 0 samples looked at is meant by --where image.width>5000")
