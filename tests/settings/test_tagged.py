"""Tagged unions in configs: a table is of the kind that it names, and of no other."""

import tomllib
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from mmtrain.errors import UsageError
from mmtrain.settings.decode import decode, dump_toml, encode
from mmtrain.settings.describe import describe
from mmtrain.settings.overrides import apply_overrides
from mmtrain.settings.paths import PathText, escape_paths, expand_paths
from mmtrain.settings.tagged import member_for, members


@dataclass(frozen=True, kw_only=True)
class Align:
    """Without a path."""

    kind: Literal["align"] = "align"
    """Which term."""
    weight: float = 1.0
    """Its share."""


@dataclass(frozen=True, kw_only=True)
class Crop:
    """A member that has a member of its own."""

    kind: Literal["crop"] = "crop"
    """Which term."""
    size: int
    """Side in pixels."""
    inner: "Align | Teacher | None" = None
    """A term of the crop."""

    def __post_init__(self) -> None:
        if self.size <= 0:
            raise ValueError(f"size = {self.size} must be positive")


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """The only one with paths."""

    kind: Literal["teacher"] = "teacher"
    """Which term."""
    weight: int | None = 2
    """How often it counts."""
    run: PathText = "none"
    """Its run."""
    sources: tuple[PathText, ...] = ()
    """Its shards."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A union in each place where one may stand."""

    terms: tuple[Align | Crop | Teacher, ...] = ()
    """Terms of the loss."""
    main: Align | Teacher = Align()
    """The main term."""
    extra: Align | Teacher | None = None
    """One more."""
    only: tuple[Teacher, ...] = ()
    """Of one kind."""


TABLES = {
    "list": 'terms = [{kind = "teacher", run = "~/a", sources = ["$DISK/b"]}, {kind = "align"}]',
    "array": '[[terms]]\nkind = "align"\nweight = 2\n[[terms]]\nkind = "crop"\nsize = 3',
    "section": '[main]\nkind = "teacher"\nrun = "$DISK/$$a"\nweight = "none"',
    "optional": '[extra]\nkind = "teacher"\nrun = "$DISK"',
    "nested": '[[terms]]\nkind = "crop"\nsize = 3\ninner = {kind = "teacher", run = "~"}',
    "one": '[[only]]\nkind = "teacher"\nsources = ["~", "$DISK"]',
}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/people/ada")
    monkeypatch.setenv("DISK", "/disks/a$b")


def refusal(data: dict[str, Any]) -> str:
    """The one line of it, which path expansion leaves to decoding."""
    with pytest.raises(UsageError) as refused:
        decode(Recipe, expand_paths(Recipe, data))
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_a_table_is_of_the_kind_that_it_names() -> None:
    recipe = decode(Recipe, tomllib.loads(TABLES["array"] + '\n[main]\nkind = "teacher"'))
    assert recipe == Recipe(terms=(Align(weight=2.0), Crop(size=3)), main=Teacher())
    nested = decode(Recipe, tomllib.loads(TABLES["nested"]))
    assert nested.terms == (Crop(size=3, inner=Teacher(run="~")),)
    assert decode(Recipe, {"extra": "none"}).extra is None


@pytest.mark.parametrize("text", TABLES.values(), ids=TABLES)
def test_it_comes_back_through_paths_and_toml(text: str) -> None:
    written = tomllib.loads(text)
    expanded = expand_paths(Recipe, written)
    assert "~" not in str(expanded) and "DISK" not in str(expanded) and "$$" not in str(expanded)
    recipe = decode(Recipe, expanded)
    recorded = tomllib.loads(dump_toml(escape_paths(Recipe, encode(recipe))))
    assert decode(Recipe, expand_paths(Recipe, recorded)) == recipe
    assert decode(Recipe, encode(recipe)) == recipe


def test_paths_that_only_a_later_member_has_are_expanded() -> None:
    table = {"kind": "teacher", "run": "~/a", "sources": ["$DISK/b", "c"]}
    whole = {"kind": "teacher", "run": "/people/ada/a", "sources": ["/disks/a$b/b", "c"]}
    crop = {"kind": "crop", "size": 1, "inner": table}
    data = {"terms": [{"kind": "align"}, table, crop], "main": table, "extra": table}
    expanded = expand_paths(Recipe, data)
    assert expanded["terms"] == [{"kind": "align"}, whole, {**crop, "inner": whole}]
    assert expanded["main"] == expanded["extra"] == whole


