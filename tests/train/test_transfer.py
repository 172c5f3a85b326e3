"""Batches go to a GPU on a stream of their own, in an order that loses nothing; no GPU needed."""

from contextlib import contextmanager
from types import SimpleNamespace
from unittest import mock

import pytest
import torch

from mmtrain.train import transfer
from mmtrain.train.transfer import Transfer
from tests.parallel.tiny_clip import make_batch


def test_a_processor_needs_no_stream() -> None:
    batch = make_batch()
    moved = Transfer(torch.device("cpu"))(batch)
    assert torch.equal(moved.images_BCHW, batch.images_BCHW)
    assert moved.host_length is batch.text_length_B


def test_order_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copied within the side stream and without blocking; then the computing stream waits for it;
    then every tensor of the device is held until that stream is done with it."""
    said: list[str] = []
    side = SimpleNamespace(name="side")
    computing = SimpleNamespace(wait_stream=lambda other: said.append(f"wait for {other.name}"))

    @contextmanager
    def within(stream: SimpleNamespace):
        said.append(f"enter {stream.name}")
        yield
        said.append("leave")

    class OnDevice(torch.Tensor):
        device = torch.device("cuda")  # pyright: ignore[reportAssignmentType]

        def record_stream(self, stream: object) -> None:
            assert stream is computing
            said.append("held")

    def copied(self: torch.Tensor, device: torch.device, *, non_blocking: bool) -> torch.Tensor:
        assert device.type == "cuda" and non_blocking
        said.append("copy")
        return self.as_subclass(OnDevice)

    batch = make_batch()
    monkeypatch.setattr(torch.Tensor, "to", copied)
    cuda = SimpleNamespace(
        Stream=lambda device: side, stream=within, current_stream=lambda device: computing
    )
    with mock.patch.object(transfer.torch, "cuda", cuda):
        moved = Transfer(torch.device("cuda"))(batch)
    num = said.count("copy")
    assert num == 6 and moved.host_length is batch.text_length_B
    assert said == ["enter side", *["copy"] * num, "leave", "wait for side", *["held"] * num]
