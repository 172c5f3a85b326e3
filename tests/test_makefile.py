"""Make sets up .venv when it must and only then; pip and Python are played by scripts."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# A Python that makes an environment of scripts that note what they are asked to do.
PYTHON = """\
#!/bin/sh
if [ "$1" = -c ]; then exit {too_old}; fi
if [ "$1" = --version ]; then echo Python 3.9.1; exit; fi
mkdir -p "$3/bin"
for name in python pip mmtrain ruff lint-imports basedpyright; do
    printf '#!/bin/sh\\necho %s "$@" >>{log}\\n' $name >"$3/bin/$name"
    chmod +x "$3/bin/$name"
done
echo venv >>{log}
"""


class House:
    """A checkout with nothing but what make reads."""

    def __init__(self, folder: Path, *, too_old: bool = False):
        self.folder, self.log, self.python = folder, folder / "log", folder / "fake-python"
        for name in ("Makefile", "pyproject.toml", "constraints.txt"):
            shutil.copy(ROOT / name, folder / name)
        self.python.write_text(PYTHON.format(log=self.log, too_old=int(too_old)))
        self.python.chmod(0o755)

    def make(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run make without the settings of a make around it, which hands them down."""
        env = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        return subprocess.run(
            ["make", f"PYTHON={self.python}", *words],
            cwd=self.folder,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    def did(self, *words: str) -> list[str]:
        """What a successful make asked for, in order; pip's part as `install EXTRA`."""
        self.log.unlink(missing_ok=True)
        done = self.make(*words)
        assert done.returncode == 0, done.stderr
        lines = self.log.read_text().splitlines()
        return [f"install {line.split()[-1]}" if "pip install" in line else line for line in lines]


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def test_the_environment_is_set_up_once(house: House):
    assert house.did("demo") == ["venv", "install .[demo]", "mmtrain demo"]
    assert house.did("demo") == ["mmtrain demo"]
    # Developers need more; the demo then needs nothing again.
    first, *rest = house.did("test")
    assert first == "install .[dev]" and len(rest) == 1 and "pytest" in rest[0]
    assert len(house.did("test")) == 1
    assert house.did("demo") == ["mmtrain demo"]


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_it_is_set_up_again_when_its_contents_change(house: House, name: str):
    house.did("test")
    later = (house.folder / ".venv" / "dev.stamp").stat().st_mtime + 5
    os.utime(house.folder / name, (later, later))
    assert house.did("lint")[0] == "install .[dev]"


def test_an_install_that_failed_is_tried_again(house: House):
    house.did("demo")
    python = house.folder / ".venv" / "bin" / "python"
    working = python.read_text()
    python.write_text("#!/bin/sh\nexit 1\n")
    (house.folder / ".venv" / "core.stamp").unlink()
    assert house.make("demo").returncode != 0
    python.write_text(working)
    assert house.did("demo") == ["install .[demo]", "mmtrain demo"]


def test_another_torch_has_an_environment_of_its_own(house: House):
    house.did("test")
    assert house.did("test", "TORCH=2.11.0")[:2] == ["venv", "install .[dev]"]
    tested = (house.folder / "constraints.txt").read_text().splitlines()
    other = (house.folder / ".venv-torch-2.11.0" / "constraints.txt").read_text().splitlines()
    assert [line for line in other if line not in tested] == ["torch===2.11.0"]
    # What is tied to the torch is left to pip.
    gone = {line.partition("=")[0] for line in tested if line not in other}
    assert gone == {"torch", "torchvision", "torchao", "setuptools"}
    assert len(house.did("test")) == len(house.did("test", "TORCH=2.11.0")) == 1


def test_no_tier_runs_what_another_runs(house: House):
    tiers = {
        tier: house.did(tier)[-1].partition(" -m pytest ")[2] for tier in ("test", "test-full")
    }
    assert tiers["test"].endswith("-m not slow and not gpu")
    assert tiers["test-full"].endswith("-m slow and not gpu")
    assert house.did("test-gpu")[-1].endswith("-m gpu")


def test_a_tier_that_fails_fails_make(house: House):
    house.did("test")
    # 5 is what pytest says when it found no test.
    (house.folder / ".venv" / "bin" / "python").write_text("#!/bin/sh\nexit 5\n")
    for target in ("test", "test-full", "test-gpu"):
        assert house.make(target).returncode != 0


def test_an_old_python_is_named(tmp_path: Path):
    house = House(tmp_path, too_old=True)
    done = house.make("demo")
    assert done.returncode != 0
    assert "mmtrain needs Python >= 3.11" in done.stderr and "Python 3.9.1" in done.stderr
    assert "PYTHON=" in done.stderr and not (tmp_path / ".venv").exists()


def test_the_gate_runs_lint_both_tiers_and_the_docs():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    text = script.read_text()
    assert "set -euo pipefail" in text
    ran = [line for line in text.splitlines() if line.startswith("make ")]
    assert ran == ["make lint", "make test", "make docs", "make test-full"]
