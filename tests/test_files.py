"""Files that are replaced whole; what is no file stays what it is."""

import os
import stat
import threading
from pathlib import Path

import pytest

from mmtrain.files import read_numpys, replace_file, replacing


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
