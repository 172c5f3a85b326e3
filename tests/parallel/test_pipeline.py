"""How stages hand on what they made, and how often a schedule runs them."""

from functools import partial
from typing import Any

import pytest
import torch

from mmtrain.parallel.mesh import ParallelConfig
from mmtrain.parallel.pipeline import make_edges_dense
from tests.parallel.tiny_clip import SOFTMAX, Trained, tiny_config
from tests.ranks import run_ranks


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


@pytest.mark.slow
def test_only_the_first_step_of_a_pipeline_tries_its_stages_out():
    run_ranks(_count_forwards, 2)
