"""Configs from TOML: every mistake is one line that names key, value and remedy."""

import tomllib
from dataclasses import dataclass, field
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmtrain.errors import UsageError
from mmtrain.settings.decode import decode, dump_toml, encode
from mmtrain.settings.describe import describe
from mmtrain.settings.overrides import apply_overrides


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """A section in a section."""

    dim: int
    """Width."""
    activation: Literal["gelu", "swiglu"] = "gelu"
    """The non-linearity."""

    def __post_init__(self) -> None:
        if self.dim <= 0:
            raise ValueError(f"dim = {self.dim} must be positive")
        if self.dim > 9000:
            raise ValueError("too wide for this test")


@dataclass(frozen=True, kw_only=True)
class Model:
    """A section."""

    blocks: Blocks
    """The blocks."""
    rate: float = 0.0
    """A rate."""


@dataclass(frozen=True, kw_only=True)
class Judge:
    """A member of a list of tables."""

    name: str
    """Its name."""
    data: str | tuple[str, ...] = "x"
    """Its shards."""


@dataclass(frozen=True, kw_only=True)
class Optim:
    """One of each kind of field."""

    lr: float = 1e-3
    """Rate."""
    betas: tuple[float, float] = (0.9, 0.98)
    """Moments."""
    steps: int | None = 10
    """Steps; None: forever."""
    ema: float | None = None
    """Average."""
    compile: bool = False
    """Whether."""
    mode: Literal["fast", "slow"] | None = None
    """How."""
    fuse: Literal[True, False, "auto"] = False
    """Whether, or as it pays."""
    weights: dict[str, float] = field(default_factory=lambda: {"txt": 1.0})
    """A free table."""
    names: tuple[str, ...] = ()
    """Any number."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The whole."""

    model: Model
    """Model."""
    optim: Optim = field(default_factory=Optim)
    """Optim."""
    judges: tuple[Judge, ...] = ()
    """Judges."""
    lock: Blocks | None = None
    """A section that may be absent."""


LEAST = {"model": {"blocks": {"dim": 8}}}


def changed(section: str, **values: object) -> dict:
    """The least recipe with one section changed."""
    data = {"model": {"blocks": {"dim": 8}}}
    target = data
    for name in section.split("."):
        target = target.setdefault(name, {})
    target.update(values)
    return data


def complaint(data: dict) -> str:
    """What the user is told; always one line."""
    with pytest.raises(UsageError) as caught:
        decode(Recipe, data)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_right_is_decoded():
    recipe = decode(
        Recipe,
        {
            "model": {"blocks": {"dim": 8, "activation": "swiglu"}, "rate": 1},
            "optim": {"betas": [0, 0.5], "steps": "none", "ema": 0.5, "weights": {"a": 2}},
            "judges": [{"name": "a"}, {"name": "b", "data": ["x", "y"]}],
            "lock": {"dim": 1},
        },
    )
    assert recipe.model == Model(blocks=Blocks(dim=8, activation="swiglu"), rate=1.0)
    assert isinstance(recipe.model.rate, float)
    assert recipe.optim.betas == (0.0, 0.5) and recipe.optim.weights == {"a": 2.0}
    assert recipe.optim.steps is None and recipe.optim.ema == 0.5
    assert recipe.judges == (Judge(name="a"), Judge(name="b", data=("x", "y")))
    assert recipe.lock == Blocks(dim=1)
    assert decode(Recipe, LEAST).lock is None


