"""Options that are numbers: a wrong one is told as it was typed, with what is right."""

import re

import pytest

from mmtrain.cli import main

SPLIT = ("data", "split", "x.tar", "--out", "o", "--fractions")
MAKE = ("data", "make", "x", "--out", "o")


@pytest.mark.parametrize(
    ("words", "wrong", "right"),
    [
        (SPLIT, "train=", "NAME=X with X within 0 and 1"),
        (SPLIT, "train=abc", "NAME=X with X within 0 and 1"),
        (SPLIT, "train=1.5", "NAME=X with X within 0 and 1"),
        (SPLIT, "train", "NAME=X with X within 0 and 1"),
        (SPLIT, "=0.5", "NAME=X with a folder's name"),
        (SPLIT, "a/b=0.5", "NAME=X with a folder's name"),
        ((*MAKE, "--shard-size"), "5 apples", "bytes, such as 500MB or 1.5GiB"),
        ((*MAKE, "--shard-range"), "4/4", "i/n with i from 0 to n - 1, such as 0/4"),
        ((*MAKE, "--workers"), "two", "an int, at least 0"),
        ((*MAKE, "--workers"), "1.0", "an int, at least 0"),
        ((*MAKE, "--cache-gb"), "nan", "a number above 0"),
    ],
)
def test_a_wrong_value_is_told_as_it_was_typed(capsys, words, wrong, right):
    assert main([*words, wrong]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"argument {words[-1]}: {wrong} must be {right} (see " in line


@pytest.mark.parametrize("wrong", ["", " ", "1 ", "\t2", "\n"])
@pytest.mark.parametrize(
    "words",
    [SPLIT, *((*MAKE, name) for name in ("--shard-size", "--shard-range", "--seed", "--cache-gb"))],
    ids=lambda words: words[-1],
)
def test_what_cannot_be_seen_is_shown(capsys, words, wrong):
    status = main([*words, wrong])
    (line,) = capsys.readouterr().err.splitlines()
    if re.fullmatch(r"\s*\d\s*", wrong) and f"argument {words[-1]}" not in line:
        return  # such as ` 1 `, taken as a number
    shown = repr(wrong) if wrong else "it is empty, and"
    assert status == 2 and f"argument {words[-1]}: {shown} must be " in line
