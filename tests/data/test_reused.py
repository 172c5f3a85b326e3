"""Memory that is lent again: never while somebody has it."""

import gc
import pickle

import torch

from mmtrain.data.reused import ReusedMemory
from tests.data.shard_files import build_data, write_set


def test_what_is_let_go_is_lent_again():
    memory = ReusedMemory()
    first = memory.empty(4, 5)
    assert first.shape == (4, 5) and first.dtype == torch.uint8
    place = first.data_ptr()
    del first
    assert memory.empty(20).data_ptr() == place  # of equal bytes
    assert memory.empty(4, 5).data_ptr() == place
    assert memory.empty(2).numel() == 2


def test_what_somebody_has_is_his_own():
    """Also by a view of a view, as an array, or where the memory itself is gone."""
    memory = ReusedMemory()
    kept = [
        memory.empty(8, 8)[3:].permute(1, 0)[2:5],
        memory.empty(8, 8).numpy()[1],
        memory.empty(8, 8).view(-1).detach(),
    ]
    for number, each in enumerate(kept):
        each[...] = number + 1
    for _ in range(5):
        memory.empty(8, 8).zero_()
        gc.collect()
    assert [int(each.min()) for each in kept] == [1, 2, 3]
    del memory
    gc.collect()
    assert [int(each.max()) for each in kept] == [1, 2, 3]


def test_little_waits_to_be_lent():
    memory = ReusedMemory()
    for size in (10, 20, 30, 40):
        tensors = [memory.empty(size) for _ in range(5)]
        del tensors
    assert len(memory._free) == 2
    copied = pickle.loads(pickle.dumps(memory))
    assert not copied._free


def test_batches_that_are_kept_stay_as_they_were(tmp_path):
    """And those that are not have nothing of the ones before, padding rows neither."""
    write_set(tmp_path / "set", (5, 6, 2))
    options = {"batch_size": 4, "last": "mask"}
    alone = [
        build_data(str(tmp_path / "set"), **options).batch(number).images_BCHW.clone()
        for number in range(8)
    ]
    data = build_data(str(tmp_path / "set"), **options)
    kept = [batch.images_BCHW for batch in data.iterate(0, 8)]
    gone = [batch.images_BCHW.clone() for batch in data.iterate(0, 8)]
    for number in range(8):
        assert torch.equal(kept[number], alone[number])
        assert torch.equal(gone[number], alone[number])
    assert any(not batch[-1].any() for batch in alone)
