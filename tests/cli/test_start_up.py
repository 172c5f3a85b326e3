"""What a mistyped key waits for: torch, and none of the machinery that only a run needs."""

import subprocess
import sys

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
    """Nor does the help of its sections."""
    assert imported("import mmtrain.recipe, mmtrain.cli.recipe_keys", *HEAVY) == set()


def test_words_are_read_without_torch() -> None:
    """The parser of every command, and the list of recipes."""
    statement = "from mmtrain.cli import main; main(['recipes', '--help']); main(['eval', '--x'])"
    assert (
        imported(
            f"import os; sys.stdout = open(os.devnull, 'w'); {statement}; "
            "sys.stdout = sys.__stdout__",
            "torch",
            "numpy",
        )
        == set()
    )
