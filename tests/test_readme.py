"""What README and docs tell a reader to type works, and what they say of the house is so."""

import os
import re
import shlex
import subprocess
import tarfile
import tomllib
from pathlib import Path

import pytest
from PIL import Image

from mmtrain.cli import build_parser, main
from mmtrain.data.config import DataConfig
from mmtrain.demo import debug_pairs
from mmtrain.recipe import load_recipe
from mmtrain.settings.decode import decode

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
GUIDE = (ROOT / "docs/guide.md").read_text(encoding="utf-8")
DATA_DOC = (ROOT / "docs/data.md").read_text(encoding="utf-8")
ARCHITECTURE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
# Too much for a test; their words are parsed and their recipe is read.
HEAVY = ("configs/clip_vit_b32.toml", "mmtrain demo")


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a language, without their fences."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [block for name, block in fenced if name == language]


def commands(text: str) -> list[list[str]]:
    """The words of every line in the sh blocks."""
    lines = [line for block in blocks(text, "sh") for line in block.splitlines()]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def mmtrain_words(words: list[str]) -> list[str] | None:
    """What follows `mmtrain` or `torchrun ... -m mmtrain`; None for another program."""
    if words[0] == "mmtrain":
        return words[1:]
    if words[0] == "torchrun":
        return words[words.index("-m") + 2 :]
    return None


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory like a clone's, with the reader's own photos in it."""
    for name in ("configs", "mmtrain"):
        (tmp_path / name).symlink_to(ROOT / name)
    with tarfile.open(debug_pairs().train) as shard:
        shard.extractall(tmp_path / "photos", filter="data")
    Image.new("RGB", (90, 60), "red").save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_command_is_one_that_we_know():
    for words in commands(README + GUIDE):
        if words[0] == "make":
            done = subprocess.run(
                ["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, check=False
            )
            assert done.returncode == 0, done.stderr
        else:
            assert mmtrain_words(words) is not None, words


def test_commands_and_python_run_in_the_order_of_the_text(clone: Path):
    ran = 0
    for words in commands(GUIDE):
        if words[0] == "mmtrain" and not any(heavy in " ".join(words) for heavy in HEAVY):
            assert main(words[1:]) == 0, words
            ran += 1
    assert ran >= 5
    for page in (GUIDE, README):
        (program,) = blocks(page, "python")
        exec(compile(program, "a page's", "exec"), {})
    for name in ("zero_shot.json", "retrieval.json", "my_model/config.json"):
        assert (clone / name).is_file(), name
    # The run folder is as the guide draws it.
    (drawn,) = [block for block in blocks(GUIDE, "") if block.startswith("recipe.toml")]
    for name in re.findall(r"^(\S+)(?:  (\S+\.json))?", drawn, re.MULTILINE):
        for part in filter(None, name):
            found = part.replace("NAME", "*").replace("00000020", "*")
            if not found.startswith(("eval/", "look/")):
                assert list((clone / "runs" / "first").glob(found)), part


def test_what_readme_tells_to_type_is_in_the_guide_too():
    """Where it is run."""
    ours = [words for words in commands(README) if words[0] != "make"]
    assert len(ours) > 3
    assert all(words in commands(GUIDE) for words in ours)


def test_heavy_commands_name_recipes_and_keys_that_exist():
    heavy = [words for words in commands(GUIDE) if any(h in " ".join(words) for h in HEAVY)]
    assert heavy
    for words in heavy:
        rest = mmtrain_words(words)
        assert rest is not None and rest[0] == "train", words
        assert load_recipe(ROOT / rest[1], rest[2:])


def test_options_in_the_text_exist():
    options = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+(?![\w.-])", README + GUIDE + DATA_DOC))
    known = {"--nproc-per-node", "--format", "--sort", "--out", "--gpus"}
    parsers = [build_parser()]
    while parsers:
        for action in parsers.pop()._actions:
            known |= set(action.option_strings)
            if isinstance(action.choices, dict):
                parsers += action.choices.values()
    assert options <= known


@pytest.mark.parametrize("start", ["unknown key", "data.train =", "--run-dir ="])
def test_mistakes_are_told_as_the_guide_shows(start: str, clone: Path, capsys):
    (shown,) = re.findall(rf"^mmtrain: error: {start}.*$", GUIDE, re.MULTILINE)
    words = {
        "unknown key": ["configs/debug_clip.toml", "--train.step", "5"],
        "data.train =": ["configs/debug_clip.toml", "--data.train", "data/*.tar"],
        "--run-dir =": ["configs/debug_clip.toml", "--run-dir", "runs/first"],
    }[start]
    (clone / "runs" / "first").mkdir(parents=True)
    (clone / "runs" / "first" / "metrics.jsonl").write_text('{"step": 20}\n')
    assert main(["train", *words]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.replace(os.getcwd(), "/data/mmtrain") == shown


def test_the_map_names_every_room():
    (drawn,) = [block for block in blocks(ARCHITECTURE, "") if block.startswith("configs/ ")]
    inside = re.findall(r"^  (\w+(?:/|\.py))  ", drawn, re.MULTILINE)
    for name in inside:
        assert (ROOT / "mmtrain" / name).exists(), name
    for path in (ROOT / "mmtrain").iterdir():
        name = path.name + "/" * path.is_dir()
        if not name.startswith("_") and name.endswith(("/", ".py")):
            # Small ones stand on the line of a larger one; errors and files need no word.
            assert name in inside or name in drawn or name in ("errors.py", "files.py"), name
    for line in drawn.splitlines():
        if not line.startswith(" "):
            assert (ROOT / line.split()[0]).exists(), line


def test_the_floors_are_those_that_the_linter_checks():
    (drawn,) = [block for block in blocks(ARCHITECTURE, "") if block.startswith("cli\n")]
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    layers = pyproject["tool"]["importlinter"]["contracts"][0]["layers"]
    # (x) is a room that need not be there yet; __main__ only starts the command line.
    written = [re.sub(r" \| \(\w+\)|[()]", "", layer) for layer in layers if layer != "__main__"]
    assert drawn.splitlines() == written


def test_links_inside_the_house_lead_somewhere():
    for file in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")):
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", file.read_text(encoding="utf-8")):
            assert (file.parent / target).exists(), f"{file.name}: {target}"


def test_the_architecture_page_names_what_is_there():
    """Every path, and every name of the code, between its backticks."""
    sources = (ROOT / "mmtrain").rglob("*.py")
    words = {word for file in sources for word in re.findall(r"\w+", file.read_text("utf-8"))}
    named = set(re.findall(r"`([^`\n]+)`", ARCHITECTURE))
    paths = {one for one in named if re.search(r"/|\.(?:py|md)$", one) and one != "RUN/"}
    assert len(paths) > 50
    for path in paths:
        there = path.rpartition("/")[0] if path.endswith("/NAME.py") else path
        assert any((room / there).exists() for room in (ROOT, ROOT / "mmtrain")), path
    for name in named - paths - {"RUN/"}:
        assert set(re.findall(r"\w+", name)) <= words, name


def test_a_file_that_the_prose_names_is_there():
    """Of ours, with its room before it; NAME stands for a new one."""
    rooms = "|".join(path.name for path in (ROOT / "mmtrain").iterdir() if path.is_dir())
    pattern = rf"(?<![\w/.-])(?:mmtrain/\w+|(?:mmtrain/)?(?:{rooms})/[\w/]+)\.py\b"
    files = [*(ROOT / "mmtrain").rglob("*.py"), *(ROOT / "docs").glob("*.md")]
    files += [*(ROOT / "configs").glob("*.toml"), ROOT / "CONTRIBUTING.md", ROOT / "README.md"]
    found = {(one, name) for one in files for name in re.findall(pattern, one.read_text("utf-8"))}
    assert len({name for _, name in found}) > 50
    for file, name in found:
        path = ROOT / "mmtrain" / name.removeprefix("mmtrain/")
        theirs = name == "models/vision_transformer.py"  # timm's
        assert theirs or path.name == "NAME.py" or path.exists(), f"{file.name}: {name}"


def test_the_data_page_shows_sections_that_are_read():
    shards, *others = (
        decode(DataConfig, tomllib.loads(section)["data"], path="data")
        for section in blocks(DATA_DOC, "toml")
    )
    assert shards.captions == {"txt": 0.7, "alt_text": 0.3}
    assert any(len(config.mixture) > 1 for config in others)
