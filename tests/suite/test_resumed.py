"""A suite that is killed, and one over ranks: the table of one that ran through, to the byte."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mmtrain.cli import main
from tests.suite.folders import suite_words, table_files, write_everything, write_wds

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As the processes have that are started here: more may sum a product in another order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def started(words: list[str], *launcher: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", *launcher, "mmtrain", *words],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def cells(out: Path) -> dict[Path, int]:
    """What is done, and when it was."""
    return {path: path.stat().st_mtime_ns for path in out.glob("cells/*/*.json")}


def killed(words: list[str], out: Path, *, at: int) -> None:
    """Run it until so many cells are there, and kill it without a word."""
    process = started(words)
    while len(cells(out)) < at and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def test_killed_twice_it_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Five folders, three models. What was done stays as it was written."""
    write_everything(tmp_path, count=20)
    more = ""
    for number in (3, 4):
        write_wds(tmp_path / f"data/wds_{number}", seed=number, count=20)
        more += f'\n[[zero_shot]]\nname = "more{number}"\ndata = "wds_{number}"\n'
    suite = tmp_path / "suite.toml"
    suite.write_text(suite.read_text() + more)
    assert main(suite_words(tmp_path, out="through")) == 0
    out, words = tmp_path / "out", suite_words(tmp_path)
    before: dict[Path, int] = {}
    for at in (4, 11):
        killed(words, out, at=at)
        now = cells(out)
        assert at <= len(now) < 21 and before.items() <= now.items()
        before = now
    capsys.readouterr()
    assert main(words) == 0
    told = capsys.readouterr().out
    assert told.count("(done before)") == len(before) and before.items() <= cells(out).items()
    assert table_files(out) == table_files(tmp_path / "through")


def test_ranks_make_the_same_table(tmp_path: Path) -> None:
    """And take what one process had done already."""
    write_everything(tmp_path, num_models=2, count=70)
    assert main(suite_words(tmp_path, models="ab", out="alone")) == 0
    assert main(suite_words(tmp_path, models="b", out="ranks")) == 0
    words = suite_words(tmp_path, models="ab", out="ranks")
    launcher = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m")
    process = started(words, *launcher)
    told, _ = process.communicate(timeout=280)
    assert process.returncode == 0, told
    assert told.count("wrote ") == 1 and told.count("(done before)") == 5
    assert table_files(tmp_path / "ranks") == table_files(tmp_path / "alone")
