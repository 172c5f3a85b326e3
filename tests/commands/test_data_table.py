"""docs/data.md's tables of what each `mmtrain data` command takes, row by row."""

from pathlib import Path

import pytest

from mmtrain.cli.program import main
from tests.data.dialogues.dialogue_files import llava_row, picture, write_llava
from tests.data.questions.vqa_files import write_set as write_questions
from tests.data.shard_files import encoded, write_set, write_shard
from tests.data.shard_files import picture as drawn_picture
from tests.data.storage.fault_server import serving

_DOCS = Path("docs/data.md").resolve()
COMMANDS = {
    "index": (),
    "check": (),
    "stats": ("--json", "figures.json"),
    "view": ("--out", "page.html"),
    "make": ("--out", "made"),
    "split": ("--out", "parts", "--fractions", "a=0.5", "b=0.5"),
}


OF_RECIPES = {
    "show": ("--step", "1"),
    "bench": ("--workers", "0", "--batches", "2"),
    "labels": (),
}


def rows(first: str = "data") -> dict[str, dict[str, str]]:
    """What the table whose first heading is this says of each kind of data, by command."""
    lines = [line for line in _DOCS.read_text().splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    head = next(number for number, row in enumerate(cells) if row[0] == first and "`" in row[1])
    names = [name.strip("`") for name in cells[head][1:]]
    table = {}
    for row in cells[head + 2 :]:
        if len(row) != len(names) + 1:
            break
        table[row[0]] = dict(zip(names, row[1:], strict=True))
    return table


def write(kind: str, folder: Path) -> str:
    """Some data of a kind of the table -> how they are named."""
    if kind in ("shards of images with captions", "shards in a store"):
        return write_set(folder / "set", (6, 6))
    if kind.startswith("images with captions"):
        for number in range(12):
            (folder / f"{number}.png").write_bytes(encoded(drawn_picture(seed=number), "PNG"))
        cells = "".join(f"{number}.png,a\n" for number in range(12))
        (folder / "table.csv").write_text(f"filepath,txt\n{cells}")
        return "table.csv"
    if kind == "a folder a class":
        for number in range(12):
            path = folder / "classes" / "ab"[number % 2] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(drawn_picture(seed=number), "PNG"))
        return "classes"
    if kind.startswith("questions"):
        asked = {"question_id": "1", "question": "which?", "answers": ["red"]}
        files = {"png": picture(1), "json": {"questions": [asked]}}
        return str(write_shard(folder / "asked.tar", [("1", files)]))
    if kind == "dialogues in a file":
        return str(write_llava(folder, 3))
    if kind == "dialogues in shards":
        row = {name: value for name, value in llava_row(0).items() if name != "image"}
        files = {"png": picture(0), "json": row}
        return str(write_shard(folder / "talk.tar", [("0", files)]))
    assert kind == "`pipe:COMMAND`"
    return "pipe:cat set/000.tar"


def test_the_table_has_every_command():
    assert all(list(row) == list(COMMANDS) for row in rows().values())
    assert len(rows()) == 8
    assert all(list(row) == list(OF_RECIPES) for row in rows("a recipe's data").values())
    assert len(rows("a recipe's data")) == 5


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))


@pytest.mark.parametrize("kind", [kind for kind in rows() if "store" not in kind])
def test_each_cell_is_what_the_command_does(tmp_path, capsys, kind):
    check(kind, write(kind, tmp_path), capsys)


@pytest.mark.slow
def test_shards_in_a_store_are_taken_as_those_of_a_disk(tmp_path, capsys):
    kind = "shards in a store"
    write(kind, tmp_path)
    with serving(tmp_path / "set") as web:
        check(kind, f"{web.url}/{{000..001}}.tar", capsys)


def check(kind, data, capsys):
    """Run each command on some data."""
    for name, cell in rows()[kind].items():
        status = main(["data", name, data, *COMMANDS[name]])
        told = capsys.readouterr().err
        if cell == "yes":
            assert (status, told) == (0, ""), (kind, name)
        else:
            assert status == 2 and cell in told and len(told.splitlines()) == 1, (kind, name, told)


def recipe(kind: str, folder: Path) -> list[str]:
    """A recipe whose data are of a kind of the table, and the options beside it."""
    configs = _DOCS.parents[1] / "configs"
    if kind == "a mixture":
        return [str(configs / "debug_mixture.toml")]
    if kind == "dialogues":
        return [str(configs / "debug_dialogues.toml")]
    if kind == "questions about images":
        files = write_questions(folder)
        words = [f"--vqa.data.{name}={files[name]}" for name in ("questions", "annotations")]
        words += ["--data.train", str(files["data"]), "--train.batch_size", "4"]
        words += ["--train.microbatches", "1", "--vqa.min_count", "1", "--vqa.data.per_image", "2"]
        return [str(configs / "vqa_easy_generate.toml"), *words]
    words = [str(configs / "debug_clip.toml")]
    if kind == "images with captions":
        return words
    assert kind == "a stream"
    return [*words, "--data.stream", "true", "--train.epochs", "none", "--train.steps", "4"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", rows("a recipe's data"))
def test_each_cell_of_recipes_is_what_the_command_does(tmp_path, monkeypatch, capsys, kind):
    words = recipe(kind, tmp_path)
    monkeypatch.chdir(_DOCS.parents[1])  # where the debug recipes find their data
    for name, cell in rows("a recipe's data")[kind].items():
        status = main(["data", name, *words, *OF_RECIPES[name]])
        told = capsys.readouterr().err
        if cell == "yes":
            assert status == 0, (kind, name, told)
        else:
            assert status == 2 and cell in told and len(told.splitlines()) == 1, (kind, name, told)
