"""A setting that cannot matter is refused, or told where it is left over honestly."""

from dataclasses import replace
from pathlib import Path

import pytest

from mmtrain.build.idle import idle_notes, refuse_idle
from mmtrain.build.run import build_run
from mmtrain.cli import main
from mmtrain.errors import UsageError
from mmtrain.eval.evaluators.retrieval import RetrievalConfig
from mmtrain.parallel.mesh import build_layout, pick_device
from mmtrain.recipe import load_recipe
from tests.tasks.test_vqa_run import write_recipe

RECIPE = "configs/debug_clip.toml"
MATTERS = (
    *("checkpoint_every", "hang_minutes", "straggler_factor", "straggler_every"),
    "reshard_after_forward",
)
"""Settings that are idle in one process or a short run alone."""
WRITES = ("--vqa.classify", "none", "--vqa.front_door", "none", "--vqa.min_count", "9")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--loss.positives", "attract"), "without data.label_key"),
        (("--loss.positives", "ignore"), "without data.label_key"),
        (
            ("--train.batch_size", "1", "--train.microbatches", "1"),
            'loss.kind = "clip" has no effect with train.batch_size = 1: ',
        ),
        (
            ("--train.phase", "[{ steps = 1 }, { steps = 1, batch_size = 1, microbatches = 1 }]"),
            'loss.kind = "clip" has no effect with train.phase[1]: batch_size = 1: ',
        ),
        (("--lock.vision", "4"), "lock.vision = 4 has no effect on 2 blocks"),
        (("--lock.text", "99"), "use at most 3"),
        (("--lock.text", "-1"), "lock.text = -1 must be at least 0"),
        (
            ("--train.on_bad_steps", "roll_back", "--train.checkpoint_every", "none"),
            "without checkpoints to roll back to",
        ),
        (("--model.vision.rope_theta", "50"), 'with positions = "learned"'),
        (("--model.text.rope_theta", "50"), "model.text.rope_theta = 50.0 has no effect"),
        (("--model.text.transformer.norm_fraction", "0.5"), 'with norm = "layer"'),
        (
            (
                *("--model.vision.class_token", "false", "--model.vision.pool", "mean"),
                *("--model.vision.prefix_positions", "all"),
            ),
            'model.vision.prefix_positions = "all" has no effect without a token before',
        ),
        *(
            (
                ("--model.vision.positions", kind, "--model.vision.prefix_positions", prefix),
                f'model.vision.prefix_positions = "{prefix}" has no effect with positions = ',
            )
            for kind, prefix in (("rope_2d", "all"), ("none", "none"), ("sinusoidal", "all"))
        ),
    ],
)
def test_refused(
    words: tuple[str, ...], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", RECIPE, "--run-dir", str(tmp_path / "run"), *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line and not (tmp_path / "run/metrics.jsonl").exists()


def test_groups_of_texts_are_refused_beside_questions() -> None:
    """Their encoder pads questions as they come; the setting was once ignored."""
    recipe = load_recipe(Path(RECIPE).with_name("vqa_shapes.toml"), ["--train.text_groups", "2"])
    with pytest.raises(UsageError, match=r"train.text_groups = 2 has no effect beside \[vqa\]"):
        refuse_idle(recipe)


@pytest.mark.parametrize(
    "words",
    [
        ("--loss.positives", "attract", "--data.label_key", "concept"),
        ("--loss.kind", "siglip", "--train.batch_size", "1", "--train.microbatches", "1"),
        ("--lock.vision", "3", "--lock.text", "0"),
        ("--train.on_bad_steps", "roll_back"),
        ("--model.vision.positions", "rope_2d", "--model.vision.rope_theta", "50"),
        (
            *("--model.text.transformer.norm", "partial_rms"),
            *("--model.text.transformer.norm_fraction", "0.5"),
        ),
    ],
)
def test_not_refused(words: tuple[str, ...]) -> None:
    refuse_idle(load_recipe(Path(RECIPE), list(words)))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--optim.warmup_steps", "21"), "optim.warmup_steps = 21 is longer than the run's 20"),
        (("--eval.every", "5"), "eval.every = 5 has no effect: the recipe names no evaluation"),
        (("--data.prefetch", "7"), "data.prefetch = 7 has no effect without data.workers"),
        (("--data.label_key", "concept"), "has no effect without loss.positives"),
        (("--parallel.schedule", "GPipe"), "has no effect with parallel.pp = 1"),
        (("--parallel.sequence", "false"), "has no effect with parallel.tp = 1"),
        (("--log.wandb_project", "x"), "has no effect with log.wandb = false"),
        (("--log.trackio_project", "x"), "has no effect with log.trackio = false"),
        (("--lock.vision", "0"), "freezes weights as they were drawn"),
        (("--train.checkpoint_every", "99"), "checkpoint_every = 99 is beyond the run's 20 steps"),
        (("--train.hang_minutes", "3"), "train.hang_minutes = 3.0 has no effect on one process"),
        (("--train.straggler_factor", "3"), "straggler_factor = 3.0 has no effect on one process"),
        (("--train.straggler_every", "3"), "straggler_every = 3 has no effect on one process"),
        (("--parallel.reshard_after_forward", "false"), "where no weight is spread over ranks"),
    ],
)
def test_told(words: tuple[str, ...], told: str, tmp_path: Path) -> None:
    """One line, and none where nothing is idle."""
    recipe = load_recipe(Path(RECIPE), ["--run.dir", str(tmp_path), *words])
    (line,) = build_run(recipe, build_layout(recipe.parallel, pick_device("cpu"))).notes
    assert told in line
    plain = load_recipe(Path(RECIPE), ["--optim.warmup_steps", "20"])
    assert idle_notes(plain, total_steps=20) == []
    many = {"total_steps": 99, "ranks": 2, "shards": 2}
    assert idle_notes(recipe, **many) == [] or words[0].split(".")[1] not in MATTERS


