"""Which drawing shows which concept, on designs made up here; nothing is fetched or drawn."""

import importlib.util
import io
import json
import sys
import tarfile
from pathlib import Path
from types import ModuleType

import pytest

from mmtrain.errors import UsageError

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture(scope="module")
def sources() -> ModuleType:
    """tools/emoji_sources.py, which is in no package."""
    spec = importlib.util.spec_from_file_location("emoji_sources", TOOLS / "emoji_sources.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["emoji_sources"] = module
    spec.loader.exec_module(module)
    return module


def test_spellings_of_one_thing_are_one_key(sources: ModuleType):
    assert sources.normal_code("1F3F3-FE0F") == "1f3f3"
    assert sources.normal_code("0023-FE0F-20E3") == "23-20e3"
    assert sources.code_of("☁️") == "2601"
    assert len({sources.name_key(n) for n in ("Thumbs-Up Sign", "thumbs_up", "thumbs up")}) == 1
    assert sources.name_key("person with the ball") == "personball"


def test_a_family_is_a_name_without_sex_age_and_direction(sources: ModuleType):
    for name in ("man cook", "woman cook", "cook", "cook facing right", "cook: dark skin"):
        assert sources.family_of(name) == "cook"
    assert sources.family_of("women’s room") == "room"
    assert sources.family_of("man") == "man"


def concept(sources: ModuleType, code: str, name: str):
    """A concept of which only code and name matter."""
    return sources.Concept(
        code=code, emoji="", name=name, keywords=("a", "b"), group="", subgroup="",
        family=name, is_symbol=False,
    )  # fmt: skip


@pytest.fixture
def design(sources: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A design with drawings by code, by name, by numbered name, by alias and mirrored."""
    files = {
        "info.json": {"license": {"spdx": "MIT"}},
        "icons.json": {
            "icons": {
                "cloud": {"body": "<c/>"},
                "red-apple-2": {"body": "<a/>", "width": 20, "height": 10, "left": 2, "top": 3},
                "sun-face": {"body": "<s/>"},
            },
            "aliases": {
                "nuage": {"parent": "cloud"},
                "left-arrow": {"parent": "sun-face", "hFlip": True},
            },
        },
        "chars.json": {"2601-FE0F": "cloud"},
    }
    archive = tmp_path / "iconify-json-toy-1.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        for name, content in files.items():
            data = json.dumps(content).encode()
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    package = sources.Package(name="@iconify-json/toy", version="1", sha256="unknown")
    monkeypatch.setitem(sources.DESIGNS, "toy", package)
    with pytest.raises(UsageError, match="is not the @iconify-json/toy that we know; delete it"):
        package.fetch(tmp_path)
    digest = sources.hashlib.sha256(archive.read_bytes()).hexdigest()
    package = sources.Package(name="@iconify-json/toy", version="1", sha256=digest)
    monkeypatch.setitem(sources.DESIGNS, "toy", package)
    return sources.Design("toy", tmp_path)


def test_a_drawing_is_found_by_code_then_by_the_nearest_name(sources: ModuleType, design):
    concepts = {
        code: concept(sources, code, name)
        for code, name in (("2601", "cloud"), ("1f34e", "red apple"), ("2b05", "left arrow"))
    }
    index = {sources.name_key(one.name): (0, code) for code, one in concepts.items()}
    # The mirrored arrow shows another thing; the sun is no concept here.
    assert dict(design.match(concepts, index)) == {"2601": "cloud", "1f34e": "red-apple-2"}
    # One drawing never serves two concepts: the one that names it itself has it.
    concepts["x"] = concept(sources, "x", "nuage")
    assert "x" not in dict(design.match(concepts, index | {"nuage": (0, "x")}))
    assert design.license == "MIT"


def test_a_drawing_is_centred_in_its_square(design):
    assert 'viewBox="2 -2.0 20 20"' in design.svg("red-apple-2", size=64).replace("2.0 -", "2 -")
    assert 'viewBox="0.0 0.0 16 16"' in design.svg("cloud", size=64)
    assert 'width="64" height="64"' in design.svg("cloud", size=64)


def test_a_caption_is_the_name_and_the_keywords(sources: ModuleType):
    assert concept(sources, "2601", "cloud").caption == "cloud, a, b"
