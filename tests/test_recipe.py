"""Recipes composed: overrides, models by name, and what one section fixes for another."""

from pathlib import Path

import pytest

from mmtrain.build.resolve import resolve
from mmtrain.data.text.tokenizer import build_tokenizer
from mmtrain.errors import UsageError
from mmtrain.models.named import named_model
from mmtrain.recipe import TrainRecipe, load_recipe
from mmtrain.settings.decode import dump_toml, encode

BARE = """
[run]
dir = "runs/x"
[data]
train = "data/*.tar"
[train]
epochs = 2
"""


def write(tmp_path: Path, text: str) -> Path:
    """A recipe file."""
    path = tmp_path / "recipe.toml"
    path.write_text(BARE + text)
    return path


def load_and_resolve(path: Path, *overrides: str) -> TrainRecipe:
    """As a run does it."""
    recipe = load_recipe(path, list(overrides))
    return resolve(recipe, build_tokenizer(recipe.tokenizer))


def test_named_model_with_fields_overridden(tmp_path: Path) -> None:
    """model.name gives a published shape; the file's keys and then the overrides win."""
    path = write(tmp_path, '[model]\nname = "ViT-B-32"\n[model.vision]\npatch_dropout = 0.5\n')
    recipe = load_and_resolve(path, "--model.vision.transformer.num_layers", "3")
    vision = recipe.model.vision
    assert vision.patch_dropout == 0.5 and vision.transformer.num_layers == 3
    assert vision.transformer.dim == 768 and vision.patch_size == 32
    other = load_and_resolve(path, "--model.name", "ViT-B-16")
    assert other.model.vision.patch_size == 16 and other.model.vision.patch_dropout == 0.5
    plain = load_and_resolve(write(tmp_path, '[model]\nname = "ViT-B-32"\n'))
    assert plain.model.clip == named_model("ViT-B-32")


def test_resolved_recipe_reads_back_equal(tmp_path: Path) -> None:
    """What recipe.toml records is complete and means the same."""
    recipe = load_and_resolve(write(tmp_path, '[model]\nname = "ViT-B-16-SigLIP"\n'))
    recorded = tmp_path / "recorded.toml"
    recorded.write_text(dump_toml(encode(recipe)))
    assert load_and_resolve(recorded) == recipe and recipe.model.name is None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('[model]\nname = "ViT-B32"\n', 'model.name = "ViT-B32" is unknown; did you mean ViT-B-'),
        ('[model]\nname = "ViT-B-23"\ninit = "x"\n', 'model.name = "ViT-B-23" is unknown'),
        ('[model]\ninit = "nowhere"\n', "model.init = nowhere does not exist"),
        ('[model]\nname = "ViT-B-32"\n[model.text]\nvocab_size = 100\n', "model.text.vocab_size"),
        ('[model]\nnam = "ViT-B-32"\n', "unknown key model.nam; did you mean model.name?"),
    ],
    ids=["name", "both", "init", "vocabulary", "key"],
)
def test_mistakes(tmp_path: Path, text: str, told: str) -> None:
    """One line each."""
    with pytest.raises(UsageError, match=told.replace("?", r"\?")):
        load_and_resolve(write(tmp_path, text))


def test_steps_override_replaces_epochs(tmp_path: Path) -> None:
    """`--train.steps 20` over a recipe that counts epochs means 20 steps."""
    path = write(tmp_path, '[model]\nname = "ViT-B-32"\n')
    recipe = load_recipe(path, ["--train.steps", "20"])
    assert recipe.train.steps == 20 and recipe.train.epochs is None
    with pytest.raises(UsageError, match="exactly one of steps and epochs"):
        load_recipe(path, ["--train.steps", "20", "--train.epochs", "1"])


@pytest.mark.parametrize("words", [["--train.steps", "20"], ["--train.epochs", "2"]])
def test_a_length_takes_the_place_of_phases_and_says_so(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    phases = "[[train.phase]]\nepochs = 3\nimage_size = 32\n[[train.phase]]\nsteps = 2\n"
    path = write(tmp_path, f'[model]\nname = "ViT-B-32"\n{phases}')
    recipe = load_recipe(path, words)
    assert recipe.train.phase == ()
    assert [f"--train.{k}" for k in ("steps", "epochs") if getattr(recipe.train, k)] == words[:1]
    assert f"{words[0][2:]} takes the place of [[train.phase]]" in capsys.readouterr().err
    # What says no length leaves them, and of two the contradiction is named.
    assert len(load_recipe(path, ["--train.epochs", "none"]).train.phase) == 2
    assert load_recipe(path, ["--train.epochs", "none", *words[:1], "3"]).train.phase == ()
    assert "place" in capsys.readouterr().err
    with pytest.raises(UsageError, match=r"contradicts \[\[train.phase\]\]"):
        load_recipe(path, [*words, "--train.phase", "[{steps = 1}]"])


def test_one_rank_alone_says_that_a_length_takes_the_place_of_phases(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, '[model]\nname = "ViT-B-32"\n[[train.phase]]\nsteps = 2\n')
    monkeypatch.setenv("RANK", "1")
    assert load_recipe(path, ["--train.steps", "3"]).train.phase == ()
    assert capsys.readouterr().err == ""


def test_no_phases_leave_the_length(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, '[model]\nname = "ViT-B-32"\n')
    assert load_recipe(path, ["--train.phase", "[]"]).train.epochs == 2
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("peft.lora.rank", "peft.rank"),  # `peft.rslora`, which is nearest, has none
        ("eval.zeroshot.data", "eval.zero_shot.data"),
        ("modle.vision.patch_size", "model.vision.patch_size"),
        ("optim.learning_rate", "optim.lr"),
    ],
)
def test_a_key_that_is_suggested_is_there(key: str, meant: str):
    with pytest.raises(UsageError, match=rf"^unknown key {key}; did you mean {meant}\?$"):
        load_recipe(Path("configs/debug_clip.toml"), [f"--{key}", "4"])
