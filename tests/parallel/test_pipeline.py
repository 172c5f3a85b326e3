"""How a model is cut into stages."""

from functools import partial
from typing import Any

import pytest
import torch

from mmtrain.models import Clip
from mmtrain.parallel import ParallelConfig
from mmtrain.parallel.pipeline import make_edges_dense
from mmtrain.parallel.slices import layer_range, slice_stage
from tests.parallel.tiny_clip import SOFTMAX, Trained, make_batch, modern_config, tiny_config
from tests.ranks import run_ranks


@pytest.mark.parametrize("num_layers", [1, 4, 7, 12, 24])
def test_layers_are_cut_evenly_and_completely(num_layers):
    for num_stages in range(1, num_layers + 1):
        ranges = [layer_range(num_layers, i, num_stages) for i in range(num_stages)]
        assert [layer for part in ranges for layer in part] == list(range(num_layers))
        sizes = [len(part) for part in ranges]
        assert min(sizes) >= 1
        assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("num_stages", [1, 2, 3, 4])
def test_stages_share_the_models_parameters_under_their_names(num_stages):
    model = Clip(tiny_config(4))
    whole = dict(model.stage().named_parameters())
    found: dict[str, torch.Tensor] = {}
    for index in range(num_stages):
        stage = dict(slice_stage(model.stage(), index, num_stages).named_parameters())
        assert not stage.keys() & found.keys()
        found |= stage
    assert found.keys() == whole.keys()
    assert all(found[name] is whole[name] for name in whole)
    # The model that was cut is still whole.
    assert dict(model.stage().named_parameters()).keys() == whole.keys()


def test_stages_one_after_another_are_the_model():
    model = Clip(modern_config(4)).init_weights(0).double()
    batch, x = make_batch(), None
    rows = {"tokens_BT": batch.tokens_BT, "length_B": batch.text_length_B}
    for index in range(4):
        stage = slice_stage(model.stage(), index, 4)
        x = stage(batch.images_BCHW, **rows) if x is None else stage(*x, **rows)
    assert torch.equal(x, model.stage()(batch.images_BCHW, **rows))


def test_what_a_stage_hands_on_is_contiguous():
    """A pooling's expanded gradient, and tokens that were cut or transposed, are made dense."""

    class Stage(torch.nn.Module):
        def forward(self, vision_x, text_x):
            return vision_x.transpose(1, 2), text_x[:, 1:]

    stage = Stage()
    make_edges_dense(stage)
    inputs = [torch.randn(2, 3, 4, requires_grad=True) for _ in range(2)]
    seen = []
    for x in inputs:
        x.register_hook(lambda gradient: seen.append(gradient.is_contiguous()))
    outputs = stage(*inputs)
    assert all(x.is_contiguous() for x in outputs)
    # A sum's gradient is one number, expanded.
    sum(x.sum() for x in outputs).backward()
    assert seen == [True, True]


def _count_forwards(rank: int) -> None:
    for schedule in ("1F1B", "ZBVZeroBubble"):
        parallel = ParallelConfig(pp=2, schedule=schedule)
        trained = Trained(tiny_config(4), SOFTMAX, parallel=parallel, num_microbatches=4)
        trained.train(num_steps=1)
        calls: list[Any] = []
        for stage in trained.stages:
            stage.register_forward_pre_hook(partial(_note, calls))
        trained.train(num_steps=2)
        steps, passes, microbatches = 2, 2, 4
        assert len(calls) == steps * passes * microbatches * len(trained.stages), schedule


def _note(calls: list[Any], module: torch.nn.Module, inputs: Any) -> None:
    calls.append(module)


def test_only_the_first_step_of_a_pipeline_tries_its_stages_out():
    run_ranks(_count_forwards, 2)
