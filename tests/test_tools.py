"""What every program in tools/ does with the places among its words, as every command does."""

import importlib.util
import shutil
from pathlib import Path
from types import ModuleType

import pytest

TOOLS = Path(__file__).parent.parent / "tools"
WORDS = {
    "train_tokenizer": "~/captions.txt --vocab-size 300 --kind bpe --out OUT",
    "make_shapes_vqa": "--train 1 --val 1 --test 1 --out OUT",
}
"""Right words for small inputs."""


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "disk"
    folder.mkdir()
    (folder / "captions.txt").write_text("a dark square\na red circle\n" * 20)
    monkeypatch.setenv("DISK", str(folder))
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.mark.parametrize("name", WORDS)
@pytest.mark.parametrize("out", ["$DISK/out", "${DISK}/out", "~/out"])
def test_places_are_those_of_a_shell(name: str, out: str, tmp_path: Path, disk: Path) -> None:
    assert load(name).main(WORDS[name].replace("OUT", out).split()) == 0
    assert any((disk / "out").iterdir())
    assert [path.name for path in tmp_path.iterdir()] == ["disk"]


@pytest.mark.parametrize("name", WORDS)
@pytest.mark.parametrize("out", ["$NOT_SET/out", "~nobody-here/out", ""])
def test_a_place_that_is_none_is_one_line(
    name: str, out: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [out if word == "OUT" else word for word in WORDS[name].split()]
    assert load(name).main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{name}: error: ") and "--out" in line
    assert [path.name for path in tmp_path.iterdir()] == ["disk"]


def test_the_scaling_page_is_what_its_program_writes(tmp_path: Path) -> None:
    page = (TOOLS.parent / "docs" / "scaling.md").read_text()
    out = tmp_path / "page.md"
    words = ["--models", "ViT-B-16", "--gpus", "1024", "--out", str(out)]
    assert load("write_scaling").main(words) == 0
    assert set(out.read_text().splitlines()) <= set(page.splitlines())
    assert load("write_scaling").main(["--out", "$NOT_SET/page.md"]) == 2


def test_the_readme_has_the_figures_of_the_results() -> None:
    """`python tools/write_results.py --out README.md` brings them there."""
    program, page = load("write_results"), (TOOLS.parent / "README.md").read_text()
    assert program.filled_in(page, program.RESULTS, named="README.md") == page


def test_a_figure_that_changes_changes_the_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that is gone, or there twice, is told; so is a page without a place for them."""
    program, results, page = load("write_results"), tmp_path / "results", tmp_path / "README.md"
    shutil.copytree(program.RESULTS, results)
    page.write_text(f"before\n{program.BEGIN}\nold\n{program.END}\nafter\n")
    words = ["--out", str(page), "--results", str(results)]
    memory = results / "loss_memory_cpu.md"
    kept = memory.read_text()
    memory.write_text(kept.replace("| 206 | 35.11 |", "| 199 | 35.11 |"))
    assert program.main(words) == 0
    written = page.read_text()
    assert "**199 MiB**" in written and "old" not in written
    assert written.startswith("before\n") and written.endswith("after\n")
    (row,) = [line for line in kept.splitlines() if "| 206 |" in line]
    for text, told in (
        (kept.replace(row, ""), 'has no cell "peak MiB" of the row "32,768 | mmtrain"'),
        (f"{kept}{row}\n", 'has 2 cells "peak MiB" of the row "32,768 | mmtrain"'),
    ):
        memory.write_text(text)
        assert program.main(words) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert told in line and str(memory) in line
    memory.unlink()
    assert program.main(words) == 2 and "cannot be read" in capsys.readouterr().err
    memory.write_text(kept)
    for text in ("nothing", program.BEGIN, f"{program.END}{program.BEGIN}", page.read_text() * 2):
        page.write_text(text)
        assert program.main(words) == 2 and page.read_text() == text
        (line,) = capsys.readouterr().err.splitlines()
        assert "once each" in line and str(page) in line
