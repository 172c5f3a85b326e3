"""What a hurried user hands over in place of a file: each command ends in one true line."""

import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mmtrain import __main__ as program
from mmtrain.cli import main
from mmtrain.eval.classify.classes import read_classes
from mmtrain.eval.classify.prompts import load_templates
from tests.data.shard_files import write_set
from tests.mistakes import mistake

RECIPE = "configs/debug_clip.toml"


def pipe(path: Path) -> None:
    os.mkfifo(path)


def circle(path: Path) -> None:
    path.symlink_to(path.name)


def without_end(path: Path) -> None:
    path.symlink_to("/dev/zero")


def folder_of(name: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.mkdir()
        (path / name).write_text("{}")

    return make


DATA: list[tuple[str, Callable[[Path], Any], str]] = [
    ("a.tar", pipe, "is a pipe, read from its beginning only"),
    ("a.jsonl", pipe, "is a pipe, read from its beginning only"),
    ("a.csv", pipe, "is a pipe, read from its beginning only"),
    ("a.parquet", pipe, "is a pipe, read from its beginning only"),
    ("a.zip", pipe, "is a pipe, read from its beginning only"),
    ("a.tar", without_end, "is a device, read from its beginning only"),
    ("a.jsonl", without_end, "is a device, read from its beginning only"),
    ("a.tar", circle, "Too many levels of symbolic links"),
    ("features", folder_of("embed.json"), "holds features that mmtrain embed wrote"),
    ("run", folder_of("recipe.toml"), "holds a run, and no *.tar"),
    ("model", folder_of("config.json"), "holds a model, and no *.tar"),
    ("a.tar", lambda path: path.mkdir(), "the folder has no *.tar"),
]


@pytest.mark.parametrize(("name", "make", "told"), DATA, ids=[f"{d[0]} {d[2][:20]}" for d in DATA])
def test_data_that_are_none(name: str, make: Any, told: str, tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / name
    make(path)
    new = ["--run-dir", str(tmp_path / "new")]
    for words, key in (
        (["train", RECIPE, *new, "--data.train", str(path)], "data.train"),
        (["data", "check", str(path)], "DATA"),
        (["data", "view", str(path), "--out", str(tmp_path / "page.html")], "DATA"),
    ):
        line = mistake(capsys, *words)
        assert told in line and key in line and str(path) in line, line
    assert not (tmp_path / "new/metrics.jsonl").exists()


def test_a_joined_table_that_is_a_pipe(tmp_path: Path, capsys: Any) -> None:
    pipe(tmp_path / "rows.jsonl")
    words = ["--run-dir", str(tmp_path / "new"), "--data.join", str(tmp_path / "rows.jsonl")]
    assert "rows.jsonl is a pipe" in mistake(capsys, "train", RECIPE, *words)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (circle, "Too many levels of symbolic links"),
        (without_end, "is no recipe: none is larger than 16 MB"),
        (lambda path: path.write_bytes(b"# " + b"x" * (17 << 20)), "none is larger than 16 MB"),
    ],
)
def test_a_recipe_that_is_none(make: Any, told: str, tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "recipe.toml"
    make(path)
    for words in (["train", str(path)], ["plan", str(path), "--world-size", "2"]):
        line = mistake(capsys, *words)
        assert told in line and str(path) in line, line


def test_a_tokenizer_without_end(tmp_path: Path, capsys: Any) -> None:
    without_end(tmp_path / "bpe.model")
    words = ["--tokenizer.kind", "sentencepiece", "--tokenizer.path", str(tmp_path / "bpe.model")]
    line = mistake(capsys, "train", RECIPE, "--run-dir", str(tmp_path / "new"), *words)
    assert "bpe.model is a device" in line


def test_links_in_a_circle_are_no_run_and_no_model(tmp_path: Path, capsys: Any) -> None:
    circle(tmp_path / "loop")
    loop, out = str(tmp_path / "loop"), str(tmp_path / "out")
    for words in (
        ["report", loop],
        ["report", loop, loop],
        ["compare", loop, loop],
        ["summary", loop],
        ["export", loop, "--out", out],
        ["checkpoint", "ls", loop],
        ["checkpoint", "push", loop, out],
        ["train", loop, "--resume"],
        ["train", RECIPE, "--run-dir", loop],
    ):
        assert "loop" in mistake(capsys, *words), words


def pickled_array(path: Path) -> None:
    np.save(path, np.array([object()]), allow_pickle=True)


MODELS: list[tuple[str, Callable[[Path], Any], str]] = [
    ("a.tar", lambda path: write_set(path.parent, [2]), "is no file of weights"),
    ("recipe.toml", lambda path: path.write_text("[run]\n"), "is no file of weights"),
    ("result.json", lambda path: path.write_text(json.dumps({"top1": 1})), "no file of weights"),
    ("x.npy", pickled_array, "is no file of weights"),
    ("empty.pt", lambda path: path.write_bytes(b""), "is no file of weights"),
    (
        "x.safetensors",
        lambda path: save_file({"a": torch.ones(2)}, path),
        "says which architecture",
    ),
]


@pytest.mark.parametrize(("name", "make", "told"), MODELS, ids=[name for name, _, _ in MODELS])
def test_a_model_that_is_none(name: str, make: Any, told: str, tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / name
    make(path)
    path = path if path.exists() else next(tmp_path.glob("*.tar"))
    out = str(tmp_path / "out")
    for words in (
        ["export", str(path), "--out", out],
        ["convert", str(path), out, "--format", "hf"],
        ["embed", "--model", str(path), "--data", "mmtrain/demo/debug/train.tar", "--out", out],
    ):
        line = mistake(capsys, *words)
        assert told in line and str(path) in line, line


def test_a_file_of_a_model_names_its_folder(tmp_path: Path, capsys: Any) -> None:
    run = tmp_path / "run"
    assert main(["train", RECIPE, "--run-dir", str(run), "--train.steps", "1"]) == 0
    capsys.readouterr()
    line = mistake(capsys, "summary", str(run / "export/model.safetensors"))
    assert line.endswith(f"name its folder, {run / 'export'}"), line
    cut = tmp_path / "cut.tar"
    cut.write_bytes(Path("mmtrain/demo/debug/train.tar").read_bytes()[:100_000])
    shard = ["--model", str(run), "--data", str(cut), "--out", str(tmp_path / "out")]
    line = mistake(capsys, "embed", *shard)
    assert line.endswith("; fetch or pack them again"), (
        line
    )  # what it has no option for is no remedy


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_lists_of_windows_are_those_of_anybody(mark: str, end: str, tmp_path: Path) -> None:
    """A byte order mark was the first class name's, or the first prompt's, letter."""
    names, prompts = tmp_path / "names.txt", tmp_path / "prompts.txt"
    names.write_bytes(end.join([f"{mark}red", "a\u2028b", "blue", ""]).encode())
    prompts.write_bytes(end.join([f"{mark}{{}} of the year", "a {}", ""]).encode())
    assert read_classes(names).names == ("red", "a\u2028b", "blue")
    assert load_templates(str(prompts)) == ("{name} of the year", "a {name}")
    entries = tmp_path / "names.json"
    entries.write_bytes((mark + json.dumps(["red", "blue"])).encode())
    assert read_classes(entries).names == ("red", "blue")


OVERWRITTEN = [
    "eval zero-shot --model RUN --data TAR --classes F.json --out F.json",
    "eval knn --model RUN --train TAR --test F.json --classes TAR --out F.json",
    "eval linear-probe --model RUN --train F.json --test TAR --classes TAR --out ./F.json",
    "eval retrieval --model RUN --data F.json --out F.json",
    "eval pairs --model RUN --data TAR F.json --out F.json",
    "eval vqa --model RUN --data F.json --out F.json",
    "eval vqa --model RUN --data TAR --questions F.json --predictions F.json",
    "eval answers --predictions F.json --questions F.json --mode official --out F.json",
    "ask --model RUN --image F.png --question what --out F.png",
    "data stats F.json --json F.json",
]


@pytest.mark.parametrize("command", OVERWRITTEN)
def test_what_is_read_is_not_written_over(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Also by another name of the same file."""
    monkeypatch.chdir(tmp_path)
    name = "F.png" if "F.png" in command else "F.json"
    (tmp_path / name).write_text("[]")
    line = mistake(capsys, *command.split())
    assert "is another file of this command" in line and name in line, line
    assert (tmp_path / name).read_text() == "[]"


@pytest.mark.parametrize("scheme", ["s3", "gs", "az", "hf", "https", "file"])
def test_an_address_with_one_slash_is_no_folder(
    scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    recipe = Path(RECIPE).resolve()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    for address in (f"{scheme}:/bucket/run", f"{scheme}:bucket/run"):
        for words in (
            ["checkpoint", "push", "run", address],
            ["checkpoint", "pull", address, "new"],
            ["train", str(recipe), "--run-dir", "new", "--run.mirror", address],
        ):
            line = mistake(capsys, *words)
            assert f"{scheme}://" in line or "no checkpoint is here" in line, line
    assert not (tmp_path / f"{scheme}:").exists()


def test_a_path_of_other_bytes_is_one_line(tmp_path: Path, capsys: Any) -> None:
    """As the system hands them over where they are no UTF-8."""
    odd = f"{tmp_path}/n\udcff"
    for key in ("--run-dir", "--data.train", "--tokenizer.path"):
        words = ["--run-dir", str(tmp_path / "new")] if key != "--run-dir" else []
        line = mistake(capsys, "train", RECIPE, *words, key, odd)
        assert "is not UTF-8" in line or "does not exist" in line, line
    assert not (tmp_path / "new/recipe.toml").exists()


def test_what_a_terminal_cannot_show_does_not_end_a_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    monkeypatch.setattr(program, "main", lambda: print("wrote é\udcff.json") or 0)
    assert program.run() == 0
    sys.stdout.flush()
    assert written.getvalue() == b"wrote \\xe9\\udcff.json\n"
