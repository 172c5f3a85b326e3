"""`~` and `$VAR` in every setting that is a path: of recipes, by their schema, and of commands."""

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mmtrain.cli import main
from mmtrain.cli.parser import names_place
from mmtrain.cli.program import build_parser
from mmtrain.data.config import DataConfig
from mmtrain.errors import UsageError
from mmtrain.recipe import TrainRecipe, load_recipe
from mmtrain.settings.describe import describe
from mmtrain.settings.paths import (
    escape_path,
    escape_paths,
    expand_path,
    expand_paths,
    telling_places,
)
from mmtrain.settings.read_toml import read_toml

RECIPE = "configs/debug_clip.toml"
NO_PATHS = {
    "features",
    "name",
    "image_key",
    "label_key",
    "captions",
    "targets",
    "also_train",
    "device",
}
NO_PATHS |= {"wandb_project", "trackio_project", "caption", "negatives", "join_key"}
NO_PATHS |= {"group_key", "ignored_groups"}
NO_PATHS |= {"pool", "model_type", "settings"}
"""Last names of a recipe's keys that take a text and no path."""


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/people/ada")
    monkeypatch.setenv("DISK", "/disks/disk")
    monkeypatch.setenv("ODD", "/disks/a$b")
    monkeypatch.delenv("UNSET", raising=False)
    monkeypatch.setenv("EMPTY", "")


def text_keys() -> list[str]:
    """Keys of a recipe that take a text."""
    return [
        key.name
        for key in describe(TrainRecipe)
        if "str" in key.type.split(" | ") or key.type.startswith("list of str")
    ]


def table(key: str, value: Any) -> dict[str, Any]:
    """The TOML dict of one key; a table of several kinds is of the one that has it."""
    if key.startswith("loss.terms[]"):
        return {"loss": {"terms": [{"kind": "distill", key.rpartition(".")[2]: value}]}}
    for name in reversed(key.split(".")):
        value = {name.removesuffix("[]"): [value] if name.endswith("[]") else value}
    return value


def at(data: Any, key: str) -> Any:
    """What `table` put there."""
    for name in key.split("."):
        data = data[name.removesuffix("[]")]
        data = data[0] if name.endswith("[]") else data
    return data


def test_every_path_of_a_recipe_is_expanded() -> None:
    """A text is a path, or is named above as none; alone and in a list, and back again."""
    paths = [key for key in text_keys() if key.rpartition(".")[2] not in NO_PATHS]
    assert len(paths) >= 24 and {"run.dir", "model.init", "peft.init", "data.train"} <= {*paths}
    for key in text_keys():
        want = "/disks/disk/x" if key in paths else "$DISK/x"
        assert at(expand_paths(TrainRecipe, table(key, "$DISK/x")), key) == want, key
        want = "/people/ada/x" if key in paths else "~/x"
        assert at(expand_paths(TrainRecipe, table(key, "~/x")), key) == want, key
    for key in [key.name for key in describe(TrainRecipe) if "list of str" in key.type]:
        found = at(expand_paths(TrainRecipe, table(key, ["$DISK/x", "a"])), key)
        assert found == (["/disks/disk/x", "a"] if key in paths else ["$DISK/x", "a"]), key


