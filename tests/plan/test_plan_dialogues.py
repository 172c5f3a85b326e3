"""mmtrain plan of dialogues: full rows, as a stage takes them."""

from functools import partial
from pathlib import Path

import pytest
import torch

from mmtrain.build.workload import read_workload
from mmtrain.cli import main
from mmtrain.nn.flops import FlopCount
from mmtrain.plan.cost import forward_flops
from mmtrain.plan.kept import stage_memory
from mmtrain.plan.layout import plan_layout
from mmtrain.plan.stages import attention_of, cut_stages, run_stages
from mmtrain.recipe import load_recipe

RECIPE = "configs/debug_dialogues.toml"


@pytest.mark.slow
def test_it_is_that_of_full_rows() -> None:
    """Of 96 tokens, 20 of them an image's of four tiles and a thumbnail; weights and tensors that
    are there take the bytes and the products that those do which are not."""
    workload = read_workload(load_recipe(Path(RECIPE), ["--vqa.dialogues.pack", "false"]))
    layout = plan_layout(workload, world_size=1).layout
    (planned,) = run_stages(workload, layout, rows=2)
    model = workload.build_model()
    (stage,) = cut_stages(model, layout)
    workload.prepare(model, [stage], layout)
    rows = workload.rows(2)
    rows["image_BT"][:, 1:21] = True
    rows["trained_BT"][:, 21:] = True
    x = torch.zeros(2 * 5, 3, 32, 32, dtype=torch.uint8)
    with attention_of(workload.train.device):
        run = partial(stage, x, **rows)
        memory, _ = stage_memory(run, weights=list(stage.parameters()), inputs=(x,))
        assert memory == planned.memory
    with attention_of("cuda"), FlopCount() as count, torch.no_grad():
        stage(x, **rows)
    assert forward_flops(workload, layout) == count.total / 2


@pytest.mark.parametrize(
    "words", [(), pytest.param(("--parallel.tp", "2"), marks=pytest.mark.slow)], ids=str
)
def test_it_is_printed(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", RECIPE, "--world-size", "4", *words]) == 0
    told = "dialogues of 96 tokens with one image of 5 pieces x 4 tokens, all else learnt"
    assert told in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--parallel.pp", "2"), "dialogues, whose rows have no shape of their own"),
        (("--vqa.dialogues.max_length", "5"), "no room beside the 4 tokens of an image"),
    ],
)
def test_what_cannot_be_planned_is_one_line(
    words: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", RECIPE, "--world-size", "4", "--train.microbatches", "4", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line
