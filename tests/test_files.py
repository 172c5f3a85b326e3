"""Files that are replaced whole; what is no file stays what it is."""

import os
import stat
import subprocess
import threading
from pathlib import Path

import pytest

from mmtrain.files import (
    read_numpys,
    remove_partials,
    replace_file,
    replacing,
    replacing_folder,
)


def test_a_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    for content in ("first", b"second"):
        replace_file(path, content)
    assert path.read_text() == "second" and [*tmp_path.iterdir()] == [path]


def test_several_may_write_a_file_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two writers the later one is read, whole, wherever in its write the other one came."""
    path, replace = tmp_path / "out.json", os.replace

    def meanwhile(source: Path, target: Path) -> None:
        monkeypatch.setattr(os, "replace", replace)
        replace_file(path, "the other's, which is longer")
        replace(source, target)

    monkeypatch.setattr(os, "replace", meanwhile)
    replace_file(path, "ours")
    assert path.read_text() == "ours" and [*tmp_path.iterdir()] == [path]


def test_what_cannot_be_written_is_told_by_its_own_name(tmp_path: Path) -> None:
    """And leaves nothing, whatever ended the write."""
    with pytest.raises(FileNotFoundError) as caught:
        replace_file(tmp_path / "gone" / "out.json", "ours")
    assert caught.value.filename == str(tmp_path / "gone" / "out.json")
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "out.json") as partial:
        partial.write_bytes(b"half")
        raise KeyboardInterrupt
    assert [*tmp_path.iterdir()] == []


def test_half_a_character_does_not_lose_the_rest(tmp_path: Path) -> None:
    replace_file(tmp_path / "out.json", "caf\u00e9 \ud83d and \udcff")
    assert (tmp_path / "out.json").read_text(encoding="utf-8") == "caf\u00e9 ? and ?"


def test_pipes_and_devices_are_written_into(tmp_path: Path) -> None:
    """`--out /dev/null` of root made a file of it, for the whole machine."""
    pipe, found = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: found.append(pipe.read_text()), daemon=True)
    reader.start()
    replace_file(pipe, "through")
    reader.join(10)
    assert found == ["through"] and stat.S_ISFIFO(pipe.stat().st_mode)
    main, terminal = os.openpty()
    try:
        replace_file(Path(os.ttyname(terminal)), "shown")
        assert os.read(main, 100) == b"shown"
    finally:
        os.close(main)
        os.close(terminal)


def test_a_file_of_numpys_is_read_again_where_threads_met():
    """In Python's own compiler, which parses the header."""
    calls = []

    def read(*, ends_after: int) -> str:
        calls.append(ends_after)
        if len(calls) <= ends_after:
            raise SystemError("AST constructor recursion depth mismatch (before=37, after=64)")
        return "read"

    assert read_numpys(lambda: read(ends_after=2)) == "read"
    assert len(calls) == 3
    calls.clear()
    with pytest.raises(SystemError):
        read_numpys(lambda: read(ends_after=99))
    assert len(calls) == 5


def test_a_new_folder_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    out, empty = tmp_path / "a" / "new", tmp_path / "empty"
    empty.mkdir()
    for path in (out, empty):
        with pytest.raises(RuntimeError), replacing_folder(path) as folder:
            (folder / "model.safetensors").write_bytes(b"half")
            raise RuntimeError
        assert sorted(tmp_path.iterdir()) == [empty] and not list(empty.iterdir())
    for path in (out, empty):
        with replacing_folder(path) as folder:
            (folder / "decoder").mkdir()
            (folder / "decoder" / "config.json").write_text("{}")
            assert not list(path.glob("[!.]*"))
        assert [each.relative_to(path).as_posix() for each in path.rglob("*")] == [
            "decoder",
            "decoder/config.json",
        ]
        assert path.stat().st_mode == empty.stat().st_mode


@pytest.mark.parametrize("there", [False, True])
def test_of_two_that_write_a_new_folder_the_first_has_it(tmp_path: Path, there: bool) -> None:
    out = tmp_path / "out"
    if there:
        out.mkdir()
    with pytest.raises(FileExistsError) as caught, replacing_folder(out) as late:
        (late / "model.json").write_text("late")
        out.mkdir(exist_ok=True)
        (out / "model.json").write_text("first")
    assert caught.value.filename == str(out)
    assert [path.read_text() for path in out.iterdir()] == ["first"]
    assert list(tmp_path.iterdir()) == [out]


def test_a_folder_that_is_there_keeps_what_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("old")
    (tmp_path / "b.json").write_text("old")
    with replacing_folder(tmp_path) as folder:
        (folder / "b.json").write_text("new")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "a.json": "old",
        "b.json": "new",
    }


@pytest.mark.parametrize("name", [".", "../here", "a/b"])
def test_a_folder_that_is_written_may_be_where_one_is(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with replacing_folder(Path(name)) as folder:
        (folder / "a.json").write_text("new")
    assert [path.name for path in Path(name).iterdir()] == ["a.json"]


def test_a_folder_that_cannot_be_written_is_told_by_its_own_name(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "out"
    with pytest.raises(NotADirectoryError) as caught, replacing_folder(out):
        pass
    assert caught.value.filename == str(out)


def test_what_killed_processes_left_goes(tmp_path: Path) -> None:
    child = subprocess.Popen(["true"])
    child.wait()
    host = os.uname().nodename
    kept = {
        f".out.{host}.{os.getpid()}.0a1b2c3d4e5f.partial",
        f".out.elsewhere.{child.pid}.0a1b2c3d4e5f.partial",
        f".other.{host}.{child.pid}.0a1b2c3d4e5f.partial",
        "out.partial",
    }
    for name in (*kept, f".out.{host}.{child.pid}.0a1b2c3d4e5f.partial"):
        (tmp_path / name).touch()
    (tmp_path / f".out.{host}.{child.pid}.00.partial").mkdir()
    remove_partials(tmp_path, "out")
    assert {path.name for path in tmp_path.iterdir()} == kept
    remove_partials(tmp_path)
    assert f".other.{host}.{child.pid}.0a1b2c3d4e5f.partial" not in os.listdir(tmp_path)
