"""A recipe's file that is no TOML: one line with the place and what to write instead."""

from pathlib import Path

import pytest

from mmtrain.cli import main
from mmtrain.errors import UsageError
from mmtrain.settings.read_toml import read_toml

RECIPE = Path(__file__).parents[2] / "configs/debug_clip.toml"


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "byte-order-mark"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"], ids=["unix", "windows"])
def test_marks_and_line_ends_of_other_editors_are_read(
    tmp_path: Path, mark: bytes, end: bytes
) -> None:
    path = tmp_path / "recipe.toml"
    path.write_bytes(mark + RECIPE.read_bytes().replace(b"\n", end))
    assert read_toml(path) == read_toml(RECIPE)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is empty; `mmtrain recipes` lists some"),
        (b"\n# nothing\n", "is empty"),
        ("[run]\n".encode("utf-16"), "is UTF-16 text; save it as UTF-8"),
        (b"[run]\ndir = '\xff'\n", "is no UTF-8 text (line 2)"),
        (b"[run]\ndir = runs/x\n", 'dir = runs/x; a text needs quotes: dir = "runs/x"'),
        (b"[optim]\nclip_norm = None\n", 'write clip_norm = "none"'),
        (b"[optim]\nclip_norm = null\n", 'write clip_norm = "none"'),
        (b"[train]\ncompile = True\n", "write compile = true"),
        (b"[train]\ncompile = yes # really\n", "write compile = true"),
        (b'[run]\ndir = "C:\\Users\\x"\n', "single quotes, or write / for each"),
        ("[run]\ndir = “x”\n".encode(), "quotation marks are \" or ' in TOML"),
        (b"[run]\ndir: 'x'\n", "write = and not :"),
        (b"[run]\nseed = 1\nseed = 2\n", "seed = 2; this key or section is there twice"),
        (b"[run]\nseed = 1\n[run]\n", "[run]; this key or section is there twice"),
        (b"model.embed_dim = 3\n[model]\nname = 'x'\n", "is there twice"),
        (b"[model]\nvision = { dim = 1 }\n[model.vision]\ndim = 2\n", "is there twice"),
        (b"x = " + b"[" * 5000, "brackets in brackets"),
        (b"x = " + b"9" * 5000, "is no valid TOML"),
        (b"[run\n", "[run"),
    ],
)
def test_what_cannot_be_read(tmp_path: Path, content: bytes, told: str) -> None:
    path = tmp_path / "recipe.toml"
    path.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        read_toml(path)
    assert told in str(caught.value) and str(caught.value).startswith(f"recipe {path} ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "there", "told"),
    [
        ("configs/debug_clip.toml", (), "`mmtrain recipes debug_clip` writes debug_clip.toml here"),
        ("clip_vit_b32", (), "`mmtrain recipes clip_vit_b32` writes clip_vit_b32.toml here"),
        ("configs/debug_clip.toml", ("debug_clip.toml",), "did you mean debug_clip.toml?"),
        ("mine", ("mine.toml",), "did you mean mine.toml?"),
        ("sub/mine", ("sub/mine.toml",), "did you mean sub/mine.toml?"),
        ("debug_clp.toml", (), "did you mean debug_clip? `mmtrain recipes` lists some"),
        ("nowhere.toml", (), "does not exist; `mmtrain recipes` lists some"),
    ],
)
def test_a_recipe_that_is_not_there(
    tmp_path: Path, monkeypatch, name: str, there: tuple[str, ...], told: str
) -> None:
    """One that travels in the package is copied by its name, one that is near is named."""
    monkeypatch.chdir(tmp_path)
    for each in there:
        Path(each).parent.mkdir(exist_ok=True)
        Path(each).write_text("")
    with pytest.raises(UsageError) as caught:
        read_toml(Path(name))
    assert str(caught.value) == f"recipe {name} does not exist; {told.split('; ')[-1]}"


def test_a_folder_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a folder; name a TOML file"):
        read_toml(tmp_path)
    (tmp_path / "a.toml").write_text("")
    with pytest.raises(UsageError, match=r"is a folder; name a file in it, such as .*a\.toml"):
        read_toml(tmp_path)


def test_a_recipe_with_a_mark_trains(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_bytes(b"\xef\xbb\xbf" + RECIPE.read_bytes())
    words = ("--run-dir", str(tmp_path / "run"), "--train.steps", "1")
    assert main(["train", str(path), *words]) == 0
