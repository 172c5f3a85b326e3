"""Draws command lines from the parsers of all commands."""

import argparse
import random
from pathlib import Path
from typing import Any

from mmtrain.cli import build_parser
from tests.fuzz.recipes import NUMBERS, TEXTS

Command = tuple[tuple[str, ...], argparse.ArgumentParser]


def commands(parser: argparse.ArgumentParser | None = None) -> list[Command]:
    """Every command with the words that name it."""
    found: list[Command] = []
    for action in (parser or build_parser())._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, inner in action.choices.items():
                below = commands(inner)
                found += [((name, *words), each) for words, each in below] or [((name,), inner)]
    return found


def draw_command(rng: random.Random, files: list[str]) -> list[str]:
    """Some command, what it requires and some of what it takes."""
    words, parser = rng.choice(commands())
    line = list(words)
    for action in parser._actions:
        if not isinstance(action, argparse._HelpAction) and (
            rng.random() < (0.95 if action.required else 0.25)
        ):
            line += _given(rng, action, files)
    if words == ("demo",):  # else it trains for minutes
        line.append("--data-only")
    return line


def _given(rng: random.Random, action: argparse.Action, files: list[str]) -> list[str]:
    name = list(action.option_strings[:1])
    if action.nargs == 0:
        return name
    count = rng.choice((1, 1, 1, 2, 0)) if action.nargs == "+" else 1
    return [*name, *(_word(rng, action, files) for _ in range(count))]


def _word(rng: random.Random, action: argparse.Action, files: list[str]) -> str:
    if action.choices is not None and rng.random() < 0.8:
        return str(rng.choice(list(action.choices)))
    if action.dest == "out" and rng.random() < 0.7:
        return rng.choice(
            ("new", "new.json", "new.png", "new.html", "run", "run/export", "recipe.toml")
        )
    if action.default is not None and action.type is not None and rng.random() < 0.5:
        return str(action.default)
    own = ("run", "run/export", "run/checkpoints", "recipe.toml", "run/metrics.jsonl")
    odd: tuple[Any, ...] = rng.choice((own, own, files, files, NUMBERS, TEXTS))
    return str(rng.choice(odd)).replace("\x00", "")


def draw_reader(rng: random.Random, *, debug: Path) -> list[str]:
    """A right command that reads a run folder; `debug` holds a shard and its classes."""
    shard = ["--data", str(debug / "train.tar")]
    classes = ["--classes", str(debug / "classes.json")]
    return list(
        rng.choice(
            (
                ["train", "recipe.toml", "--resume", "--train.steps", "3"],
                ["train", "run/recipe.toml", "--run-dir", "new"],
                ["train", "recipe.toml", "--run-dir", "new", "--model.init", "run"],
                ["report", "run"],
                ["report", "run", "run"],
                ["data", "quarantine", "run"],
                ["data", "show", "run", "--step", "1"],
                ["export", "run", "--out", "new"],
                ["export", "run", "--out", "new", "--format", "open-clip"],
                ["convert", "run/export", "new", "--format", "hf"],
                ["eval", "zero-shot", "--model", "run", "--out", "new.json", *shard, *classes],
                ["eval", "retrieval", "--model", "run", "--out", "new.json", *shard],
                ["embed", "--model", "run", "--out", "new", *shard],
                ["summary", "run"],
                ["checkpoint", "ls", "run"],
                ["checkpoint", "verify", "run"],
                ["checkpoint", "prune", "run", "--keep", "1"],
                ["checkpoint", "convert", "run", "--out", "new"],
                ["checkpoint", "convert", "run", "--out", "new", "--format", "mmtrain"],
            )
        )
    )


STORED = '[{kind = "distill", features = "features", target = "features"}]'


def draw_folder_reader(rng: random.Random, *, form: str, debug: Path) -> list[str]:
    """A right command that reads `folder`, features or a model, beside a run and its recipe."""
    data, new = ["--data", str(debug / "train.tar")], ["--run-dir", "new", "--train.steps", "1"]
    train = ["train", "recipe.toml", *new]
    distill = [*train, "--data.join", "folder", "--loss.terms", STORED]
    if form in ("npy", "parquet"):
        readers = (
            ["serve", "--model", "run", "--index", "folder", "--port", "0"],
            ["embed", "--model", "run", "--out", "folder", *data],
            [*train, "--data.join", "folder"],
            distill,
            [*distill, "--data.join_missing", "keep"],
        )
    elif form == "timm":
        readers = (
            [*train, "--model.vision_init", "folder"],
            [*train, "--model.init", "folder"],
            ["summary", "folder"],
        )
    else:
        readers = (
            ["convert", "folder", "new", "--format", rng.choice(("mmtrain", "open-clip", "hf"))],
            ["eval", "retrieval", "--model", "folder", "--out", "new.json", *data],
            ["embed", "--model", "folder", "--out", "new", *data],
            [*train, "--model.init", "folder"],
            ["summary", "folder"],
        )
    return list(rng.choice(readers))
