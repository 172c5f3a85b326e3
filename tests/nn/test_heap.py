"""Memory that tensors give back stays with the process, unless its user has said otherwise."""

import resource
import types
from collections.abc import Iterator

import pytest
import torch

from mmtrain.nn import heap
from mmtrain.nn.products import fast_products


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in heap._SETTINGS:
        monkeypatch.delenv(name, raising=False)
    heap.keep_freed_memory.cache_clear()
    yield
    heap.keep_freed_memory.cache_clear()


def faults_of_work() -> int:
    """Page faults of four tensors of 16 MiB, made and given back ten times."""
    for repeat in range(11):
        if repeat == 1:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        tensors = [torch.ones(1 << 22) for _ in range(4)]
        del tensors
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def test_work_on_a_cpu_keeps_its_memory():
    with fast_products(torch.device("cpu")):
        pass
    if not heap.keep_freed_memory():
        pytest.skip("the C library is not glibc")
    # 16,384 pages each time that they are returned.
    assert faults_of_work() < 16_384


@pytest.mark.parametrize("name", heap._SETTINGS)
def test_what_the_user_has_set_stays(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(name, "131072")
    assert not heap.keep_freed_memory()


def test_other_c_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ctypes.CDLL", lambda _: types.SimpleNamespace())
    assert not heap.keep_freed_memory()


def test_a_gpus_host_returns_what_it_frees(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mmtrain.nn.products.keep_freed_memory", lambda: pytest.fail("a CPU's"))
    with fast_products(torch.device("cuda")):
        pass