@pytest.mark.parametrize("kind", [{}, {"kind": "teach"}, {"kind": ["teacher"]}, {"kind": 1}])
def test_paths_of_no_kind_are_left_alone(kind: dict[str, Any]) -> None:
    data = {"terms": [{**kind, "run": "$NOWHERE"}], "main": {**kind, "run": "$NOWHERE"}}
    assert expand_paths(Recipe, data) == data


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"terms": [{"size": 3}]}, "terms[0].kind is missing; it must be align | crop | teacher"),
        ({"main": {"weight": 3}}, "main.kind is missing; it must be align | teacher"),
        ({"only": [{"run": "a"}]}, "only[0].kind is missing; it must be teacher"),
        (
            {"terms": [{"kind": "align"}, {"kind": "tacher", "run": "~"}]},
            'terms[1].kind = "tacher" is unknown; did you mean "teacher"? '
            "use align | crop | teacher",
        ),
        ({"extra": {"kind": "crop"}}, 'extra.kind = "crop" is unknown; use align | teacher'),
        ({"main": {"kind": ["align"]}}, 'main.kind = ["align"] is unknown; '),
        (
            {"terms": [{"kind": "align", "size": 3}]},
            'unknown key terms[0].size; size is a key of kind = "crop", and here kind = "align"',
        ),
        (
            {"terms": [{"kind": "crop", "size": 1, "weight": 1}]},
            'weight is a key of kind = "align" or "teacher", and here kind = "crop"',
        ),
        (
            {"terms": [{"kind": "crop", "size": 1, "inner": {"kind": "align", "run": "a"}}]},
            "unknown key terms[0].inner.run; run is a key of",
        ),
        ({"main": {"kind": "teacher", "rum": "a"}}, "did you mean main.run?"),
        ({"terms": [{"kind": "crop"}]}, "terms[0].size is missing; it must be an int"),
        ({"terms": [{"kind": "crop", "size": 0}]}, "terms[0].size = 0 must be positive"),
        ({"terms": [{"kind": "crop", "size": "x"}]}, 'terms[0].size = "x" must be an int'),
        ({"terms": "crop"}, 'terms = "crop" must be a list of table; write kind = "crop" below'),
        ({"terms": {"kind": "crop"}}, "must be a list of table"),
        ({"main": "teacher"}, 'must be a table; write main.kind = "teacher"'),
        ({"extra": 3}, "extra = 3 must be a table or none; write extra.kind"),
    ],
)
def test_a_mistake_is_told_in_the_words_of_its_kind(data: dict[str, Any], said: str) -> None:
    assert said in refusal(data)


def test_overrides_reach_the_keys_of_every_member() -> None:
    words = ["--main.kind", "teacher", "--main.run=~/a", "--main.weight=none"]
    words += ["--extra.kind=align", "--extra.weight=0.5"]
    words += ['--terms=[{kind = "crop", size = 3}, {kind = "teacher", run = "~"}]']
    recipe = decode(Recipe, expand_paths(Recipe, apply_overrides(Recipe, {}, words)))
    assert recipe.main == Teacher(run="/people/ada/a", weight=None)
    assert recipe.extra == Align(weight=0.5)
    assert recipe.terms == (Crop(size=3), Teacher(run="/people/ada"))
    with pytest.raises(UsageError, match=r"--main is a section; .* --main\.kind"):
        apply_overrides(Recipe, {}, ["--main", "teacher"])
    with pytest.raises(UsageError, match=r"did you mean main\.run\?"):
        apply_overrides(Recipe, {}, ["--main.rum", "a"])


def test_help_has_every_key_once_and_says_of_which_kind() -> None:
    listed = describe(Recipe)
    keys = {key.name: key for key in listed}
    assert len(keys) == len(listed)
    assert keys["terms"].type == "list of table" and keys["terms"].default == "[]"
    assert keys["main"].type == "table" and keys["main"].default == ""
    assert keys["extra"].type == "table | none"
    kind = keys["terms[].kind"]
    assert (kind.type, kind.default) == ("align | crop | teacher", "required")
    assert kind.doc == "Which term."
    assert keys["only[].kind"].default == "required"
    assert keys["terms[].size"].doc == "kind = crop: Side in pixels."
    weight = keys["terms[].weight"]
    assert (weight.type, weight.default) == ("float | int | none", "1.0 | 2")
    assert weight.doc == "kind = align: Its share. kind = teacher: How often it counts."
    assert {"terms[].inner.run", "main.run", "extra.sources", "only[].run"} <= keys.keys()


def test_a_union_is_tagged_where_every_member_has_a_kind() -> None:
    assert members(Align | Teacher | None) == {"align": Align, "teacher": Teacher}
    assert members(Teacher) == {"teacher": Teacher}
    for other in (Recipe, Align | Recipe, Align | str, str | None, int, tuple[Align, ...], Any):
        assert members(other) == {}
    assert member_for(Align | Teacher, {"kind": "teacher"}) is Teacher
    assert member_for(Align | Teacher, {}) is None
