"""What a mistyped key waits for: torch, and none of the machinery that only a run needs."""

import os
import re
import subprocess
import sys

import pytest

from mmtrain.cli import main
from mmtrain.recipe import TrainRecipe
from mmtrain.settings.describe import describe
from tests.fuzz.options import commands

HEAVY = (
    "torch._dynamo",
    "torch.distributed.checkpoint",
    "torch.distributed.fsdp",
    "torch.distributed.pipelining",
    "torch.distributed.tensor",
    "rich",
    "sympy",
)
"""A second of processor time and more; torch itself takes one."""


def imported(statement: str, *modules: str) -> set[str]:
    """Those of `modules` that a fresh process has imported after a statement."""
    print_them = f"print(*[m for m in {modules!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; {statement}; {print_them}"],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.split())


def test_reading_a_recipe_imports_no_engine() -> None:
    """Nor does the help of its sections, a mistyped key, a look at the machine, or, but for its
    table, what a model by name is made of."""
    words = ["train", "configs/debug_clip.toml", "--train.step", "3"]
    statement = f"import mmtrain.cli; mmtrain.cli.main({words}); import mmtrain.commands.doctor"
    unused = ("ftfy", "jinja2")  # a tenth of a second each, for texts and templates that need them
    statement = f"{statement}; import mmtrain.cli.recipe_keys; "
    statement += f"assert not {{'rich', *{unused}}} & set(sys.modules), 'before the table'; "
    assert imported(f"{statement}import mmtrain.commands.summary", *HEAVY) == {"rich"}


@pytest.mark.parametrize("asked", ["optim", "model.vision", "train.phase", "all"])
def test_only_the_files_of_the_sections_asked_for_are_parsed(
    asked: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """For their docs, that is; a mistyped key needs names alone."""
    from mmtrain.settings import describe as module

    parsed: list[str] = []
    keep = module._field_docs
    monkeypatch.setattr(module, "_field_docs", lambda cls: parsed.append(cls.__name__) or keep(cls))
    assert main(["train", "configs/debug_clip.toml", "--train.step", "3"]) == 2
    assert "did you mean train.steps?" in capsys.readouterr().err and not parsed
    assert main(["train", "--help", asked]) == 0
    told = capsys.readouterr().out
    assert (len(set(parsed)) > 30) == (asked == "all"), parsed
    every = {key.name.replace("[]", ""): key.doc for key in describe(TrainRecipe)}
    names = re.findall(r"^(?:\[+|  )([a-z]\S*?)(?:\[\]|\])*(?:  | = )", told, re.M)
    assert asked in (*names, "all") and len(names) > 4
    assert all(every[name.replace("[]", "")] in " ".join(told.split()) for name in names)


def test_little_is_looked_through_for_garbage() -> None:
    """Neither while torch is imported, which makes 280,000 objects that stay, nor at the end."""
    seen = "atexit.register(lambda: print(gc.get_freeze_count() > 10_000, gc.get_threshold()[0]))"
    statement = f"import atexit, gc; {seen}; import mmtrain.__main__ as it; "
    statement += "it.main = lambda: sys.modules and 0; it.run()"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; {statement}"], capture_output=True, text=True
    )
    assert done.stdout.split() == ["True", "10000"], done.stderr


def test_a_model_is_built_without_the_compiler() -> None:
    """What evaluates, exports, asks or plans builds one on the meta device; torch's own draw of an
    embedding imports three seconds of torch there."""
    build = "torch.set_default_device('meta'); Clip(named_model('ViT-B-32'))"
    statement = f"import torch; from mmtrain.models import Clip, named_model; {build}"
    assert imported(statement, *HEAVY, "mmtrain.models.clip") == {"mmtrain.models.clip"}


def test_words_are_read_without_torch() -> None:
    """The parser and the help of every command, mistakes in words, and the lists of what is
    shipped."""
    lines = ["", "--help", "recipes", "models", "eval --x", "trian", "checkpoint nothing"]
    lines += [f"{' '.join(words)} --help" for words, _ in commands()]
    assert "train --help" in lines and "eval zero-shot --help" in lines
    calls = "; ".join(f"main({line.split()})" for line in lines)
    quiet = "import os; sys.stdout = open(os.devnull, 'w')"
    statement = f"{quiet}; from mmtrain.cli import main; {calls}; sys.stdout = sys.__stdout__"
    assert imported(statement, "torch", "numpy") == set()


def test_the_help_of_train_tells_every_section(capsys: pytest.CaptureFixture[str]) -> None:
    """Read from the file of the recipes' class, they are those that the class has."""
    assert main(["train", "--help"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    sections = [key for key in describe(TrainRecipe) if "." not in key.name]
    assert len(sections) > 10 and all(key.doc for key in sections)
    assert " ".join(f"{key.name} {key.doc}" for key in sections) in told


@pytest.mark.parametrize(
    ("load", "given", "spins"),
    [
        (1000.0, {}, "1000"),
        (0.0, {}, None),
        (1000.0, {"GOMP_SPINCOUNT": "7"}, "7"),
        (1000.0, {"OMP_WAIT_POLICY": "active"}, None),
    ],
)
def test_threads_are_told_how_to_wait_before_torch_comes(
    load: float, given: dict[str, str], spins: str | None
) -> None:
    """libgomp reads it once; on a machine with nothing else to do, or of a user who has set it,
    nothing is changed."""
    seen = "print('torch' in sys.modules, os.environ.get('GOMP_SPINCOUNT'))"
    statement = (
        f"import os, sys, mmtrain.__main__ as it; os.getloadavg = lambda: ({load},) * 3; "
        f"it.main = lambda: {seen}; it.run()"
    )
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    env = {key: value for key, value in os.environ.items() if key not in names}
    done = subprocess.run(
        [sys.executable, "-c", statement],
        capture_output=True,
        text=True,
        check=True,
        env=env | given,
    )
    assert done.stdout.split() == ["False", str(spins)]
