"""Every Python block of the docs is run as it stands, or says in its first line why it is not."""

import json
import re
from pathlib import Path

import pytest

from tests.ranks import run_ranks

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").rglob("*.md"))
NEEDS = "# needs "
"""How a block begins that is not run: with what it needs."""
# Pages with tests of their own, which run their blocks; so have the tutorials, test_tutorials.py.
ELSEWHERE = {
    "guide.md": "tests/test_readme.py",
    "data.md": "tests/data/test_loader.py",
    "onnx.md": "tests/interop/test_onnx_files.py",
    "vqa.md": "tests/tasks/test_decoder_start.py",
}


def python_blocks(page: Path) -> list[str]:
    """Without their fences."""
    return re.findall(r"^```python\n(.*?)^```$", page.read_text("utf-8"), re.M | re.S)


PAGES = [
    page
    for page in DOCS
    if python_blocks(page) and page.name not in ELSEWHERE and page.parent.name != "tutorials"
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_blocks_run_in_the_order_of_the_page(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": page.stem}
    for number, block in enumerate(python_blocks(page), 1):
        if not block.startswith(NEEDS):
            exec(compile(block, f"{page.name}, block {number}", "exec"), names)


@pytest.mark.slow
def test_the_trainer_of_parallelize_has_the_same_losses_on_two_ranks(tmp_path: Path):
    """FSDP over both, under the environment that torchrun gives."""
    files = [tmp_path / "1.json", tmp_path / "2.json"]
    run_ranks(train_as_the_page_does, 1, files[0])
    run_ranks(train_as_the_page_does, 2, files[1])
    alone, shared = (json.loads(file.read_text()) for file in files)
    assert len(alone) == 4
    assert shared == pytest.approx(alone, abs=1e-5)


def train_as_the_page_does(rank: int, file: Path) -> None:
    """What its program leaves in `losses`."""
    (program,) = python_blocks(ROOT / "docs/python/parallelize.md")
    names: dict[str, object] = {}
    exec(compile(program, "parallelize.md", "exec"), names)
    if rank == 0:
        file.write_text(json.dumps(names["losses"]))


@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_page_that_others_run_is_run_by_them(name: str):
    assert name in (ROOT / ELSEWHERE[name]).read_text("utf-8")


def test_python_has_one_fence():
    """Such as ```py or ```pycon would not be seen."""
    fences = {fence for page in DOCS for fence in re.findall(r"^ *```(\S+)", page.read_text())}
    assert fences <= {"python", "sh", "toml", "json"}
