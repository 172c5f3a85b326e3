"""docs/data.md's table of what each `mmtrain data` command takes, row by row."""

from pathlib import Path

import pytest

from mmtrain.cli.program import main
from tests.data.dialogues.dialogue_files import llava_row, picture, write_llava
from tests.data.shard_files import encoded, write_set, write_shard
from tests.data.shard_files import picture as drawn_picture

_DOCS = Path("docs/data.md").resolve()
COMMANDS = {
    "index": (),
    "check": (),
    "stats": ("--json", "figures.json"),
    "view": ("--out", "page.html"),
    "make": ("--out", "made"),
    "split": ("--out", "parts", "--fractions", "a=0.5", "b=0.5"),
}


def rows() -> dict[str, dict[str, str]]:
    """What the table says of each kind of data, by command."""
    lines = [line for line in _DOCS.read_text().splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    head = next(number for number, row in enumerate(cells) if row[:2] == ["data", "`index`"])
    names = [name.strip("`") for name in cells[head][1:]]
    table = {}
    for row in cells[head + 2 :]:
        if len(row) != len(names) + 1:
            break
        table[row[0]] = dict(zip(names, row[1:], strict=True))
    return table


def write(kind: str, folder: Path) -> str:
    """Some data of a kind of the table -> how they are named."""
    if kind == "shards of images with captions":
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
    assert len(rows()) == 7


@pytest.mark.parametrize("kind", rows())
def test_each_cell_is_what_the_command_does(tmp_path, monkeypatch, capsys, kind):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    data = write(kind, tmp_path)
    for name, cell in rows()[kind].items():
        status = main(["data", name, data, *COMMANDS[name]])
        told = capsys.readouterr().err
        if cell == "yes":
            assert (status, told) == (0, ""), (kind, name)
        else:
            assert status == 2 and cell in told and len(told.splitlines()) == 1, (kind, name, told)
