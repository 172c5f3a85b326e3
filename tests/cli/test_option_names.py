"""A bad value of any option, of any command: one line that calls it as the user typed it."""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmtrain.cli import main
from mmtrain.cli.parser import names_place, typed_name
from mmtrain.eval.outcomes import Outcome
from mmtrain.eval.result import EvalResult, write_result
from tests.fuzz.cases import DEBUG, make_templates
from tests.fuzz.options import commands
from tests.interop.decoder_folders import write_worded

PARSERS = {" ".join(words): parser for words, parser in commands()}
CLIP = "--model {run} --out {new}.json"
ASKED = "--questions {vqa}/questions.json --annotations {vqa}/annotations.json"
RIGHT = {
    "recipes": "debug_clip --out {new}.toml",
    "train": "{recipe} --run-dir {new}",
    "plan": "{recipe} --world-size 1",
    "profile": "{recipe} --out {new} --steps 1",
    "eval zero-shot": f"{CLIP} --data {{shard}} --classes {{classes}}",
    "eval knn": f"{CLIP} --train {{shard}} --test {{shard}} --classes {{classes}}",
    "eval linear-probe": (
        f"{CLIP} --train {{shard}} --test {{shard}} --classes {{classes}} --strengths 1"
    ),
    "eval retrieval": f"{CLIP} --data {{shard}}",
    "eval pairs": f"{CLIP} --data {{shard}} --caption txt --negatives name",
    "eval associations": f"{CLIP} --data {{vqa}}/images --cues {{cues}}",
    "eval vqa": f"--model {{asked}} --data {{vqa}}/images {ASKED} --out {{new}}.json",
    "eval answers": f"--predictions {{said}} {ASKED} --out {{new}}.json",
    "eval suite": "{suite} --models {run} --out {new}",
    "compare": "{result} {result} --out {new}.html --data {shard}",
    "embed": "--model {run} --data {shard} --out {new}",
    "generate": "--model {decoder} --prompt {text}",
    "ask": "--model {asked} --image {image} --question what?",
    "data index": "{shard} --index-dir {new}",
    "data check": "{shard}",
    "data make": "{shard} --out {new}",
    "data view": "{shard} --out {new}.html",
    "data stats": "{shard} --out {new}.html",
    "data show": "{recipe} --step 1",
    "data labels": "{recipe} --out {new}.html",
    "data bench": "{recipe} --workers 0 --batches 2",
    "data split": "{shard} --out {new} --fractions a=0.5 b=0.5",
    "data vqa": f"--images {{vqa}}/images {ASKED} --out {{new}}",
    "data quarantine": "{run}",
    "checkpoint ls": "{run}",
    "checkpoint verify": "{run}",
    "checkpoint prune": "{run} --keep 9",
    "checkpoint push": "{run} {new}",
    "checkpoint pull": "{copy} {new}",
    "checkpoint convert": "{run} --out {new}",
    "export": "{run} --out {new}",
    "convert": "{run}/export {new}",
    "push": "{run} hf://me/mine --out {new}",
    "models": "",
    "summary": "{run}",
    "report": "{run} --out {new}.html",
    "replay": "{run} --step 1 --out {new}.json",
    "why": "{run} --step 1 --out {new}.html",
    "watch": "{run}",
    "serve": "--model {run}",
    "demo": "--data-only --out {new}",
    "doctor": "--dir {vqa}",
    "completion": "bash",
}
"""A command line of each command that ends well."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("files")
    made = make_templates(folder, recipes_like="debug_clip.toml", is_whole=False)
    write_worded(folder / "decoder")
    asked = json.loads((folder / "vqa" / "questions.json").read_text())["questions"]
    said = [{"question_id": row["question_id"], "answer": "red"} for row in asked]
    assert main(["checkpoint", "push", str(made.runs[0]), str(folder / "copy")]) == 0
    (folder / "said.json").write_text(json.dumps(said))
    outcome = Outcome(metric="accuracy", id="1", image="1", score=1.0)
    result = EvalResult(figures={"accuracy": 1.0}, best=[], worst=[], outcomes=(outcome,))
    write_result(folder / "result.json", result)
    knn = '[[knn]]\nname = "pairs"\ntrain = "train.tar"\ntest = "train.tar"\nclasses = "'
    suite = f'root = "{DEBUG}"\n{knn}{DEBUG / "classes.json"}"\n'
    (folder / "suite.toml").write_text(suite)
    names = [image.stem for image in (folder / "vqa" / "images").iterdir()][:3]
    cue = {"cue": "red", "candidates": names, "associations": names[:1]}
    (folder / "cues.jsonl").write_text(json.dumps(cue) + "\n")
    return {
        "run": str(made.runs[0]),
        "copy": str(folder / "copy"),
        "asked": str(made.runs[-1]),
        "recipe": str(made.recipes[0]),
        "vqa": str(folder / "vqa"),
        "image": str(next((folder / "vqa" / "images").iterdir())),
        "shard": str(DEBUG / "train.tar"),
        "classes": str(DEBUG / "classes.json"),
        "decoder": str(folder / "decoder"),
        "said": str(folder / "said.json"),
        "result": str(folder / "result.json"),
        "suite": str(folder / "suite.toml"),
        "cues": str(folder / "cues.jsonl"),
        "text": "a",
        "new": str(folder / "new"),
    }


INDEX_DIR_IS_MORE = ("data make", "data split", "data stats", "data view")
LOOKS = ("data stats", "data view")
BLOCKED = "{shard}/below/a/file"
"""A place where nothing is and nothing can be made."""


def bad_values(action: argparse.Action) -> list[str]:
    """Of the option's kind, and the empty word that a shell makes of a variable that is not set."""
    if action.choices is not None:
        return ["", "zzz"]
    if action.metavar == "TEXT":
        return []
    if action.type not in (None, Path):
        return ["", "x", "-7", "nan"]
    return ["", BLOCKED] if names_place(action) else ["", "no such thing"]


