"""[[data.mixture]]: several sets by weight, each read in its own way, through the recipe."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from mmtrain.cli import main
from mmtrain.data.config import DataConfig
from mmtrain.data.image_text import ImageTextData
from mmtrain.data.images.transforms import PreprocessConfig
from mmtrain.data.members import UNIQUE
from mmtrain.data.mixture import MixtureSource, WeightChange
from mmtrain.errors import UsageError
from mmtrain.recipe import load_recipe
from tests.data.shard_files import TOKENIZER, pairs, write_set, write_shard
from tests.data.test_image_text import assert_equal

RECIPE = "configs/debug_mixture.toml"


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two sets: one all good, of 20; of the other's 15 one in three has no caption."""
    folder = tmp_path_factory.mktemp("sets")
    holes = [(f"hole{key}", files) for key, files in pairs(100, 15)]
    for number, (_, files) in enumerate(holes):
        if number % 3 == 0:
            del files["txt"]
    write_shard(folder / "holes.tar", holes)
    return {"good": write_set(folder / "good", (7, 8, 5)), "holes": str(folder / "holes.tar")}


def build(sets: dict[str, str], own: dict[str, Any], **options: Any) -> ImageTextData:
    """The two sets, half and half; `own` are settings of the second."""
    rank = {name: options.pop(name) for name in ("rank", "world_size") if name in options}
    mixture = (
        MixtureSource(name="good", train=sets["good"], weight=0.5),
        MixtureSource(name="holes", train=sets["holes"], weight=0.5, **own),
    )
    config = {"mixture": mixture, "mixture_end": "repeat"} | options
    return ImageTextData(
        DataConfig(**config),
        preprocess=PreprocessConfig(image_size=16),
        tokenizer=TOKENIZER,
        seed=5,
        batch_size=8,
        **rank,
    )


def test_places_of_captions_count_for_the_sources_that_have_them(sets):
    """Those of [data] are in any of its sources; a source's own are in it."""
    build(sets, {"captions": {"txt": 1.0}}, captions={"txt": 1.0, "names": 1.0})
    for own, shared, told in (
        ({}, {"txt": 1.0, "alt": 1.0}, r"^data\.captions = .* in alt"),
        ({"captions": {"txt": 1.0, "alt": 1.0}}, {"txt": 1.0}, r"^data\.mixture\[holes\]\.cap"),
    ):
        with pytest.raises(UsageError, match=told):
            build(sets, own, captions=shared)


def test_batches_are_the_same_for_any_workers_ranks_and_start(sets):
    expected = list(build(sets, {}).iterate(0, 9))
    assert sum(len(batch.bad) for batch in expected) > 3
    for ours, theirs in zip(build(sets, {}, workers=2).iterate(4, 9), expected[4:], strict=True):
        assert_equal(ours, theirs)
    parts = [build(sets, {}, rank=rank, world_size=4).batch(7) for rank in range(4)]
    assert torch.cat([part.images_BCHW for part in parts]).equal(expected[7].images_BCHW)
    assert sum((part.keys for part in parts), ()) == expected[7].keys


def test_a_bad_sample_is_replaced_by_one_of_its_source_and_named_with_it(sets):
    data = build(sets, {})
    for number in range(8):
        batch, rows = data.batch(number), data.plan.rows(number)
        assert [key.startswith("hole") for key in batch.keys] == rows.source_B.astype(bool).tolist()
        assert {bad.source for bad in batch.bad} <= {"holes"}
    assert sum(len(data.batch(number).bad) for number in range(8)) > 3


def test_each_source_is_read_by_its_own_settings_and_by_those_of_all(sets):
    """Captions and labels of the second are in other places; a source may have no labels."""
    data = build(sets, {"captions": {"names": 1.0}, "label_key": ""}, label_key="concept")
    data.keeps_texts = True
    for number in range(4):
        batch = data.batch(number)
        for key, text, label in zip(batch.keys, batch.texts, batch.label_B.tolist(), strict=True):
            is_hole, number = key.startswith("hole"), int(key[-5:])
            assert text in ({f"n{number}", f"m{number}"} if is_hole else {f"picture {number}"})
            assert (label == UNIQUE) == is_hole


def test_the_fingerprint_covers_sources_names_and_order(sets):
    two = build(sets, {}).fingerprint
    assert build(sets, {"captions": {"names": 1.0}}).fingerprint == two
    one, other = MixtureSource(name="good", train=sets["good"], weight=0.5), "synthetic:15"
    for mixture in (
        (one, MixtureSource(name="other", train=sets["holes"], weight=0.5)),
        (one, MixtureSource(name="holes", train=other, weight=0.5)),
        (MixtureSource(name="holes", train=sets["holes"], weight=0.5), one),
    ):
        assert build(sets, {}, mixture=mixture).fingerprint != two


def test_a_fault_of_a_source_is_named_with_it(sets):
    for own, told in (
        (
            {"label_key": "nothing"},
            r"data.mixture\[holes\].label_key = nothing: none of 15 samples",
        ),
        ({"train": "nowhere.tar"}, r"data.mixture\[holes\].train = nowhere.tar"),
    ):
        with pytest.raises(UsageError, match=told):
            build({**sets, "holes": own.pop("train", sets["holes"])}, own)