@pytest.mark.parametrize(
    ("data", "message"),
    [
        # a typo, in a section and of a section
        (changed("optim", bettas=[0, 0]), "unknown key optim.bettas; did you mean optim.betas?"),
        (changed("optmi", lr=1.0), "unknown key optmi; did you mean optim?"),
        (
            changed("model.blocks", activaton="gelu"),
            "unknown key model.blocks.activaton; did you mean model.blocks.activation?",
        ),
        # the right key in the wrong section
        (changed("model", lr=1.0), "unknown key model.lr; did you mean optim.lr?"),
        # nothing near: what there is
        (changed("model", zzz=1), "unknown key model.zzz; model has blocks, rate"),
        (changed("judges", x=1), 'judges = {"x": 1} must be a list of table'),
        # what is missing
        ({}, "model is missing; it must be a table"),
        ({"model": {"blocks": {}}}, "model.blocks.dim is missing; it must be an int"),
        # types; a bool is no int and a number no string
        (changed("model.blocks", dim=True), "model.blocks.dim = true must be an int"),
        (changed("model.blocks", dim=8.0), "model.blocks.dim = 8.0 must be an int"),
        (changed("model.blocks", dim="8"), 'model.blocks.dim = "8" must be an int'),
        (changed("optim", lr="fast"), 'optim.lr = "fast" must be a number'),
        (changed("optim", lr=float("nan")), "optim.lr = nan must be a finite number"),
        (changed("optim", lr=float("inf")), "optim.lr = inf must be a finite number"),
        (changed("optim", compile=1), "optim.compile = 1 must be true or false"),
        (changed("optim", steps=1.5), "optim.steps = 1.5 must be an int or none"),
        (changed("optim", betas=[0.9]), "optim.betas = [0.9] must be [float, float]"),
        (changed("optim", betas=[0.9, "x"]), 'optim.betas[1] = "x" must be a number'),
        ({**LEAST, "judges": [{"name": "a\0b"}]}, "must be a text without the character NUL"),
        (changed("optim", names="a"), 'optim.names = "a" must be a list of str'),
        (changed("optim", weights={"txt": "x"}), 'optim.weights.txt = "x" must be a number'),
        ({"model": 3}, "model = 3 must be a table"),
        ({**LEAST, "judges": [{"nmae": "a"}]}, "did you mean judges[0].name?"),
        ({**LEAST, "judges": [{"name": "a", "data": [1]}]}, "judges[0].data[0] = 1 must be a str"),
        # choices
        (
            changed("model.blocks", activation="swigul"),
            'model.blocks.activation = "swigul" is unknown; did you mean "swiglu"? use',
        ),
        (changed("optim", mode="quick"), 'optim.mode = "quick" is unknown; use fast | slow'),
        (changed("optim", fuse="x"), 'optim.fuse = "x" is unknown; use true | false | auto'),
        (changed("optim", fuse=1), "optim.fuse = 1 is unknown; did you mean true?"),
        (changed("optim", fuse="yes"), "did you mean true?"),
        # a config's own check, with the section's path
        (changed("model.blocks", dim=-1), "model.blocks.dim = -1 must be positive"),
        (changed("model.blocks", dim=9001), "model.blocks: too wide for this test"),
        ({**LEAST, "lock": {"dim": 0}}, "lock.dim = 0 must be positive"),
    ],
)
def test_a_mistake_is_one_line(data: dict, message: str):
    assert message in complaint(data)


def test_a_long_value_is_cut():
    assert len(complaint(changed("optim", lr="x" * 5000))) < 150


@pytest.mark.parametrize(
    ("words", "section", "key", "value"),
    [
        (["--optim.lr", "3e-4"], "optim", "lr", 3e-4),
        (["--optim.lr=3e-4"], "optim", "lr", 3e-4),
        (["--optim.lr", "1", "--optim.lr", "2"], "optim", "lr", 2.0),
        (["--optim.steps", "20"], "optim", "steps", 20),
        (["--optim.steps", "none"], "optim", "steps", None),
        (["--optim.compile", "true"], "optim", "compile", True),
        (["--optim.compile", "False"], "optim", "compile", False),
        (["--optim.betas", "0.5,0.6"], "optim", "betas", (0.5, 0.6)),
        (["--optim.betas", "[0.5, 0.6]"], "optim", "betas", (0.5, 0.6)),
        (["--optim.names", ""], "optim", "names", ()),
        (["--optim.names", "a, b"], "optim", "names", ("a", "b")),
        (["--optim.mode", "slow"], "optim", "mode", "slow"),
        (["--optim.fuse", "true"], "optim", "fuse", True),
        (["--optim.fuse", "False"], "optim", "fuse", False),
        (["--optim.fuse", "auto"], "optim", "fuse", "auto"),
        (["--optim.weights.name", "0.5"], "optim", "weights", {"name": 0.5}),
        (["--optim.weights", "{a = 1, b = 2}"], "optim", "weights", {"a": 1.0, "b": 2.0}),
        (["--model.rate", "-1"], "model", "rate", -1.0),
        (["--lock.dim", "4"], "lock", "dim", 4),
    ],
)
def test_an_override_takes_the_type_of_its_key(words: list[str], section: str, key: str, value):
    recipe = decode(Recipe, apply_overrides(Recipe, LEAST, words))
    assert getattr(getattr(recipe, section), key) == value
    assert type(getattr(getattr(recipe, section), key)) is type(value)