def with_value(action: argparse.Action, value: str, words: list[str]) -> list[str]:
    """The words with the value for what they have there."""
    words = list(words)
    option = next(iter(action.option_strings), None)
    if option is None:
        is_second = action.dest == "repository" or (action.dest == "out" and len(words) == 2)
        words[int(is_second)] = value
        return words
    if option in words:
        words[words.index(option) + 1] = value
        return words
    return [*words, option, value]


def mistakes(parser: argparse.ArgumentParser) -> Iterator[tuple[argparse.Action, str]]:
    """Every option, and place among the words, that takes a value; with each bad one."""
    for action in parser._actions:
        if action.nargs != 0:
            yield from ((action, value) for value in bad_values(action))


def test_every_command_is_here() -> None:
    assert RIGHT.keys() == PARSERS.keys(), "give a new command a line of RIGHT"


@pytest.mark.parametrize("command", RIGHT)
def test_a_mistake_names_its_option(
    command: str, files: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    silent: list[str] = []
    for number, (action, value) in enumerate(mistakes(PARSERS[command])):
        words = with_value(action, value, RIGHT[command].split())
        held = files | {"new": f"{files['new']}-{command.replace(' ', '-')}-{number}"}
        value = value.format(**held)
        status = main([*command.split(), *(word.format(**held) for word in words)])
        told = (capsys.readouterr().err.splitlines() or [""])[-1]
        if command == "data check" and status == 1:
            continue  # it looks for samples without captions, and names each
        if command in LOOKS and action.dest == "captions":
            continue  # it tells how many samples have them
        if command in INDEX_DIR_IS_MORE and action.dest == "index_dir":
            continue  # an index beside the shards is read wherever new ones would be kept
        name = typed_name(action).lower()
        is_named = name in told.lower() or (value in told and f" = {value}" not in told)
        if status != 2 or not is_named:
            silent.append(f"{typed_name(action)} {value!r}: {status}, {told}")
    assert silent == []