SOURCE = {"name": "a", "train": "a.tar", "weight": 1.0}
REFUSED = [
    ({"mixture": (SOURCE,), "train": "b.tar"}, "train and mixture are both there"),
    ({}, "train is missing"),
    ({"train": "b.tar", "mixture_end": "repeat"}, 'mixture_end = "repeat" has no effect without'),
    ({"train": "b.tar", "mixture_batches": "single"}, "mixture_batches = .* has no effect without"),
    ({"mixture": (SOURCE, SOURCE)}, 'mixture has the name "a" twice'),
    (
        {"mixture": (SOURCE | {"max_epochs": 2},), "mixture_end": "repeat"},
        "mixture.max_epochs = 2 of a contradicts",
    ),
    ({"mixture": (SOURCE,), "mixture_end": "circle"}, "mixture_end = 'circle' is unknown"),
    (
        {"mixture": (SOURCE | {"weight_changes": (WeightChange(from_step=5, weight=0),)},)},
        "no source with a weight above 0 from step 5 on",
    ),
]


@pytest.mark.parametrize(("fields", "told"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_contradicts_itself_is_refused(fields, told):
    made = tuple(MixtureSource(**one) for one in fields.get("mixture", ()))
    with pytest.raises(ValueError, match=told):
        DataConfig(**fields | ({"mixture": made} if made else {}))


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"weight": 0.0}, "weight = 0 must be above 0, or a change"),
        ({"weight": -1.0}, "weight = -1 must be 0 or above"),
        ({"name": "a b"}, 'name = "a b" must be of letters'),
        ({"name": ""}, "must be of letters"),
        ({"max_epochs": 0}, "max_epochs = 0 must be at least 1"),
        ({"captions": {}}, "names no place"),
        ({"captions": {"txt": 0.0}}, "captions.txt = 0.0 must be above 0"),
    ],
    ids=str,
)
def test_a_source_that_cannot_be_is_refused(fields, told):
    with pytest.raises(ValueError, match=told):
        MixtureSource(**SOURCE | fields)
    with pytest.raises(ValueError, match="must rise"):
        steps = [WeightChange(from_step=step, weight=1) for step in (7, 7)]
        MixtureSource(**SOURCE, weight_changes=tuple(steps))
    with pytest.raises(ValueError, match="from_step = 0 must be at least 1"):
        WeightChange(from_step=0, weight=1)


def test_a_recipe_with_a_mixture_trains_and_counts_by_source(tmp_path: Path, capsys) -> None:
    run = tmp_path / "run"
    words = ["--train.steps", "4", "--train.checkpoint_every", "2"]
    assert main(["train", RECIPE, "--run-dir", str(run), *words]) == 0
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        counts = row["source_samples"]
        assert sum(counts.values()) == row["samples_seen"] == 16 * row["step"]
        assert abs(counts["drawings"] - 0.7 * row["samples_seen"]) < 2
        assert row["source_epochs"]["drawings"] == counts["drawings"] / 64
    sources = {"drawings": {"num_samples": 64}, "made_up": {"num_samples": 1000}}
    assert json.loads((run / "run.json").read_text())["data"]["sources"] == sources
    assert "mixing drawings (64 samples), made_up (1,000 samples)\n" in capsys.readouterr().err
    page = (run / "report.html").read_text()
    assert "Epochs of each source" in page and f"drawings {counts['drawings'] / 64:.3g}" in page
    assert load_recipe(run / "recipe.toml").data.mixture == load_recipe(Path(RECIPE)).data.mixture
    assert main(["summary", RECIPE]) == 0
    assert main(["train", RECIPE, "--run-dir", str(tmp_path / "two"), *words,
                 "--data.mixture_end", "stop"]) == 0  # fmt: skip
    assert main(["train", RECIPE, "--run-dir", str(tmp_path / "three"),
                 "--data.mixture_end", "stop"]) == 2  # fmt: skip
    line = capsys.readouterr().err.splitlines()[-1]
    assert "train.steps = 20 is beyond the end of data.mixture at step 5" in line, line
    assert "drawings (64 samples) has done its 1 epoch" in line


def test_questions_have_no_mixture(tmp_path: Path, capsys) -> None:
    text = Path("configs/vqa_shapes.toml").read_text()
    mixture = 'mixture = [{ name = "a", train = "a.tar", weight = 1 }]'
    text = re.sub(r"(?m)^train = .*$", mixture, text, count=1)
    (tmp_path / "recipe.toml").write_text(text)
    assert main(["train", str(tmp_path / "recipe.toml")]) == 2
    assert "questions are of one set of images; name that in data.train" in capsys.readouterr().err


@pytest.mark.parametrize("count", [(1 << 36) + 1, 1 << 63])
def test_counts_that_overflow_are_refused(count):
    with pytest.raises(ValueError, match=rf"from_step = {count} must be at most 68719476736"):
        WeightChange(from_step=count, weight=0.5)
    with pytest.raises(ValueError, match=rf"max_epochs = {count} must be at most 68719476736"):
        MixtureSource(name="a", train="x.tar", weight=1.0, max_epochs=count)
