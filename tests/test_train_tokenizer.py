"""tools/train_tokenizer.py as a user runs it."""

import importlib.util
import io
import json
import random
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from mmtrain.data.text.cleaning import CLEANINGS
from mmtrain.data.text.tokenizer import TokenizerConfig, build_tokenizer, load_tokenizer

TOOL = Path(__file__).parent.parent / "tools" / "train_tokenizer.py"


@dataclass
class Result:
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def run(capfd):
    """Runs the tool's `main` here: to start Python and import torch takes longer than to train."""
    spec = importlib.util.spec_from_file_location("train_tokenizer", TOOL)
    assert spec is not None and spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)

    def run_tool(*arguments: object) -> Result:
        try:
            returncode = tool.main([str(argument) for argument in arguments])
        except SystemExit as stop:
            returncode = stop.code
        return Result(returncode, *capfd.readouterr())

    return run_tool


def test_as_a_program(sources, tmp_path):
    options = ["--vocab-size", "330", "--out", str(tmp_path / "out")]
    command = [sys.executable, str(TOOL), str(sources / "none.txt"), *options]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2
    assert result.stderr.startswith("train_tokenizer: ")
    assert result.stderr.count("\n") == 1


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


@pytest.fixture(scope="module")
def captions() -> list[str]:
    rng = random.Random(0)
    syllables = ["ka", "ro", "mi", "tel", "san", "dor", "bi", "zu", "pen", "lo"]
    words = ["".join(rng.choices(syllables, k=rng.randint(1, 3))) for _ in range(150)]
    return ["A photo of " + " ".join(rng.choices(words, k=8)) for _ in range(300)]


@pytest.fixture(scope="module")
def sources(captions, tmp_path_factory) -> Path:
    """`captions.txt`, and `shard.tar` with the same in .txt and, two by two, in .json's `texts`."""
    folder = tmp_path_factory.mktemp("sources")
    (folder / "captions.txt").write_text("\n".join(captions) + "\n\n")
    members = {}
    for i, caption in enumerate(captions):
        members[f"{i:04d}.jpg"] = b"not an image"
        members[f"{i:04d}.txt"] = caption.encode()
        pair = captions[i : i + 2] if i % 2 == 0 else []
        members[f"{i:04d}.json"] = json.dumps({"texts": pair, "number": i}).encode()
    write_tar(folder / "shard.tar", members)
    return folder


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_the_same_captions_give_the_same_model(run, sources, captions, tmp_path, kind):
    options = ["--kind", kind, "--vocab-size", 330, "--context-length", 20]
    results = [
        run(sources / "captions.txt", *options, "--out", tmp_path / "text"),
        run(sources / "shard.tar", *options, "--out", tmp_path / "tar"),
        run(sources / "shard.tar", *options, "--captions", "texts", "--out", tmp_path / "json"),
    ]
    assert [result.returncode for result in results] == [0, 0, 0], results
    assert "330 ids from 300 of 300 captions" in results[0].stdout
    assert all(result.stderr == "" for result in results)
    for name in ("sentencepiece.model", "tokenizer_config.json"):
        assert len({(tmp_path / x / name).read_bytes() for x in ("text", "tar", "json")}) == 1
    tokenizer = load_tokenizer(tmp_path / "tar")
    assert (tokenizer.vocab_size, tokenizer.context_length) == (330, 20)
    assert (tokenizer.pad_id, tokenizer.sot_id, tokenizer.eot_id) == (0, 1, 2)
    config = TokenizerConfig(kind="sentencepiece", path="sentencepiece.model", context_length=200)
    tokenizer = build_tokenizer(config, folder=tmp_path / "tar")
    for text in [captions[0], "Never seen: 東京 🐶"]:
        tokens_1T, _ = tokenizer.encode([text])
        # Unknown characters come back whole from their bytes.
        ids = tokens_1T[0].tolist()
        assert tokenizer._model._processor.decode(ids) == CLEANINGS["lower"](text)


def test_without_byte_fallback_unknown_stays_unknown(run, sources, tmp_path):
    result = run(
        sources / "captions.txt", "--vocab-size", 80, "--no-byte-fallback", "--out", tmp_path / "x"
    )
    assert result.returncode == 0, result.stderr
    assert 3 in load_tokenizer(tmp_path / "x")("東")


def test_a_random_draw_of_captions(run, sources, tmp_path):
    for name in ("a", "b"):
        result = run(
            sources / "captions.txt", "--vocab-size", 310, "--max-captions", 100,
            "--out", tmp_path / name,
        )  # fmt: skip
        assert "from 100 of 300 captions" in result.stdout, result.stderr
    models = [(tmp_path / name / "sentencepiece.model").read_bytes() for name in ("a", "b")]
    assert models[0] == models[1]


def damaged_tar(sources: Path, folder: Path) -> Path:
    content = bytearray((sources / "shard.tar").read_bytes())
    content[512 * 40 : 512 * 44] = b"x" * 2048
    (folder / "damaged.tar").write_bytes(content)
    return folder / "damaged.tar"


def test_mistakes_are_one_line(run, sources, tmp_path):
    text, shard = sources / "captions.txt", sources / "shard.tar"
    (tmp_path / "page.tar").write_text("<html>not found</html>" * 100)
    (tmp_path / "latin.txt").write_bytes("café\n".encode("latin-1"))
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "tokenizer_config.json").write_text("{}")
    out = ["--out", tmp_path / "out"]
    for arguments, message in [
        ([text, "--vocab-size", 90_000, *out], "--vocab-size 90000: the captions do not hold so"),
        ([text, "--vocab-size", 200, *out], "--vocab-size 200: special ids, bytes and single"),
        ([text, *out], "--vocab-size"),
        ([tmp_path / "none.txt", "--vocab-size", 330, *out], "No such file"),
        ([tmp_path / "page.tar", "--vocab-size", 330, *out], "is not a whole tar"),
        ([damaged_tar(sources, tmp_path), "--vocab-size", 330, *out], "is "),
        ([tmp_path / "latin.txt", "--vocab-size", 330, *out], "is not UTF-8"),
        ([tmp_path / "empty.txt", "--vocab-size", 330, *out], "no caption in"),
        ([shard, "--captions", "title", "--vocab-size", 330, *out], "--captions title: 0000.json"),
        ([shard, "--captions", "number", "--vocab-size", 330, *out], "it is no text"),
        ([text, "--vocab-size", 330, "--out", tmp_path / "full"], "already holds a tokenizer"),
        ([text, "--vocab-size", 330, "--context-length", 1, *out], "context_length = 1"),
        ([text, "--vocab-size", 330, "--max-captions", 0, *out], "--max-captions 0"),
    ]:
        result = run(*arguments)
        assert result.returncode == 2, (arguments, result)
        assert result.stderr.startswith("train_tokenizer: ")
        assert result.stderr.count("\n") == 1, result.stderr
        assert message in result.stderr, result.stderr
        assert result.stdout == ""
    assert not (tmp_path / "out").exists()


def test_help_names_every_option(run):
    result = run("--help")
    assert result.returncode == 0
    for option in ("--vocab-size", "--kind", "--byte-fallback", "--out", "--captions", "--clean"):
        assert option in result.stdout
