"""The tutorials run from top to bottom, on small stand-ins; what cannot, says what it needs.

And what every page of docs tells to type is what the command line takes.
"""

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from mmtrain.cli import main
from mmtrain.cli.program import parse
from mmtrain.demo import debug_pairs
from mmtrain.recipe import TrainRecipe, load_recipe
from mmtrain.settings.describe import describe
from tests.test_docs_python import NEEDS

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").rglob("*.md"))
TUTORIALS = sorted((ROOT / "docs/tutorials").glob("*.md"))
# What trains for minutes there trains for four steps here.
SHORT = ("--train.steps", "4", "--train.batch_size", "16")


def sh_blocks(page: Path) -> list[str]:
    """Without their fences."""
    return re.findall(r"^```sh\n(.*?)^```$", page.read_text("utf-8"), re.M | re.S)


def mmtrain_words(line: str) -> list[str] | None:
    """What follows `mmtrain` or `torchrun ... -m mmtrain`; None for another program."""
    if "mmtrain" not in line:  # another program's, whose quotes may go over lines
        return None
    words = shlex.split(line, comments=True)
    if words[:1] == ["mmtrain"]:
        return words[1:]
    if words[:1] == ["torchrun"] and "mmtrain" in words:
        return words[words.index("-m") + 2 :]
    return None


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.stem)
def test_every_command_is_understood(page: Path):
    """Its words, and the recipe and keys of those that train one of ours."""
    for line in [line for block in sh_blocks(page) for line in block.splitlines()]:
        words = mmtrain_words(line)
        if words is None or "--help" in words:
            continue
        arguments = parse(words)
        assert arguments is not None, line


def test_keys_that_the_prose_names_exist():
    keys = {re.sub(r"\[\]", "", key.name) for key in describe(TrainRecipe)}
    for page in DOCS:
        for key in re.findall(r"(?<![\w-])--([a-z_]+(?:\.[a-z_]+)+)", page.read_text("utf-8")):
            assert key in keys, f"{page.name}: --{key}"


def test_the_site_has_every_page():
    """And names none that is not there or made (tools/docs_hooks.py)."""
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))

    def pages(entry: Any) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        parts = entry.values() if isinstance(entry, dict) else entry
        return [page for part in parts for page in pages(part)]

    named = pages(site["nav"])
    assert len(named) == len(set(named))
    hooks = (ROOT / "tools/docs_hooks.py").read_text("utf-8")
    written = {page.relative_to(ROOT / "docs").as_posix() for page in DOCS}
    assert written <= {*named}
    assert all(f'"{name}"' in hooks for name in {*named} - written)


def test_the_notebook_is_the_page():
    path = ROOT / "tools/write_notebook.py"
    spec = importlib.util.spec_from_file_location("write_notebook", path)
    assert spec is not None and spec.loader is not None
    writer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(writer)
    assert writer.NOTEBOOK.read_text("utf-8") == writer.written(writer.PAGE.read_text("utf-8")), (
        "run: python tools/write_notebook.py"
    )


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory like a clone's, with small stand-ins for what a reader has by then."""
    for name in ("configs", "mmtrain", "tools"):
        (tmp_path / name).symlink_to(ROOT / name)
    drawings, classes = debug_pairs().train, debug_pairs().classes
    emoji = tmp_path / "data/emoji_pairs"
    emoji.mkdir(parents=True)
    for name in ("train-00000", "val_twemoji", "val_openmoji", "unseen"):
        shutil.copy(drawings, emoji / f"{name}.tar")
    for name in ("seen", "unseen"):
        shutil.copy(classes, emoji / f"classes_{name}.json")
    (tmp_path / "photos").mkdir()
    for number in range(64):
        Image.new("RGB", (40, 30), (4 * number, 90, 120)).save(tmp_path / f"photos/{number}.jpg")
        (tmp_path / f"photos/{number}.txt").write_text(f"a colour, number {number}")
    for name in ("photo.jpg", "photo.png"):
        Image.new("RGB", (90, 60), "red").save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_a_tutorial_runs_from_top_to_bottom(page: Path, clone: Path):
    blocks = re.findall(r"^```(sh|python)\n(.*?)^```$", page.read_text("utf-8"), re.M | re.S)
    for language, block in blocks:
        if block.startswith(NEEDS):
            continue
        if language == "python":
            exec(compile(block, page.name, "exec"), {})
            continue
        for line in block.splitlines():
            words = mmtrain_words(line)
            if words is None:
                program = [sys.executable, *shlex.split(line)[1:], "--train", "80", "--val", "8"]
                assert line.startswith("python tools/make_shapes_vqa.py"), line
                environment = os.environ | {"PYTHONPATH": str(ROOT)}
                subprocess.run([*program, "--test", "8"], check=True, env=environment)
            elif words != ["demo", "--data-only"]:  # tests/demo runs it; the stand-ins stay
                trains = words[0] == "train" and "--help" not in words
                assert main([*words, *(SHORT if trains else ())]) == 0, line


def test_what_a_tutorial_cannot_run_names_recipes_that_load(monkeypatch: pytest.MonkeyPatch):
    """Those that begin from no weights."""
    monkeypatch.chdir(ROOT)
    found = 0
    for page in TUTORIALS:
        for line in [line for block in sh_blocks(page) for line in block.splitlines()]:
            words = mmtrain_words(line)
            if words is None or words[0] != "train" or ".init" in line or "--help" in words:
                continue
            arguments = parse(words)
            assert arguments is not None
            if Path(arguments.recipe).is_file():
                assert load_recipe(arguments.recipe, arguments.overrides), line
                found += 1
    assert found >= 5
