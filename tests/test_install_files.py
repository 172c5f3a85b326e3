"""What stands beside the code for those who install it: page, Dockerfile and wheel agree."""

import re
import tomllib
from pathlib import Path
from typing import Any

import mmtrain
from tools.check_install import Environment, all_pythons, make, try_wheel

ROOT = Path(__file__).parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
PAGE = (ROOT / "docs/install.md").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_the_container_is_installed_as_the_page_says() -> None:
    lines = re.findall(r"pip install torch(?: --index-url \S+(?=;))?", DOCKERFILE)
    light, plain = lines
    assert f"\n{light}\n" in PAGE and plain == "pip install torch"
    for option in re.findall(r"--build-arg (\w+)=", PAGE):
        assert f"ARG {option}=" in DOCKERFILE


def test_what_builds_the_wheel_is_in_the_container() -> None:
    """What pyproject.toml names, and nothing that .dockerignore holds back."""
    copied = set(re.findall(r"^COPY (.+) \S+$", DOCKERFILE, re.MULTILINE))
    names = {name for line in copied for name in line.split()}
    project = PROJECT["project"]
    needed = {project["readme"], "pyproject.toml", *project["license-files"]}
    needed |= set(PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["only-include"])
    assert all((ROOT / name).exists() for name in names)
    assert {name.split("/")[0] for name in needed} == names
    let_in = (ROOT / ".dockerignore").read_text().splitlines()
    assert all(f"!{name}" in let_in for name in names)


def test_a_wheel_that_cannot_be_installed_is_a_failure(tmp_path: Path, capsys: Any) -> None:
    """And no combination that is passed over, as one without a Python or a torch is."""
    assert make(tmp_path, python="python2.6", torch="newest", index=None) == (
        "there is no python2.6 here"
    )
    here = Environment(tmp_path)
    here.bin.mkdir(parents=True)
    (here.bin / "python").write_text("#!/bin/sh\necho conflict >&2\nexit 1\n")
    (here.bin / "python").chmod(0o755)
    assert not try_wheel(here, tmp_path / "mmtrain.whl", demo=None)
    told = capsys.readouterr().out
    assert told.startswith("  FAIL  python -m pip install") and "conflict" in told


def test_every_python_that_runs_is_found(tmp_path: Path, monkeypatch: Any) -> None:
    """A shim of pyenv's that runs nothing is passed over for the version itself."""
    for path, status in (
        ("shims/python3.12", 127),
        ("pyenv/versions/3.12.1/bin/python3.12", 0),
        ("usr/python3.11", 0),
    ):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_text(f"#!/bin/sh\nexit {status}\n")
        (tmp_path / path).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/shims:{tmp_path}/usr")
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))
    monkeypatch.setenv("UV_PYTHON_INSTALL_DIR", str(tmp_path / "none"))
    assert all_pythons() == [
        f"{tmp_path}/usr/python3.11",
        f"{tmp_path}/pyenv/versions/3.12.1/bin/python3.12",
        *("python3.13", "python3.14"),
    ]


def test_extras_and_versions_are_those_of_the_project() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    (asked,) = re.findall(r"ARG EXTRAS=(\S+)", DOCKERFILE)
    for group in (asked, *re.findall(r"'\.\[(.+?)\]'", PAGE)):
        assert set(group.split(",")) <= set(extras), group
    cited = (ROOT / "CITATION.cff").read_text()
    assert f"version: {mmtrain.__version__}\n" in cited
    assert f"## {mmtrain.__version__}" in (ROOT / "CHANGELOG.md").read_text()
