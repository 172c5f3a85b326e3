"""A file that could not be written is refused before a command prints or computes anything."""

import re
from pathlib import Path

import pytest

from mmtrain.cli import main
from mmtrain.settings.paths import refuse_unwritable
from tests.fuzz.options import commands

WORDS = {
    "summary": "ViT-B-32",
    "compare": "a.json b.json",
    "data show": "nowhere --step 1",
    "data labels": "nowhere",
    "data quarantine": "nowhere",
    "data bench": "nowhere",
    "data view": "nowhere",
    "data stats": "nowhere",
    "recipes": "clip_vit_b32",
    "replay": "nowhere --step 3",
    "why": "nowhere --step 3",
    "report": "nowhere",
    "ask": "--model nowhere --image i.png --question q",
    "eval zero-shot": "--model nowhere --data d",
    "eval vqa": "--model nowhere --data d",
    "eval answers": "--predictions p --questions q",
}
"""What a command needs beside its output, none of which is there."""
OTHERS = {(name, "--out") for name in ("report", "ask", *(n for n in WORDS if "eval" in n))}
"""Outputs whose ending only the help's words say."""


def outputs() -> set[tuple[str, str]]:
    """Of every command the options that are called FILE.svg and the like."""
    return {
        (" ".join(words), action.option_strings[-1])
        for words, parser in commands()
        for action in parser._actions
        if action.option_strings and re.fullmatch(r"FILE\.\w+", str(action.metavar))
    }


ALL = sorted(outputs() | OTHERS)


@pytest.mark.parametrize(("command", "option"), ALL)
def test_a_wrong_ending_is_refused_first(
    command: str,
    option: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Of what is there and of what is not: nothing is printed, opened or loaded for it."""
    monkeypatch.chdir(tmp_path)
    assert main([*command.split(), *WORDS[command].split(), option, "x.odd"]) == 2
    told = capsys.readouterr()
    assert told.out == "" and len(told.err.splitlines()) == 1
    assert re.search(rf"{option} (= )?x\.odd must end in \.\w+", told.err), told.err


@pytest.mark.parametrize("command", ["eval zero-shot", "eval vqa", "eval answers", "ask", "report"])
def test_what_lies_in_no_folder_is_refused_first(
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Folders are made where they lack, but not in a file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    out = f"file/new/x.{ {'ask': 'png', 'report': 'html'}.get(command, 'json') }"
    assert main([*command.split(), *WORDS[command].split(), "--out", out]) == 2
    told = capsys.readouterr()
    assert told.out == "" and f"{tmp_path}/file is no folder" in told.err
    refuse_unwritable(tmp_path / "new/folder/x.json", "out")


def test_two_pictures_are_two_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["summary", "ViT-B-32", "--graph", "a.svg", "--autograd", "./a.svg"]) == 2
    told = capsys.readouterr()
    assert told.out == "" and "is another file of this command" in told.err


def test_no_command_lists_what_it_does_not_take() -> None:
    """The words of a choice and the forms in its help are the same."""
    from mmtrain.interop.forms import FORMS

    seen = 0
    for _, parser in commands():
        for action in parser._actions:
            if "--format" not in action.option_strings or action.choices is None:
                continue
            for name, form in FORMS.items():
                if action.help and "ours" in action.help:
                    seen += 1
                    assert (form.whose in action.help) == (name in action.choices), parser.prog
    assert seen > 5
