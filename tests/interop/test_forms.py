"""A form is one file and one line: every command that writes models takes it from there."""

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mmtrain.cli import main, program
from mmtrain.data.text.tokenizer import Tokenizer
from mmtrain.interop.forms import FORMS, Form, form_names
from mmtrain.interop.package import ModelPackage
from tests.loading.test_loading import save


def write_plain(package: ModelPackage, folder: Path) -> Tokenizer:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "width.txt").write_text(str(package.config.embed_dim))
    return package.tokenizer


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> str:
    form = Form(whose="a plain", library="cat", writer=f"{__name__}:write_plain")
    monkeypatch.setitem(FORMS, "plain", form)
    # Tests share the parser of their first command; the program itself makes one for each.
    monkeypatch.setattr(program, "build_parser", inspect.unwrap(program.build_parser))
    return "plain"


def help_of(*command: str, capsys: pytest.CaptureFixture[str]) -> str:
    main([*command, "--help"])
    return " ".join(capsys.readouterr().out.split())


def test_a_new_line_reaches_every_command(plain: str, tmp_path: Path, capsys):
    save(tmp_path / "model")
    for command in (["export", "--out"], ["convert"]):
        out = tmp_path / command[0]
        words = [command[0], str(tmp_path / "model"), *command[1:], str(out)]
        main([*words, "--format", plain])
        assert (out / "width.txt").read_text().isdecimal()
        assert "a plain" in help_of(command[0], capsys=capsys)
    assert ",".join(form_names()) in help_of("checkpoint", "convert", capsys=capsys)
    assert plain in form_names()


@pytest.mark.parametrize("name", FORMS)
def test_every_form_has_its_writer(name: str):
    module, _, function = FORMS[name].writer.partition(":")
    assert callable(getattr(__import__(module, fromlist=[function]), function))


@pytest.mark.parametrize("there", [False, True])
def test_of_two_exports_to_a_folder_the_later_is_refused(
    there: bool, plain: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    save(tmp_path / "model")
    out = tmp_path / "out"
    if there:
        out.mkdir()
    words = ["export", str(tmp_path / "model"), "--out", str(out), "--format"]
    ends: list[int] = []

    def meanwhile(_: Form, package: ModelPackage, folder: Path, **__: Any) -> Tokenizer:
        ends.append(main([*words, "mmtrain"]))
        return write_plain(package, folder)

    monkeypatch.setattr(Form, "write", meanwhile)
    # In a folder that is there the later one sees that the other has begun.
    assert [main([*words, plain]), *ends] == ([0, 2] if there else [2, 0])
    assert f"out = {out} exists already; name a new folder" in capsys.readouterr().err
    assert (out / "width.txt").is_file() == there
    assert (out / "config.json").is_file() != there
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]


def test_an_export_that_was_killed_is_begun_again(tmp_path: Path) -> None:
    save(tmp_path / "model")
    out = tmp_path / "out"
    words = ["export", str(tmp_path / "model"), "--out", str(out), "--format", "mmtrain"]
    script = (
        "import os, sys\n"
        "from mmtrain import files\n"
        "from mmtrain.cli import main\n"
        "files.os.rename = lambda *_: os.kill(os.getpid(), 9)\n"
        "main(sys.argv[1:])\n"
    )
    assert subprocess.run([sys.executable, "-c", script, *words], check=False).returncode == -9
    assert not out.exists() and len(list(tmp_path.iterdir())) == 2
    assert main(words) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]
