"""What a mistaken command ends with."""

import pytest

from mmtrain.cli import main


def mistake(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line of a command that ends with status 2, without its `mmtrain: error: `."""
    assert main([*words]) == 2
    lines = capsys.readouterr().err.splitlines()
    told = [line for line in lines if line.startswith("mmtrain: error: ")]
    assert len(told) == 1 and lines[-1] == told[0], lines
    return told[0].removeprefix("mmtrain: error: ")
