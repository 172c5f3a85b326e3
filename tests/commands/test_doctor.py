"""What `mmtrain doctor` says of this machine is so, and what it has to mend is told."""

import importlib.metadata
import shutil
import tomllib
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from mmtrain.cli import main
from mmtrain.commands import doctor, extras
from mmtrain.commands.extras import EXTRAS, installed_extras

ROOT = Path(__file__).parents[2]
Usage = namedtuple("Usage", "total used free")


def said(capsys: pytest.CaptureFixture[str], folder: Path) -> str:
    assert main(["doctor", "--dir", str(folder)]) == 0
    return capsys.readouterr().out


def test_facts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Versions, memory and the disk that was asked about; nothing is left on it."""
    told = said(capsys, tmp_path)
    assert f"torch {torch.__version__}" in told and "GiB for this process" in told
    assert str(tmp_path) in told and " MB/s (64 MiB)" in told
    assert not any(tmp_path.iterdir())
    assert all(f"{name} " in told for name in EXTRAS if name in _known())
    assert max(map(len, told.splitlines())) < 200


def _known() -> set[str]:
    return {extra.name for extra in installed_extras()}


def test_every_extra_of_the_project_says_what_it_is_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert EXTRAS.keys() == project["optional-dependencies"].keys() - {"dev"}


@pytest.mark.parametrize(
    ("here", "missing"),
    [
        ({"one": "2.10.0", "two": "3.1+cu130"}, ()),
        ({"one": "2.9", "two": "3.1"}, ("one 2.9 (needs 2.10)",)),
        ({"two": "3.0.9rc1"}, ("one", "two 3.0.9rc1 (needs 3.1)")),
    ],
)
def test_a_package_that_is_missing_or_too_old(
    here: dict[str, str], missing: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(name: str) -> str:
        if name not in here:
            raise importlib.metadata.PackageNotFoundError(name)
        return here[name]

    needs = ["one>=2.10; extra == 'graph'", "two[x]>=3.1 ; extra == 'graph'", "three>=1"]
    monkeypatch.setattr(extras.importlib.metadata, "requires", lambda _: needs)
    monkeypatch.setattr(extras.importlib.metadata, "version", version)
    (extra,) = installed_extras()
    assert (extra.name, extra.missing) == ("graph", missing)


def test_what_is_wrong_is_told_with_its_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container's small shared memory, few open files, no compiler."""
    usage = shutil.disk_usage

    def small(path: object) -> object:
        return Usage(64 << 20, 0, 64 << 20) if path == "/dev/shm" else usage(path)

    monkeypatch.setattr(doctor.shutil, "disk_usage", small)
    monkeypatch.setattr(doctor.shutil, "which", lambda _: None)
    monkeypatch.setattr(doctor.resource, "getrlimit", lambda _: (256, 1 << 20))
    told = said(capsys, tmp_path)
    for remedy in ("--shm-size", "ulimit -n 1048576", "needs a C++ compiler"):
        assert remedy in told.split("\n\n")[1]
    assert "nothing to mend" not in told


def test_a_full_disk_is_not_tried(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: Usage(1 << 40, 0, 1 << 20))
    assert "too little to try its speed" in said(capsys, tmp_path)


def test_no_folder_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--dir", str(tmp_path / "none")]) == 2
    assert "is no folder; name one" in capsys.readouterr().err
