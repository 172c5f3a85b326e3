"""Memory that tensors give back stays with a process that trains, unless its user says no."""

import ctypes
import types
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from mmtrain.cli import main
from mmtrain.nn import heap
from mmtrain.nn.heap import kept_memory

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in heap._SETTINGS:
        monkeypatch.delenv(name, raising=False)


class Library:
    """Notes what it is asked for."""

    most = 2**31 - 1

    def __init__(self, _: None) -> None:
        self.asked: list[tuple[int, ...]] = []
        found.append(self)

    def mallopt(self, option: int, value: int) -> int:
        self.asked.append((option, value))
        return int(option != -3 or value <= self.most)

    def malloc_trim(self, pad: int) -> int:
        self.asked.append((pad,))
        return 1


found: list[Library] = []


def test_freed_memory_stays_within_and_goes_back_afterwards(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ctypes.CDLL", Library)
    found.clear()
    with kept_memory(CPU) as kept:
        assert kept
        (library,) = found
        assert library.asked == [(-3, 2**31 - 1), (-1, 2**31 - 1)]  # malloc.h's numbers
        library.asked.clear()
    assert library.asked == [(-3, 32 << 20), (-1, 64 << 20), (0,)]


@pytest.mark.parametrize(("most", "told"), [(32 << 20, True), (1 << 20, False)])
def test_an_older_glibc_is_not_left_with_half(monkeypatch: pytest.MonkeyPatch, most, told):
    """It refuses thresholds over 32 MiB (malloc.c, do_set_mmap_threshold); the other one alone
    would stop this one where it is."""
    monkeypatch.setattr("ctypes.CDLL", Library)
    monkeypatch.setattr(Library, "most", most)
    found.clear()
    with kept_memory(CPU) as kept:
        assert kept is told
        asked = list(found[0].asked)
    assert asked[:2] == [(-3, 2**31 - 1), (-3, 32 << 20)]
    assert ((-1, 2**31 - 1) in asked) is told


def test_glibc_takes_both():
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt"):
        pytest.skip("the C library is not glibc")
    with kept_memory(CPU) as kept:
        assert kept
        assert library.mallopt(-3, 2**31 - 1) == library.mallopt(-1, 2**31 - 1) == 1


@pytest.mark.parametrize("name", heap._SETTINGS)
def test_what_the_user_has_set_stays(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(name, "131072")
    with kept_memory(CPU) as kept:
        assert not kept


def test_other_c_libraries_and_a_gpus_host_are_left_alone(monkeypatch: pytest.MonkeyPatch):
    with kept_memory(torch.device("cuda")) as kept:
        assert not kept
    monkeypatch.setattr("ctypes.CDLL", lambda _: types.SimpleNamespace())
    with kept_memory(CPU) as kept:
        assert not kept


def test_a_run_trains_within(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    entered = []

    @contextmanager
    def noted(device: torch.device):
        entered.append(device.type)
        yield True

    monkeypatch.setattr("mmtrain.run.kept_memory", noted)
    words = ["--run-dir", str(tmp_path / "run"), "--train.steps", "1"]
    assert main(["train", "configs/debug_clip.toml", *words]) == 0
    assert entered == ["cpu"]
