"""`mmtrain data` refuses an option that would do nothing, and writes nothing."""

from pathlib import Path

import pytest

from mmtrain.cli.program import main
from tests.data.dialogues.dialogue_files import llava_row, picture, write_jsonl, write_llava
from tests.data.shard_files import encoded, write_set, write_shard
from tests.data.shard_files import picture as drawn_picture

PAGE = ("--out", "{out}/page.html")
FIGURES = ("--json", "{out}/figures.json")
SHARE = ("--shard-range", "0/2", "--parts", "{out}/p")
COMMANDS = {
    "view": PAGE,
    "stats": FIGURES,
    "make": ("--out", "{out}/s"),
    "split": ("--out", "{out}/s", "--fractions", "a=0.5", "b=0.5"),
}


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Shards, a folder of images, files and shards of dialogues, and where outputs go."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    write_set(tmp_path / "set", (3, 2))
    for name in ("images/cat", "out"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "images/cat/0.png").write_bytes(encoded(drawn_picture(), "PNG"))
    write_llava(tmp_path, 3)
    rows = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}]
    write_jsonl(tmp_path / "words.jsonl", [{"id": str(n), **row} for n, row in enumerate(rows * 2)])
    row = {name: value for name, value in llava_row(0).items() if name != "image"}
    write_shard(tmp_path / "talk.tar", [("0", {"png": picture(0), "json": row})])
    told = {"shards": "set/*.tar", "images": "images", "out": "out", "words": "words.jsonl"}
    told |= {"talk": "talk.jsonl", "packed": "talk.tar"}
    return {name: str(tmp_path / place) for name, place in told.items()}


def refused(words: tuple[str, ...], places: dict[str, str], capsys: pytest.CaptureFixture) -> str:
    """The line of a command that ends with status 2 and leaves nothing."""
    assert main(["data", *(word.format(**places) for word in words)]) == 2
    assert not [*Path(places["out"]).iterdir()]
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert out == ""
    return line


@pytest.mark.parametrize(
    ("words", "option", "why"),
    [
        (("index", "{shards}", "--merge", "--workers", "2"), "--workers", "reads no shard"),
        (("index", "{shards}", "--merge", "--trust"), "--trust", "reads no shard"),
        (("index", "{shards}", "--merge", "--cache-dir", "c"), "--cache-dir", "no shard"),
        (
            ("stats", "{shards}", *FIGURES, "--merge", "--parts", "{out}", "--workers", "0"),
            "--workers",
            "with --merge, which looks at no sample",
        ),
        (
            ("stats", "{shards}", *SHARE, "--context-length", "64"),
            "--context-length",
            "(--merge does)",
        ),
        (("stats", "{shards}", *FIGURES, "--seed", "0"), "--seed", "without --num"),
        (
            ("stats", "{shards}", *FIGURES, "--no-captions", "--context-length", "77"),
            "--context-length",
            "with --no-captions",
        ),
        (
            ("stats", "{shards}", *FIGURES, "--no-captions", "--tokenizer", "x.model"),
            "--tokenizer",
            "with --no-captions",
        ),
        (
            ("stats", "{shards}", *FIGURES, "--no-captions", "--caption-lines"),
            "--caption-lines",
            "with --no-captions",
        ),
        (
            ("view", "{shards}", *PAGE, "--no-captions", "--caption-lines"),
            "--caption-lines",
            "with --no-captions",
        ),
        (
            ("make", "{images}", "--out", "{out}/s", "--no-captions", "--caption-lines"),
            "--caption-lines",
            "with --no-captions",
        ),
        (("view", "{images}", *PAGE, "--index-dir", "x"), "--index-dir", "only shards have"),
        (
            ("stats", "{images}", *FIGURES, "--index-dir", "x"),
            "--index-dir",
            "which only shards have",
        ),
        (
            ("make", "{images}", "--out", "{out}/s", "--index-dir", "x"),
            "--index-dir",
            "only shards have",
        ),
        (
            ("split", "{images}", *COMMANDS["split"], "--index-dir", "x"),
            "--index-dir",
            "only shards have",
        ),
        (("check", "{packed}", "--image-key", "png"), "--image-key", "on a check of dialogues"),
    ],
)
def test_what_does_nothing_is_refused(places, capsys, words, option, why):
    if words[0] == "check":  # which compares the shards first
        assert main(["data", *(word.format(**places) for word in words)]) == 2
        line = capsys.readouterr().err.splitlines()[-1]
    else:
        line = refused(words, places, capsys)
    assert line.startswith(f"mmtrain: error: {option} ") and " has no effect" in line
    assert why in line and line.endswith("; leave it out")


@pytest.mark.parametrize("data", ["talk", "words", "packed"])
@pytest.mark.parametrize("command", ["make", "split"])
def test_dialogues_are_named_with_what_takes_them(places, capsys, command, data):
    line = refused((command, f"{{{data}}}", *COMMANDS[command]), places, capsys)
    assert f"{places[data]} holds dialogues, which mmtrain data {command} does not know" in line
    assert "mmtrain data check, view and stats look at them" in line and "[vqa.dialogues]" in line


def test_what_has_an_effect_is_taken(places):
    words = ["stats", "{shards}", *FIGURES, "--num", "3", "--seed", "2", "--context-length", "5"]
    for more in ((), ("--workers", "1")):
        assert main(["data", *(word.format(**places) for word in (*words, *more))]) == 0
    words = ["view", "{packed}", *PAGE, "--captions", "id"]
    assert main(["data", *(word.format(**places) for word in words)]) == 0


@pytest.mark.parametrize("command", ["check", *COMMANDS])
def test_a_place_of_captions_that_no_sample_has(places, capsys, command):
    """What training refuses was said to be good: `all can be used`."""
    words = [command, "{shards}", *COMMANDS.get(command, ()), "--captions", "txt"]
    words = [word.format(**places) for word in words]
    assert main(["data", *words, "nams"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    told = "--captions txt nams: none of 5 samples looked at has a caption in nams; sample 00000"
    assert told in line and not [*Path(places["out"]).iterdir()]
    assert main(["data", *words, "names"]) == 0
