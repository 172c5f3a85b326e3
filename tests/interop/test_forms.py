"""A form is one file and one line: every command that writes models takes it from there."""

import inspect
from pathlib import Path

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
