"""A recipe that begins from another says what differs, and is the whole in its run's record."""

from dataclasses import replace
from pathlib import Path

import pytest

from mmtrain.errors import UsageError
from mmtrain.recipe import _WHOLE, TrainRecipe, load_recipe
from mmtrain.settings.describe import describe
from mmtrain.settings.layers import laid_over, read_layers
from mmtrain.settings.shipped import copied_text, shipped_recipes

ROOT = Path(__file__).parents[2]
DEBUG = ROOT / "configs/debug_clip.toml"


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


@pytest.mark.parametrize("base", [str(DEBUG), "../first/debug.toml", "debug_clip", "$BASES/d.toml"])
def test_a_base_is_a_file_or_a_name(
    tmp_path: Path, base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By an absolute path, one from the recipe's own folder, a variable, or a shipped name."""
    monkeypatch.setenv("BASES", str(tmp_path / "bases"))
    write(tmp_path / "first/debug.toml", DEBUG.read_text())
    write(tmp_path / "bases/d.toml", DEBUG.read_text())
    own = write(tmp_path / "second/own.toml", f'base = "{base}"\n[optim]\nlr = 0.25\n')
    found, whole = load_recipe(own), load_recipe(DEBUG)
    assert found.optim.lr == 0.25
    assert found.model == whole.model and found.train == whole.train
    assert replace(found.data, train=whole.data.train) == whole.data
    # A shipped one tells where its data are: this folder may be no checkout.
    place = ROOT if base == "debug_clip" else Path()
    assert found.data.train == str(place / whole.data.train)


def test_each_layer_is_laid_over_the_one_before(tmp_path: Path) -> None:
    """Tables key by key and however deep, lists and lists of tables as a whole."""
    write(tmp_path / "a.toml", "x = [1, 2]\n[t]\na = 1\nb = 1\n[t.u]\nc = 1\n[[l]]\nn = 1\n")
    write(tmp_path / "b.toml", 'base = "a.toml"\nx = [3]\n[t]\nb = 2\n[t.u]\nd = 2\n')
    top = write(tmp_path / "c.toml", 'base = "b.toml"\n[t.u]\nd = 3\n[[l]]\nm = 3\n')
    layers, data = read_layers(top), {}
    for layer in layers:
        data = laid_over(data, layer)
    wanted = {"x": [3], "t": {"a": 1, "b": 2, "u": {"c": 1, "d": 3}}, "l": [{"m": 3}]}
    assert data == wanted and len(layers) == 3
    assert "base" not in data


def test_a_table_of_the_users_own_keys_is_replaced() -> None:
    """No key of a farther one could be taken out again: captions were drawn from both places."""
    free = [key.name for key in describe(TrainRecipe) if "table of" in key.type]
    assert {*_WHOLE} == {name for name in free if "[]" not in name}  # lists are replaced anyway


@pytest.mark.parametrize(
    ("own", "words", "captions"),
    [
        ("captions = { alt = 1.0 }", [], {"alt": 1.0}),
        ("[data.captions]\nalt = 1.0", [], {"alt": 1.0}),
        ("label_key = 'concept'", [], {"txt": 1.0}),
        ("captions = { alt = 1.0 }", ["--data.captions", "{ b = 1 }"], {"b": 1.0}),
        ("captions = { alt = 1.0 }", ["--data.captions.b", "1"], {"alt": 1.0, "b": 1.0}),
    ],
)
def test_the_nearest_captions_hold(
    tmp_path: Path, own: str, words: list[str], captions: dict[str, float]
) -> None:
    text = own if own.startswith("[") else f"[data]\n{own}"
    path = write(tmp_path / "own.toml", f'base = "debug_clip"\n{text}\n')
    assert load_recipe(path, words).data.captions == captions


NAMED = '[model]\nname = "ViT-S-32"\n'


@pytest.mark.parametrize(
    ("base", "own", "words", "refused"),
    [
        (DEBUG.read_text(), NAMED, [], "model.embed_dim, model.vision.image_size, model.vision."),
        (DEBUG.read_text(), "", ["--model.name", "ViT-S-32"], "model.embed_dim"),
        (DEBUG.read_text(), "", ["--model.name=none"], ""),
        ("[model.vision]\npatch_size = 16\n", NAMED, [], "(model.vision.patch_size)"),
        ("[model.vision]\npatch_size = 32\n", NAMED, [], ""),  # as the name has it
        ("[model]\ninit_training = false\nvision.patch_dropout = 0.5\n", NAMED, [], ""),
        ("[model.vision]\npatch_size = 16\n", NAMED + "vision.patch_size = 16\n", [], ""),
        ('[model]\nname = "ViT-B-32"\nvision.image_size = 64\n', NAMED, [], ""),
        ("[model]\nvision.image_size = 64\n" + NAMED[8:], "", [], ""),
    ],
)
def test_a_name_over_another_architecture(
    tmp_path: Path, base: str, own: str, words: list[str], refused: str
) -> None:
    """The keys of a base hold over a name, so the run had none of its model, without a word."""
    rest = '[run]\ndir = "x"\n[data]\ntrain = "a.tar"\n[train]\nsteps = 1\n'
    write(tmp_path / "base.toml", base if "[run]" in base else base + rest)
    path = write(tmp_path / "own.toml", f'base = "base.toml"\n{own}')
    if not refused:
        assert load_recipe(path, words)
        return
    with pytest.raises(UsageError, match=r'^model\.name = "ViT-S-32" is laid over') as caught:
        load_recipe(path, words)
    assert refused in str(caught.value)


@pytest.mark.parametrize(
    ("base", "own", "steps", "epochs"),
    [
        ("steps = 20", "epochs = 2", None, 2),
        ("epochs = 2", "steps = 20", 20, None),
        ("epochs = 2", "batch_size = 8", None, 2),
    ],
)
def test_the_nearer_length_holds(
    tmp_path: Path, base: str, own: str, steps: int | None, epochs: int | None
) -> None:
    """A recipe that counts steps may begin from one that counts epochs, as an override may."""
    text = DEBUG.read_text().replace("steps = 20", base)
    assert base in text
    write(tmp_path / "base.toml", text)
    path = write(tmp_path / "own.toml", f'base = "base.toml"\n[train]\n{own}\n')
    train = load_recipe(path).train
    assert (train.steps, train.epochs) == (steps, epochs)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("base = 3", "base = 3 must be a recipe's file"),
        ('base = ""', 'base = "" must be a recipe\'s file'),
        (
            'base = "gone.toml"',
            "gone.toml does not exist; the path counts from the recipe's folder",
        ),
        ('base = "clip_vit_32"', "is no recipe that travels with mmtrain"),
        ('base = "debug_clip"\n[trian]\nsteps = 1', "did you mean train?"),
        ('base = "own.toml"', "its base leads back to it"),
        ('base = "round.toml"', "its base leads back to it"),
        ('base = ["debug_clip"]', 'base = ["debug_clip"] must be a recipe\'s file'),
    ],
)
def test_what_is_no_base_is_one_line(tmp_path: Path, text: str, told: str) -> None:
    write(tmp_path / "round.toml", 'base = "own.toml"')
    path = write(tmp_path / "own.toml", text)
    with pytest.raises(UsageError) as error:
        load_recipe(path)
    assert told in str(error.value) and "\n" not in str(error.value)


def test_a_copied_recipe_trains_from_any_folder(tmp_path: Path) -> None:
    """Every shipped recipe and suite is copied as it loads elsewhere; data of the package are
    found."""
    assert shipped_recipes().keys() == {path.stem for path in (ROOT / "configs").rglob("*.toml")}
    for name, path in shipped_recipes().items():
        copy = write(tmp_path / f"{name}.toml", copied_text(path))
        assert '"mmtrain/demo' not in copy.read_text()
        if name.startswith("debug"):
            named = write(tmp_path / f"of_{name}.toml", f'base = "{name}"\n')
            for source in (*load_recipe(copy).data.sources, *load_recipe(named).data.sources):
                train = str(source.train)
                assert train.startswith("synthetic:") or Path(train).is_absolute()
                assert train.startswith("synthetic:") or Path(train).is_file()