@pytest.mark.parametrize("empty", ["", " ", "\t"])
def test_no_path_of_a_recipe_is_empty(empty: str) -> None:
    """The system takes it for the folder that one is in, where a variable was not set."""
    for key in text_keys():
        if key.rpartition(".")[2] in NO_PATHS:
            continue
        told = f"{key.replace('[]', '[0]')} = "
        with pytest.raises(UsageError, match=f"^{re.escape(told)}.* is empty; is a variable not"):
            expand_paths(TrainRecipe, table(key, empty))
    for key in [key.name for key in describe(TrainRecipe) if "list of str" in key.type]:
        if key.rpartition(".")[2] not in NO_PATHS:
            with pytest.raises(UsageError, match=r"\[1\] = .* is empty"):
                expand_paths(TrainRecipe, table(key, ["a", empty]))


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("~", "/people/ada"),
        ("~/a b", "/people/ada/a b"),
        ("~root/x", f"{Path('~root').expanduser()}/x"),
        ("$DISK/{00000..00007}.tar", "/disks/disk/{00000..00007}.tar"),
        ("${DISK}2/*.tar", "/disks/disk2/*.tar"),
        ("a/$DISK", "a//disks/disk"),
        ("$ODD/x", "/disks/a$b/x"),
        ("$$DISK", "$DISK"),
        ("cost$$5/$$", "cost$5/$"),
        ("cost$5/a$", "cost$5/a$"),
        ("$/x", "$/x"),
        ("a~/b~c", "a~/b~c"),
        ("./~/x", "./~/x"),
        ("torchvision:CIFAR10/train:~/data", "torchvision:CIFAR10/train:/people/ada/data"),
        ("synthetic:64", "synthetic:64"),
    ],
)
def test_what_a_path_means(text: str, path: str) -> None:
    """As a shell reads it; and what a recipe's file records of it comes out the same."""
    assert expand_path(text, "key") == path
    assert Path(expand_path(escape_path(path), "key")) == Path(path)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("$UNSET/x", "the variable UNSET is not set; set it, or write $$"),
        ("a/${UNSET}", "the variable UNSET is not set"),
        ("$EMPTY/x", "the variable EMPTY is not set"),
        ("~nobody-here/x", "there is no user nobody-here"),
        ("~backup.tar", "write ./~backup.tar"),
    ],
)
def test_what_stands_for_nothing_is_refused(
    text: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line with the setting as the user named it, in a recipe and in words."""
    with pytest.raises(UsageError, match=r"^data\.train = "):
        expand_path(text, "data.train")
    for words, name in (
        (["train", RECIPE, "--data.train", text], "data.train"),
        (["train", RECIPE, "--run-dir", text], "--run-dir"),
        (["report", text], "RUN"),
        (["data", "check", text], "DATA"),
    ):
        assert main(words) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"{name} = {text}" in line and told in line


def options(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.Action]]:
    """Every option of every command."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield from options(child)
        else:
            yield parser.prog, action


def test_every_path_of_a_command_is_expanded() -> None:
    """By its metavar; a new metavar must say what it is."""
    found = list(options(build_parser()))
    metavars = {a.metavar for _, a in found if a.metavar is not None and not names_place(a)}
    assert metavars == {"N", "NAME", "KEY", "D", "C", "K", "T", "X", "P", "TEXT"} | {
        "BYTES",
        "COND",
        "GLOB",
        "GROUP",
        "I/N",
        "NAME=X",
        "REPOSITORY",
        "SECTION",
        "SHELL",
    }
    assert [a.dest for _, a in found if a.type is Path and not names_place(a)] == []
    assert sum(names_place(a) for _, a in found) > 50


@pytest.mark.parametrize(
    "words",
    [
        ["report", "W", "W", "--out", "W"],
        ["export", "W", "--out", "W"],
        ["data", "index", "W", "W"],
        ["checkpoint", "ls", "W"],
        ["serve", "--model", "W", "--index", "W"],
        ["eval", "zero-shot", "--model", "W", "--data", "W", "--classes", "W", "--out", "W.json"],
        ["train", "W", "--run-dir", "W"],
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_words_of_a_command(words: list[str]) -> None:
    """Path and text alike."""
    typed = [word.replace("W", "$DISK/~x") for word in words]
    arguments, rest = build_parser().parse_known_args(typed)
    assert rest == []
    shown = repr(arguments)
    assert "$DISK" not in shown and shown.count("/disks/disk/~x") >= sum("W" in w for w in words)


def test_a_run_in_an_odd_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its recipe records the place itself, dollar signs and all, and goes on after the variables
    are gone."""
    disk = tmp_path / "a$HOME"
    disk.mkdir()
    shard = (Path(__file__).parents[2] / "mmtrain/demo/debug/train.tar").read_bytes()
    (disk / "train.tar").write_bytes(shard)
    monkeypatch.setenv("DISK", str(disk))
    words = ["--run.dir", "$DISK/run", "--data.train", "$DISK/train.tar", "--train.steps", "1"]
    assert main(["train", RECIPE, *words]) == 0
    monkeypatch.delenv("DISK")
    run = disk / "run"
    assert read_toml(run / "recipe.toml")["run"]["dir"] == str(run).replace("$", "$$")
    assert load_recipe(run / "recipe.toml").data.train == str(disk / "train.tar")
    capsys.readouterr()
    assert main(["train", escape_path(str(run)), "--resume"]) == 0
    assert " -> " not in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a$HOME"]


def test_what_is_no_path_is_left_alone() -> None:
    """Wrong types and unknown keys are for `decode` to refuse."""
    data = {"data": {"train": 3, "nothing": "$UNSET"}, "run": "$UNSET", "wonder": {"a": "~"}}
    assert expand_paths(TrainRecipe, data) == data
    assert escape_paths(TrainRecipe, {"run": {"dir": "~/$x"}}) == {"run": {"dir": "./~/$$x"}}


@pytest.mark.parametrize(
    "text",
    ["https://ada:hush@host/x", "https://host/x?a=b&X-Amz-Signature=hush", "s3://k:hush@bucket/x"],
)
def test_an_address_that_holds_a_secret_is_refused_without_it(text, monkeypatch, capsys):
    assert main(["data", "index", text]) == 2
    told = capsys.readouterr().err
    assert "***" in told and "hush" not in told and told.count("\n") == 1
    monkeypatch.setenv("ADDRESS", text)
    with pytest.raises(UsageError, match="would be recorded"):
        expand_path("$ADDRESS", "data.train")


@pytest.mark.parametrize(
    ("key", "value", "path"),
    [
        ("data.train", "sets/0.tar", "sets/0.tar"),
        ("data.train", "sets/*.tar", "sets/*.tar"),
        ("data.train", "sets/{0..2}.tar", "sets/{0..2}.tar"),
        ("data.train", "sets/all.jsonl", "sets/all.jsonl"),
        ("data.train", "captions:sets", "sets"),
        ("data.train", "sets", "sets"),
        pytest.param("eval.zero_shot", "sets/0.tar", "sets/0.tar", marks=pytest.mark.slow),
    ],
)
def test_a_missing_path_is_told_with_its_place(
    key: str, value: str, path: str, tmp_path: Path, monkeypatch, capsys
) -> None:
    """Of a run that goes on from another folder, by any key; beside the message that it had."""
    recipe = str(Path("configs/debug_clip.toml").resolve())
    words = [f"--{key}", value]
    if key.startswith("eval"):
        words = ["--data.train", str(Path("mmtrain/demo/debug/train.tar").resolve())]
        words += [f"--{key}", f'[{{name = "x", data = "{value}", classes = "imagenet"}}]']
    monkeypatch.chdir(tmp_path)
    assert main(["train", recipe, *words, "--run-dir", "run"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"({path} was looked for at {tmp_path}/{path})" in line, line


def test_other_mistakes_have_no_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor have whole paths, addresses, and what is there."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    for train in ("/whole/0.tar", "s3://bucket/0.tar", "there"):
        config = DataConfig(train=train)
        for told in (f"train = {train} does not exist", "train = gone/0.tar does not exist"):
            with pytest.raises(UsageError) as caught, telling_places(config):
                raise UsageError(told)
            assert str(caught.value) == told
    with pytest.raises(UsageError, match=r"^steps = 0$"), telling_places(DataConfig(train="gone")):
        raise UsageError("steps = 0")
