"""Shares of data that several machines look at, and what they come to."""

import shutil
from pathlib import Path

import pytest

from mmtrain.cli import main
from tests.data.shard_files import encoded, write_shard
from tests.data.survey.pictures import landscape, sheet
from tests.mistakes import mistake


def written(data: str, folder: Path, *words: str) -> tuple[bytes, bytes]:
    """Figures and page of a whole run or of a merge."""
    folder.mkdir()
    out = ("--json", str(folder / "s.json"), "--out", str(folder / "s.html"))
    assert main(["data", "stats", data, *out, *words]) == 0
    return (folder / "s.json").read_bytes(), (folder / "s.html").read_bytes()


def share(data: str, parts: Path, part: str, *words: str) -> int:
    return main(["data", "stats", data, "--shard-range", part, "--parts", str(parts), *words])


@pytest.fixture
def six_shards(shards: str, tmp_path: Path) -> str:
    """Its 25 samples in six shards, twins and bad ones in different ones."""
    folder = tmp_path / "six"
    words = ["--samples-per-shard", "5", "--seed", "3", "--captions", "txt", "--skip-bad"]
    assert main(["data", "make", shards, "--out", str(folder), *words]) == 0
    bad = {"jpg": encoded(landscape(50), "JPEG")[:300], "txt": "a dog"}
    write_shard(folder / "00005.tar", [("torn", bad), ("mute", {"jpg": bad["jpg"]})])
    write_shard(
        folder / "00001.tar",
        [("torn2", bad), ("alike", {**bad, "jpg": encoded(landscape(3), "JPEG")})],
    )
    (folder / "00001.tar.index").unlink(missing_ok=True)
    return str(folder / "*.tar")


@pytest.mark.parametrize(
    ("words", "looking", "telling"),
    [
        ((), (), ()),
        (("--label-key", "kind"), ("--workers", "2"), ("--context-length", "5")),
        (("--num", "11", "--seed", "4"), (), ()),
        (("--no-captions",), (), ()),
        (("--caption-lines",), (), ()),
    ],
)
@pytest.mark.parametrize("num", [1, 2, 6])
def test_shares_come_to_the_figures_and_the_page_of_one_run(
    six_shards: str,
    tmp_path: Path,
    words: tuple[str, ...],
    looking: tuple[str, ...],
    telling: tuple[str, ...],
    num: int,
) -> None:
    """With what a share takes, and what the figures take."""
    whole = written(six_shards, tmp_path / "whole", *words, *looking, *telling)
    parts = tmp_path / "parts"
    for number in reversed(range(num)):
        assert share(six_shards, parts, f"{number}/{num}", *words, *looking) == 0
    assert len(list(parts.iterdir())) == num
    merge = ("--merge", "--parts", str(parts), *telling)
    assert written(six_shards, tmp_path / "merged", *merge, *words) == whole
    assert b"torn" in whole[0] or words[:1] == ("--num",)


def test_shares_of_a_folder_are_stretches_of_its_samples(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(7):
        (folder / f"{number}.png").write_bytes(encoded(landscape(number % 5), "PNG"))
        (folder / f"{number}.txt").write_text(f"a dog {number % 2}")
    whole = written(str(folder), tmp_path / "whole")
    for number in range(3):
        assert share(str(folder), tmp_path / "parts", f"{number}/3") == 0
    words = ("--merge", "--parts", str(tmp_path / "parts"))
    assert written(str(folder), tmp_path / "merged", *words) == whole


def test_what_does_not_fit_together_is_not_merged(
    six_shards: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = str(tmp_path / "parts")
    merge = ["data", "stats", six_shards, "--json", str(tmp_path / "s.json"), "--merge"]
    assert "no folder" in mistake(capsys, *merge, "--parts", parts)
    assert share(six_shards, Path(parts), "2/3", "--label-key", "kind") == 0
    assert "--shard-range 0/3, 1/3 is missing" in mistake(
        capsys, *merge, "--parts", parts, "--label-key", "kind"
    )
    in_parts = ["data", "stats", six_shards, "--parts", parts, "--shard-range"]
    told = mistake(capsys, *in_parts, "0/3", "--label-key", "n")
    assert "was made with --label-key kind, not --label-key n" in told
    assert "not --no-captions" in mistake(
        capsys, *in_parts, "0/3", "--label-key", "kind", "--no-captions"
    )
    assert "a share of 3, not of 2" in mistake(capsys, *in_parts, "0/2", "--label-key", "kind")
    assert "only 6 shards" in mistake(capsys, *in_parts, "1/7", "--label-key", "kind")
    for number in range(3):
        assert share(six_shards, Path(parts), f"{number}/3", "--label-key", "kind") == 0
    damaged = Path(parts, "stats-00001-of-00003.npz")
    content = damaged.read_bytes()
    for damage in (b"", b"no zip", content[:900], content[:-30]):
        damaged.write_bytes(damage)
        told = mistake(capsys, *merge, "--parts", parts, "--label-key", "kind")
        assert f"{damaged} is damaged" in told
    damaged.write_bytes(content)
    shutil.copy(damaged, damaged.with_name("stats-00001-of-00002.npz"))
    told = mistake(capsys, *merge, "--parts", parts, "--label-key", "kind")
    assert "shares of 2 and of 3" in told
    damaged.with_name("stats-00001-of-00002.npz").unlink()
    write_shard(Path(six_shards).parent / "00006.tar", [("z", {"txt": "new"})])
    told = mistake(capsys, *merge, "--parts", parts, "--label-key", "kind")
    assert "is of other data" in told
    assert not (tmp_path / "s.json").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--shard-range", "0/2"], "--shard-range needs --parts"),
        (["--merge", "--json", "s.json"], "--merge needs --parts"),
        (["--parts", "p", "--json", "s.json"], "--parts p does nothing without"),
        (["--parts", "p", "--shard-range", "0/2", "--json", "s.json"], "--json s.json wants all"),
        (["--parts", "p", "--shard-range", "0/2", "--out", "s.html"], "--out s.html wants all"),
        (["--parts", "p", "--shard-range", "0/2", "--merge"], "not allowed with"),
        (["--parts", "p", "--shard-range", "2/2"], "must be i/n with i from 0"),
        (["--parts", "p", "--merge"], "nothing is asked for"),
        (["--parts", "f", "--shard-range", "0/2"], "--parts f cannot be made"),
    ],
)
def test_mistakes_about_shares(
    shards: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    told: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("f").touch()
    assert told in mistake(capsys, "data", "stats", shards, *words)
    assert not Path("p").exists()


def test_sheets_of_shares_have_each_sample_once(six_shards: str, tmp_path: Path) -> None:
    every = [
        sheet(six_shards, tmp_path / f"{n}.html", "--shard-range", f"{n}/3", "--where", "n>=0")
        for n in range(3)
    ]
    whole = sheet(six_shards, tmp_path / "whole.html", "--where", "n>=0")
    assert all(every) and sorted(key for each in every for key in each) == sorted(whole)
    assert "from share 2/3 of the shards" in (tmp_path / "2.html").read_text()
