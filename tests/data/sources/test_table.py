"""Tables of images: what ends a line, what one malformed row costs, how a file's form is told."""

import csv
import io
import json
import random
from pathlib import Path

import pytest

from mmtrain.data.sample_error import SampleError
from mmtrain.data.sources.manifest import ManifestSource
from mmtrain.data.sources.open import open_source
from mmtrain.errors import UsageError
from tests.data.shard_files import encoded, picture

PNG = encoded(picture((8, 8)), "PNG")
BREAKS = ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\r", "\ufeff", "\0"]


@pytest.fixture(autouse=True)
def images(tmp_path: Path) -> None:
    """0.png to 39.png beside the table."""
    for number in range(40):
        (tmp_path / f"{number}.png").write_bytes(PNG)


def captions(source: ManifestSource) -> dict[int, str]:
    """The caption of each row that can be used, by its number."""
    found = {}
    for number in range(source.num_samples):
        try:
            found[number] = json.loads(source.read(number)["json"])["caption"]
        except SampleError:
            continue
    return found


def reasons(source: ManifestSource) -> dict[str, str]:
    """Why rows cannot be used, by FILE:LINE, where the file is called by its name."""
    found = {}
    for number in range(source.num_samples):
        try:
            source.read(number)
        except SampleError as error:
            assert source.key(number)
            found[Path(source.place(number)).name] = str(error)
    return found


def opened(path: Path, content: str | bytes, **options) -> ManifestSource:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    source = open_source(str(path), **{"image_key": "filepath"} | options)
    assert isinstance(source, ManifestSource)
    return source


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".CSV", ".jsonl", ".JSONL", ".json", ".ndjson"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_a_line_ends_at_a_newline_and_nowhere_else(
    tmp_path: Path, suffix: str, ending: str
) -> None:
    texts = [f"a{each}b {number}" for number, each in enumerate(BREAKS)] + ['say "x", y\n\nz\t;']
    rows = [{"filepath": f"{n}.png", "caption": text} for n, text in enumerate(texts)]
    if "json" in suffix.lower():
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    else:
        delimiter = "\t" if suffix == ".tsv" else ","
        lines = []
        for row in [{"filepath": "filepath", "caption": "caption"}, *rows]:
            line = io.StringIO()
            csv.writer(line, delimiter=delimiter, lineterminator="").writerow(row.values())
            lines.append(line.getvalue())
    for tail in (ending, ""):
        source = opened(tmp_path / f"t{suffix}", "\ufeff" + ending.join(lines) + tail)
        assert list(captions(source).values()) == texts


BAD_LINES = {
    "short": ("3.png", "another number of columns"),
    "long": ("3.png,a,b", "another number of columns"),
    "unclosed": ('3.png,"never closed', "a quote that is not closed"),
    "unclosed at first": ('"3.png,never closed', "a quote that is not closed"),
    "behind a quote": ('3.png,"a" b', "a quote that is not closed"),
    "not UTF-8": (b"3.png,caf\xe9", "row is not UTF-8"),
    "gone": ("gone.png,x", "image missing"),
    "no path": (",x", "no image path"),
    "caption for path": ("a cat " * 99 + ",3.png", "image missing"),
    "url": ("https://a.b/3.png,x", "image is a URL"),
    "folder": (".,x", "image is a folder"),
    "below a file": ("1.png/3.png,x", "image missing"),
    "null byte": ("3\0.png,x", "image missing"),
}


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
@pytest.mark.parametrize("name", BAD_LINES)
def test_one_malformed_csv_row_is_one_bad_sample(tmp_path: Path, name: str, quoting) -> None:
    text = io.StringIO()
    writer = csv.writer(text, quoting=quoting, lineterminator="\n")
    writer.writerow(["filepath", "caption"])
    writer.writerows([f"{n}.png", f"a, number {n}"] for n in range(40))
    lines = text.getvalue().encode().splitlines(keepends=True)
    line, reason = BAD_LINES[name]
    lines[4] = (line if isinstance(line, bytes) else line.encode()) + b"\n"
    source = opened(tmp_path / "t.csv", b"".join(lines))
    assert captions(source) == {n: f"a, number {n}" for n in range(40) if n != 3}
    told = reasons(source)
    assert list(told) == ["t.csv:5"] and reason in told["t.csv:5"]


def test_a_quote_closed_by_another_mistake_swallows_no_row(tmp_path: Path) -> None:
    """Lines 3 to 5 make a record of two cells; each names an image."""
    text = 'filepath\tcaption\n0.png\tx\n1.png\t"open\n2.png\ty\n3.png\t5 inches "\n4.png\tz\n'
    source = opened(tmp_path / "t.tsv", text)
    assert captions(source) == {0: "x", 2: "y", 3: '5 inches "', 4: "z"}
    assert list(reasons(source)) == ["t.tsv:3"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"filepath": "3.png", "caption": "cut', "row is no JSON"),
        ("{'filepath': '3.png'}", "row is no JSON"),
        ("[1, 2]", "row is no JSON object"),
        ("null", "row is no JSON object"),
        ('{"caption": "x"}', "no image path"),
        ('{"filepath": null}', "no image path"),
        ('{"filepath": ["1.png", "2.png"]}', "a list of 2 images"),
        ('{"filepath": "gone.png"}', "image missing"),
    ],
)
def test_one_malformed_json_row_is_one_bad_sample(tmp_path: Path, line: str, reason: str) -> None:
    lines = [json.dumps({"filepath": f"{n}.png", "caption": f"{n}"}) for n in range(40)]
    for at in (0, 3, 39):
        broken = [*lines[:at], line, *lines[at + 1 :]]
        source = opened(tmp_path / "t.jsonl", "\n\n" + "\n".join(broken))
        assert captions(source) == {n: f"{n}" for n in range(40) if n != at}
        assert list(reasons(source)) == [f"t.jsonl:{at + 3}"]
        assert reason in reasons(source)[f"t.jsonl:{at + 3}"]


