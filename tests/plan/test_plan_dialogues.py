"""mmtrain plan of dialogues: full rows, as a stage takes them."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image

from mmtrain.build.data import open_data, read_recipe
from mmtrain.build.workload import read_workload
from mmtrain.cli import main
from mmtrain.nn.flops import FlopCount
from mmtrain.plan.cost import row_work
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
    plan = plan_layout(workload, world_size=1)
    layout = plan.layout
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
    assert row_work(workload, plan).forward == count.total / 2


@pytest.mark.parametrize(
    "words", [(), pytest.param(("--parallel.tp", "2"), marks=pytest.mark.slow)], ids=str
)
def test_it_is_printed(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", RECIPE, "--world-size", "4", *words]) == 0
    told = "dialogues of 96 tokens with one image of 5 pieces x 4 tokens, --images for more, all"
    assert told in capsys.readouterr().out


@pytest.mark.slow
def test_several_images_are_those_of_a_batch(tmp_path: Path) -> None:
    """Pieces, tokens and products of a batch whose dialogues have two images each, and as many
    tokens as there may be: all but what is learnt, which the plan takes all words to be."""
    Image.new("RGB", (64, 64), "red").save(tmp_path / "a.png")
    said = [{"from": "human", "value": "<image> <image> which?"}, {"from": "gpt", "value": "red"}]
    row = json.dumps({"conversations": said, "images": ["a.png", "a.png"]})
    (tmp_path / "talk.jsonl").write_text(f"{row}\n" * 4)
    changes = ["--vqa.dialogues.pack", "false", "--train.batch_size", "2"]
    changes += ["--train.microbatches", "1", "--data.train", str(tmp_path / "talk.jsonl")]
    recipe = read_recipe(Path(RECIPE), changes)
    batch = open_data(recipe).batch(0)
    length = int(batch.length_B[0])
    assert batch.length_B.tolist() == [length] * 2
    changes += ["--vqa.dialogues.max_length", str(length)]
    one = read_workload(load_recipe(Path(RECIPE), changes))
    workload = one.with_images(2)
    assert "with 2 images of 10 pieces x 4 tokens, all else learnt" in workload.row_told
    rows = workload.rows(2)
    pieces = workload.images_per_row
    assert batch.num_pieces == tuple(rows["place_N2"].counts) == (pieces, pieces) == (10, 10)
    assert batch.image_BT.sum(1).tolist() == [4 * pieces] * 2
    assert rows["host_trained"].length_B.tolist() == [length - 1 - 4 * pieces] * 2
    plan = plan_layout(workload, world_size=1)
    layout = plan.layout
    model = workload.build_model()
    stage = model.stage()
    workload.prepare(model, [stage], layout)
    rows |= {"tokens_BT": batch.tokens_BT, "image_BT": batch.image_BT}
    rows["trained_BT"] = ~batch.image_BT
    rows["trained_BT"][:, 0] = False  # nothing comes before the first
    with attention_of("cuda"), FlopCount() as count, torch.no_grad():
        stage(batch.images_BCHW, **rows)
    assert row_work(workload, plan).forward == count.total / 2 > row_work(one, plan).forward


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--parallel.pp", "2"), "dialogues, whose rows have no shape of their own"),
        (("--vqa.dialogues.max_length", "5"), "no room beside the 4 tokens of an image"),
        (
            ("--images", "24"),
            "no room beside the 4 tokens of each of 24 images",
        ),
    ],
)
def test_what_cannot_be_planned_is_one_line(
    words: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", RECIPE, "--world-size", "4", "--train.microbatches", "4", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line


def test_images_are_of_dialogues(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "configs/debug_clip.toml", "--world-size", "2", "--images", "2"]
    assert main(words) == 2
    assert "--images 2 is of dialogues" in capsys.readouterr().err
