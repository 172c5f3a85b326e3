"""tools/chaos.py: every fault in small counts; the full ones are run by hand."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = ("flips", "cuts", "disk", "pickle")
JOBS = ("saves", "jobs", "sigterms", "ranks")


def chaos(out: Path, rows: tuple[str, ...], scale: float) -> list[str]:
    """Run some rows -> the lines of the table."""
    words = ["--rows", *rows, "--scale", str(scale), "--out", str(out)]
    done = subprocess.run(
        [sys.executable, "tools/chaos.py", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return out.read_text().partition("|---|---|---|---|---|\n")[2].splitlines()


def test_files(tmp_path: Path) -> None:
    """Damage, a full disk, a forgery; a second run adds nothing to the file."""
    out = tmp_path / "chaos.md"
    rows = chaos(out, FILES, 0.2)
    assert len(rows) == len(FILES) and not [row for row in rows if "FAILED" in row]
    assert chaos(out, FILES, 0.2) == rows


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_jobs(tmp_path: Path) -> None:
    """Kills and signals, one of each, 10 of savers."""
    rows = chaos(tmp_path / "chaos.md", JOBS, 0.05)
    assert len(rows) == len(JOBS) and not [row for row in rows if "FAILED" in row]
