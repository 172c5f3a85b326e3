"""Whatever is mistyped or damaged ends in a run or in one line with status 2, never otherwise.

The seed is printed. `FUZZ_SEED=7 FUZZ_CASE=123 pytest -s tests/fuzz` repeats one case.
"""

import os
import shutil
from pathlib import Path

import pytest

from tests.fuzz.cases import Templates, draw_case, make_templates
from tests.fuzz.judge import complaint

SEED = int(os.environ.get("FUZZ_SEED", "0"))
ONLY = os.environ.get("FUZZ_CASE")
CASES_PER_TEST = 100


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> Templates:
    return make_templates(tmp_path_factory.mktemp("templates"))


def run_cases(numbers: range, templates: Templates, folder: Path) -> None:
    """Each case in a folder of its own; all complaints at the end."""
    print(f"FUZZ_SEED={SEED}")
    wrong = []
    for number in [int(ONLY)] if ONLY else numbers:
        cwd = folder / "a/b"
        cwd.mkdir(parents=True)
        words, disk = draw_case(SEED, number, templates, cwd)
        if told := complaint(words, cwd=cwd, disk=disk):
            shown = " ".join(map(ascii, words))
            told = told.encode(errors="backslashreplace").decode()  # what pytest can hand on
            wrong.append(f"FUZZ_CASE={number} (disk {disk}): mmtrain {shown}\n{told}")
        shutil.rmtree(folder / "a")
    assert not wrong, f"FUZZ_SEED={SEED}\n" + "\n\n".join(wrong)


def test_fifty_cases(templates: Templates, tmp_path: Path) -> None:
    run_cases(range(50), templates, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(50, 1050, CASES_PER_TEST))
def test_a_thousand_cases(first: int, templates: Templates, tmp_path: Path) -> None:
    run_cases(range(first, first + CASES_PER_TEST), templates, tmp_path)