def test_a_cache_of_an_evaluation_is_not_idle() -> None:
    recipe = load_recipe(Path(RECIPE), ["--data.cache_dir", "c", "--optim.warmup_steps", "20"])
    (line,) = idle_notes(recipe, total_steps=20)
    assert "data.cache_dir = c has no effect: nothing of what the run reads is in a store" in line
    judged = RetrievalConfig(name="r", data=("set/*.tar::s3://bucket/val/",))
    recipe = replace(recipe, eval=replace(recipe.eval, retrieval=(judged,)))
    assert idle_notes(recipe, total_steps=20) == []


def test_looks_for_stragglers_that_are_off() -> None:
    words = ["--train.straggler_factor", "none", "--train.straggler_every", "3"]
    (line,) = idle_notes(load_recipe(Path(RECIPE), words), total_steps=20, ranks=2)
    assert "train.straggler_every = 3 has no effect without train.straggler_factor" in line


def test_an_evaluation_beyond_the_end_is_told(tmp_path: Path) -> None:
    recipe = load_recipe(Path("configs/debug_siglip.toml"), ["--eval.every", "21"])
    (line,) = idle_notes(recipe, total_steps=20)
    assert "eval.every = 21 is beyond the run's 20 steps" in line


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--vqa.connector.factor", "3"), 'set kind = "pixel_shuffle"'),
        (("--vqa.connector.num_queries", "3"), 'set kind = "queries"'),
        (("--vqa.generate", "none", "--vqa.loss.generate_weight", "2"), "with one head"),
        (("--vqa.generate.transformer.stochastic_depth", "0.1"), "of whose blocks none is dropped"),
        (("--vqa.classify.fusion.stochastic_depth", "0.1"), "vqa.classify.fusion.stochastic_depth"),
        ((*WRITES, "--vqa.min_count", "2"), "without [vqa.classify]"),
        (
            (*WRITES, "--vqa.min_count", "2", "--vqa.text_lr", "0.5"),
            "vqa.min_count = 2, vqa.text_lr = 0.5 have no effect without [vqa.classify]; leave "
            "them out",
        ),
        ((*WRITES, "--vqa.loss.classify", "ce"), "vqa.loss.classify = ce has no"),
        ((*WRITES, "--vqa.text_lr", "1e-3"), "vqa.text_lr = 0.001 has no effect"),
    ],
)
def test_refused_beside_questions(words: tuple[str, ...], told: str, tmp_path: Path) -> None:
    recipe = load_recipe(write_recipe(tmp_path), [*words])
    with pytest.raises(UsageError) as error:
        refuse_idle(recipe)
    assert told in str(error.value)


@pytest.mark.parametrize("kind", ["knn", "linear_probe"])
def test_evaluations_of_two_towers_beside_questions(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They were never run."""
    path = write_recipe(tmp_path)
    tables = '[{name = "x", train = "a.tar", test = "a.tar"}]'
    assert main(["train", str(path), f"--eval.{kind}", tables]) == 2
    assert f"[eval.{kind}] has no effect beside [vqa]" in capsys.readouterr().err


def test_all_settings_of_one_reason_are_told_in_one_line(tmp_path: Path) -> None:
    words = ["--run.dir", str(tmp_path), "--model.vision.rope_theta", "50"]
    words += ["--model.text.rope_theta", "50"]
    with pytest.raises(UsageError) as caught:
        refuse_idle(load_recipe(Path(RECIPE), words))
    assert str(caught.value) == (
        "model.vision.rope_theta = 50.0, model.text.rope_theta = 50.0 have no effect with "
        'positions = "learned"; choose rotary ones, or leave them out'
    )
