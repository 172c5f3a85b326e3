"""Sizes that no machine has memory for: one line that names the key, before any is taken."""

from dataclasses import replace
from pathlib import Path

import pytest

from mmtrain.build.main_memory import main_memory
from mmtrain.build.phase_recipes import phase_recipes
from mmtrain.recipe import load_recipe
from tests.mistakes import mistake

RECIPE = "configs/debug_clip.toml"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--model.vision.transformer.dim", "10**9"), "model.vision.transformer.dim = 10000"),
        (
            ("--model.vision.transformer.num_layers", "10**7"),
            "num_layers = 10000000 must be at most",
        ),
        (
            ("--model.vision.image_size", "10**6"),
            "model.vision.image_size = 1000000 must be at most",
        ),
        (
            ("--model.vision.num_registers", "10**12"),
            "num_registers = 1000000000000 must be at most",
        ),
        (("--model.vision.num_registers", "10**5"), "num_registers = 100000 must be at most"),
        (("--model.embed_dim", "10**10"), "model.embed_dim = 10000000000 must be at most"),
        (("--tokenizer.context_length", "10**12"), "tokenizer.context_length = 1000000000000 must"),
        (("--data.workers", "10**5"), "data.workers = 100000 must be at most 1024"),
        (("--data.prefetch", "10**9"), "data.prefetch = 1000000000 must be at most 1024"),
        (("--model.text.transformer.dim", "10**6"), "model.text.transformer.dim is too large"),
        (("--model.vision.image_size", "2**15"), "model.vision.image_size is too large"),
        (
            ("--train.batch_size", "10**9", "--data.train", "synthetic:1000000000"),
            "train.batch_size is too large",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_a_size_that_was_never_meant(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], told: str
) -> None:
    plain = [str(eval(word)) if "**" in word else word for word in words]
    line = mistake(capsys, "train", RECIPE, "--run-dir", str(tmp_path / "run"), *plain)
    assert told in line
    assert not (tmp_path / "run").exists()


def test_what_a_process_may_have_is_at_most_the_machines() -> None:
    total = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    assert 0 < main_memory() <= total


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--model.vision.projection", "false"), "model.embed_dim = 32 must be vision.transformer"),
        (
            ("--model.text.projection=false", "--model.embed_dim=48"),
            "model.embed_dim = 48 must be te",
        ),
        (("--model.init_logit_scale", "1000"), "model.init_logit_scale = 1000"),
        (("--model.init", "nowhere"), "model.init = nowhere does not exist"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_shapes_that_contradict_each_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], told: str
) -> None:
    assert told in mistake(capsys, "train", RECIPE, "--run-dir", str(tmp_path / "run"), *words)


def test_a_phase_of_short_texts_has_room_for_learned_vectors() -> None:
    recipe = load_recipe(Path("configs/debug_phases.toml"))
    text = replace(recipe.model.text, num_context=4, context_length=81)
    learned = replace(recipe, model=replace(recipe.model, text=text))
    lengths = [phase.context_length or 77 for phase in recipe.train.phase]
    assert [one.recipe.model.text.max_ids for one in phase_recipes(learned)] == lengths
    assert min(lengths) < 77