def test_drawn_damage_never_takes_other_rows_along(tmp_path: Path) -> None:
    rng = random.Random(0)
    for _ in range(60):
        lines = ["filepath,caption,note"]
        broken = set(rng.sample(range(40), rng.randint(1, 6)))
        for n in range(40):
            cells = [f"{n}.png", f'"x, {n}"' if rng.random() < 0.4 else f"x {n}", "n"]
            if n in broken:
                kind = rng.randrange(4)
                cells[1] = ['"open', '"a"b', "x,,,", '"un " closed'][kind]
            lines.append(",".join(cells))
        source = opened(tmp_path / "t.csv", "\n".join(lines))
        assert set(reasons(source)) == {f"t.csv:{n + 2}" for n in broken}
        assert set(captions(source)) == set(range(40)) - broken


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|"])
def test_separators_are_told_by_the_header(tmp_path: Path, suffix: str, delimiter: str) -> None:
    """open_clip's .csv files are separated by tabs."""
    header = delimiter.join(["", "filepath", "caption"])
    rows = [delimiter.join(["0", f"{n}.png", "a"]) for n in range(3)]
    source = opened(tmp_path / f"t{suffix}", "\n".join([header, *rows]))
    assert captions(source) == {0: "a", 1: "a", 2: "a"}


def test_a_json_array(tmp_path: Path) -> None:
    rows = [{"filepath": f"{n}.png", "caption": f"\u2028{{]\n é {n}"} for n in range(5)]
    for indent, name in ((None, "t.json"), (2, "t.jsonl")):
        content = "\ufeff" + json.dumps([*rows, 7], indent=indent, ensure_ascii=False)
        source = opened(tmp_path / name, content)
        assert list(captions(source).values()) == [row["caption"] for row in rows]
        assert reasons(source) == {f"{name}:{22 if indent else 1}": "row is no JSON object"}


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("t.csv", "0.png,a cat\n1.png,a dog\n", "has no header: its first line is a row (0.png"),
        ("t.csv", "filepath,a,a\n0.png,x,y\n", "has 'a' twice"),
        ("t.csv", "filepath,a\r0.png,x\r", "lines end in \\r alone"),
        ("t.csv", "filepath,a\n0.png,x\n".encode("utf-16"), "is UTF-16"),
        ("t.csv", "url,a\nx,y\n", "is no column of"),
        ("t.csv", "filepath,a\nhttp://x/y.jpg,z\n", "holds URLs"),
        ("t.csv", "", "has no rows"),
        ("t.jsonl", '{"filepath": ["0.png"]}', "holds lists of images"),
        ("t.jsonl", "not\njson\n", "has no usable row (TMP/t.jsonl:1: row is no JSON"),
        ("t.jsonl", "\n\n", "has no rows"),
        (
            "t.json",
            '[{"filepath": "0.png"}\n{"filepath": "1.png"}]',
            "damaged JSON array from line 2",
        ),
        ("t.json", '[{"filepath": "0.png"},', "damaged JSON array"),
        ("t.json", '[{"filepath": "0.png"}]\n[{"filepath": "1.png"}]', "stands behind its end"),
        (
            "t.json",
            '{"images": [],\n "annotations": []}',
            "neither an array of rows nor a row a line",
        ),
    ],
)
def test_one_true_line(tmp_path: Path, name: str, content: str | bytes, told: str) -> None:
    with pytest.raises(UsageError) as caught:
        opened(tmp_path / name, content)
    assert told.replace("TMP", str(tmp_path)) in str(caught.value)
    assert str(caught.value).count("\n") == 0


def test_a_table_that_is_not_there_is_no_shard(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"gone.csv cannot be read: No such file"):
        open_source(str(tmp_path / "gone.csv"), image_key="filepath")


@pytest.mark.parametrize("column", ["txt", "text", "caption"])
def test_the_caption_column_is_the_txt(tmp_path: Path, column: str) -> None:
    source = opened(tmp_path / "t.csv", f"filepath,{column}\n0.png,a cat\n")
    assert source.read(0, {"txt"}) == {"txt": b"a cat"}
    both = opened(tmp_path / "u.csv", "filepath,text,caption\n0.png,a,b\n")
    assert "txt" not in both.read(0)


@pytest.mark.parametrize(
    ("key", "option"),
    [("data.train", "data.image_key"), ("data", "image_key"), ("test", "image_key")],
)
def test_the_column_is_named_as_the_user_set_it(tmp_path: Path, key: str, option: str) -> None:
    (tmp_path / "t.csv").write_text("image,a\n0.png,x\n")
    with pytest.raises(UsageError, match=f"^{option} = filepath is no .*; set {option} = image$"):
        open_source(str(tmp_path / "t.csv"), image_key="filepath", key=key)