def test_where_text_will_do_only_brackets_make_a_list():
    words = ["--judges", '[{name = "a", data = "x,{0..3}.tar"}]']
    assert decode(Recipe, apply_overrides(Recipe, LEAST, words)).judges[0].data == "x,{0..3}.tar"
    data = apply_overrides(Judge, {"name": "a"}, ["--data", "x,y"])
    assert decode(Judge, data).data == "x,y"
    data = apply_overrides(Judge, {"name": "a"}, ["--data", '["x", "y"]'])
    assert decode(Judge, data).data == ("x", "y")


def test_overrides_leave_the_original_alone():
    data = changed("optim", weights={"txt": 1.0})
    apply_overrides(Recipe, data, ["--optim.weights.name", "1", "--model.blocks.dim", "9"])
    assert data == changed("optim", weights={"txt": 1.0})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--optim.lrr", "1"], "unknown key optim.lrr; did you mean optim.lr?"),
        (["--optmi.lr", "1"], "unknown key optmi.lr; did you mean optim.lr?"),
        (["--optim.lr"], "--optim.lr has no value; it must be a number"),
        (["--optim.lr", "--optim.steps", "1"], "--optim.lr has no value"),
        (["optim.lr", "1"], '"optim.lr" is no override; write --section.key value'),
        (["--optim", "1"], "--optim is a section; override one of its keys: --optim.lr"),
        (["--optim.lr.x", "1"], "unknown key optim.lr.x; --optim.lr itself takes float"),
        (["--judges.name", "x"], "unknown key judges.name; --judges itself takes list of table"),
        (["--optim.lr", "fast"], 'optim.lr = "fast" must be a number'),
        (["--optim.steps", "1e3"], 'optim.steps = "1e3" must be an int or none'),
        (["--optim.compile", "yes"], 'optim.compile = "yes" must be true or false'),
        (["--optim.betas", "0.9"], "optim.betas = [0.9] must be [float, float]"),
        (["--optim.mode", "slwo"], 'did you mean "slow"?'),
        (["--judges", "[{"], 'judges = "[{" must be a list of table'),
    ],
)
def test_a_wrong_override_is_one_line(words: list[str], message: str):
    with pytest.raises(UsageError) as caught:
        decode(Recipe, apply_overrides(Recipe, LEAST, words))
    assert message in str(caught.value) and "\n" not in str(caught.value)


TEXT = st.text(max_size=20).filter(lambda text: text != "none" and "\0" not in text)
NUMBERS = st.floats(-3e38, 3e38)
RECIPES = st.builds(
    Recipe,
    model=st.builds(Model, blocks=st.builds(Blocks, dim=st.integers(1, 9000)), rate=NUMBERS),
    optim=st.builds(
        Optim,
        lr=NUMBERS,
        betas=st.tuples(NUMBERS, NUMBERS),
        steps=st.none() | st.integers(-(2**62), 2**62),
        ema=st.none() | NUMBERS,
        compile=st.booleans(),
        mode=st.sampled_from(["fast", "slow", None]),
        weights=st.dictionaries(TEXT, NUMBERS, max_size=3),
        names=st.lists(TEXT, max_size=3).map(tuple),
    ),
    judges=st.lists(
        st.builds(Judge, name=TEXT, data=TEXT | st.lists(TEXT, max_size=3).map(tuple)), max_size=3
    ).map(tuple),
    lock=st.none() | st.builds(Blocks, dim=st.integers(1, 9000)),
)


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(recipe=RECIPES)
def test_a_config_survives_its_toml(recipe: Recipe):
    assert decode(Recipe, tomllib.loads(dump_toml(encode(recipe)))) == recipe


def test_describe_names_every_key_with_type_default_and_doc():
    keys = {key.name: key for key in describe(Recipe)}
    assert list(keys)[:5] == [
        "model",
        "model.blocks",
        "model.blocks.dim",
        "model.blocks.activation",
        "model.rate",
    ]
    assert keys["model.blocks.dim"].default == "required"
    assert keys["optim.steps"] == ("optim.steps", "int | none", "10", "Steps; None: forever.")
    assert keys["optim.compile"].type == "true | false"
    assert keys["optim.mode"].default == "none"
    assert keys["judges[].name"].type == "str"
    assert keys["lock.dim"].doc == "Width."
