"""Programs beside the package (benchmarks/, tools/) call its functions as they are.

No type checker reads them, and most are run by hand: a function that takes other arguments, or has
moved, would be found weeks later.
"""

import ast
import importlib
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PROGRAMS = sorted([*ROOT.glob("benchmarks/*.py"), *ROOT.glob("tools/*.py")])


def imported(tree: ast.Module) -> Iterator[tuple[str, Any]]:
    """What a program takes of mmtrain, by the name that it has there."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "mmtrain":
            module = importlib.import_module(node.module or "")
            for one in node.names:
                submodule = f"{module.__name__}.{one.name}"
                found = getattr(module, one.name, None)
                yield (
                    one.asname or one.name,
                    importlib.import_module(submodule) if found is None else found,
                )


def misfit(function: Callable[..., Any], call: ast.Call) -> str | None:
    """What a call has that the function does not take, or lacks; None: it fits."""
    try:
        signature = inspect.signature(function)
    except ValueError:
        return None
    starred = any(isinstance(word, ast.Starred) for word in call.args)
    names = [word.arg for word in call.keywords]
    bind = signature.bind_partial if starred or None in names else signature.bind
    try:
        bind(*(() if starred else call.args), **{name: None for name in names if name})
    except TypeError as error:
        return str(error)
    return None


def misfits(tree: ast.Module) -> list[str]:
    """Calls of mmtrain's functions that would raise."""
    known = {name: one for name, one in imported(tree) if callable(one)}
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    named = [(call.func.id, call) for call in calls if isinstance(call.func, ast.Name)]
    return [
        f"line {call.lineno}: {name}: {told}"
        for name, call in named
        if name in known and (told := misfit(known[name], call))
    ]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_calls_fit_what_is_called(program: Path) -> None:
    assert misfits(ast.parse(program.read_text("utf-8"))) == []


def test_what_does_not_fit_is_seen() -> None:
    text = "from mmtrain.recipe import load_recipe\n"
    fits = ["load_recipe(a, b, run_dir=c)", "load_recipe(*a)", "load_recipe(**a)", "other(a, b, c)"]
    for call in fits:
        assert misfits(ast.parse(text + call)) == []
    for call in ("load_recipe()", "load_recipe(a, b, c)", "load_recipe(a, dir=b)"):
        assert len(misfits(ast.parse(text + call))) == 1, call
    with pytest.raises(ModuleNotFoundError):
        misfits(ast.parse("from mmtrain.recipe import gone"))
