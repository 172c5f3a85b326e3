"""`data stats` and `view` of dialogues: what is said, and every image."""

import json
from pathlib import Path

import pytest

from mmtrain.cli.program import main
from tests.data.dialogues.dialogue_files import llava_row, picture, write_jsonl, write_pictures
from tests.data.shard_files import write_shard


def rows() -> list[dict[str, object]]:
    """Of one to four questions; the second about two images, the third about none, the fourth's
    image is not there."""
    made = [llava_row(number, turns=1 + number) for number in range(4)]
    made[1]["conversations"][0]["value"] = "<image><image> which of two?"
    made[1]["image"] = ["pictures/1.png", "pictures/0.png"]
    made[2]["conversations"][0]["value"] = "no picture at all?"
    del made[2]["image"]
    made[3]["image"] = "pictures/none.png"
    return made


@pytest.fixture
def talk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path, 3)
    return str(write_jsonl(tmp_path / "talk.jsonl", rows()))


def test_stats_counts_turns_images_and_what_is_said(talk, capsys):
    words = ["data", "stats", talk, "--json", "s.json", "--out", "s.html"]
    assert main(words) == 0
    told = json.loads(Path("s.json").read_text())
    of = told["dialogues"]
    assert of["num"] == 4 and of["turns"]["max"] == 8 and of["turns"]["mean"] == 5
    assert (of["images"]["min"], of["images"]["max"]) == (0, 2)
    assert of["tokens"]["max"] > told["caption_tokens"]["max"]
    assert told["num_captions"] == 20 and told["formats"] == {"PNG": 3}
    assert told["bad_by_reason"] == {"image missing": 1}
    (twice,) = told["duplicates"]["same_file"]["largest"]
    assert (twice["samples"], twice["images"]) == ([0, 1], [0, 1])
    assert not {"captions_cut", "captions_per_image"} & told.keys()
    page = Path("s.html").read_text()
    assert "Turns of a dialogue" in page and "Captions" not in page
    parts = ["--shard-range", "0/1", "--parts", "parts"]
    assert main(["data", "stats", talk, *parts]) == 0
    merged = ["--merge", "--parts", "parts", "--json", "m.json"]
    assert main(["data", "stats", talk, *merged]) == 0
    assert Path("m.json").read_text() == Path("s.json").read_text()


def test_view_shows_all_of_a_dialogue(talk, tmp_path, capsys):
    assert main(["data", "view", talk, "--out", "v.html"]) == 0
    assert "wrote v.html: 4 dialogues, 4 looked at" in capsys.readouterr().out
    page = Path("v.html").read_text()
    assert page.count("data:image/webp") == 3 and "which of two?" in page
    assert "image missing" in page and "what color is thing 3 1?" in page
    for where, num in (("turns>=6", 2), ("images=0", 1), ("txt~two", 1), ("images=2", 1)):
        assert main(["data", "view", talk, "--out", "w.html", "--where", where]) == 0
        told = f"wrote w.html: {num} dialogue{'s' if num > 1 else ''}, "
        assert told in capsys.readouterr().out, where
    packed = {name: value for name, value in rows()[0].items() if name != "image"}
    packed |= {"turns": 99, "images": 99}  # of its own, which are not those that are counted
    shard = write_shard(tmp_path / "t.tar", [("0", {"png": picture(0), "json": packed})])
    asked = [word for each in ("id=row0", "turns=2", "images=1") for word in ("--where", each)]
    assert main(["data", "view", str(shard), "--out", "p.html", *asked]) == 0
    assert "what color is thing 0 0?" in Path("p.html").read_text()


@pytest.mark.parametrize(
    ("command", "option"),
    [
        ("view", ["--captions", "txt"]),
        ("view", ["--no-captions"]),
        ("stats", ["--caption-lines"]),
        ("stats", ["--label-key", "id"]),
        ("stats", ["--context-length", "99"]),
    ],
)
def test_what_means_nothing_of_dialogues_is_refused(talk, capsys, command, option):
    assert main(["data", command, talk, "--out", "x.html", *option]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{option[0]} has no effect on dialogues; leave it out" in line
    assert not Path("x.html").exists()
