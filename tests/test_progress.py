"""The line that says how far a long job is."""

import io
import re
import sys
from pathlib import Path

import pytest

from mmtrain import progress
from mmtrain.progress import Progress, live_bar


class Terminal(io.StringIO):
    """What a person looks at."""

    def isatty(self) -> bool:
        return True


def seen(written: str, width: int) -> list[str]:
    """The lines that stand on a terminal of a width after all that was written to it."""
    lines, row, column = [""], 0, 0
    for code, text in re.findall(r"(\x1b\[[0-9;?]*[A-Za-z]|\r|\n)|([^\x1b\r\n]+)", written):
        if code == "\r":
            column = 0
        elif code == "\n":
            row, column = row + 1, column
            lines += [""] * (row + 1 - len(lines))
        elif code.endswith("A"):
            row -= int(code[2:-1] or 1)
        elif code.endswith("K"):
            lines[row] = ""
        elif text:
            assert column + len(text) <= width, "it would go on in the next line, and tear both"
            lines[row] = lines[row][:column].ljust(column) + text
            column += len(text)
        if code == "\n":
            column = 0
    return [line.rstrip() for line in lines]


@pytest.mark.parametrize("width", [40, 60, 120])
def test_a_live_line_fits_and_goes(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    """Nothing torn, whatever is printed meanwhile; nothing left at the end, an error's too."""
    for name, value in {"TERM": "xterm", "COLUMNS": str(width), "LINES": "24"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_COLOR", raising=False)
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    with pytest.raises(ZeroDivisionError), Progress("images") as told:
        told(0, 1_281_167)
        told(1_234_567, 1_281_167)
        print("one thing", file=sys.stderr)
        1 / 0  # noqa: B018
    print("mmtrain: error", file=sys.stderr)
    assert "1,234,567 of 1,281,167 images" in re.sub(r"\x1b\[[0-9;]*m", "", screen.getvalue())
    assert [line for line in seen(screen.getvalue(), width) if line] == [
        "one thing",
        "mmtrain: error",
    ]


def test_what_is_piped_stays_in_the_pipe(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`mmtrain ... > file` on a terminal: what is printed goes into the file."""
    monkeypatch.setenv("TERM", "xterm")
    screen = Terminal()
    with Progress("images", stream=screen) as told:
        told(1, 3)
        print("a result")
    assert capsys.readouterr().out == "a result\n" and "a result" not in screen.getvalue()


def test_plain_lines_are_few_and_quiet_ones_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a log: one every five seconds."""
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    log, nothing = io.StringIO(), Terminal()
    loud, quiet = Progress("images", stream=log), Progress("images", stream=nothing, quiet=True)
    for now in range(0, 13):
        loud(now * 100, 1200)
        quiet(now * 100, 1200)
    assert log.getvalue() == "600 of 1,200 images\n1,200 of 1,200 images\n"
    assert nothing.getvalue() == ""


def test_every_command_tells_by_it() -> None:
    """No room has a line of its own."""
    rooms = Path(progress.__file__).parent
    own = [
        str(path.relative_to(rooms))
        for path in rooms.rglob("*.py")
        if re.search(r"rich\.progress|rich\.live|\btqdm\b", path.read_text(encoding="utf-8"))
    ]
    assert sorted(own) == ["progress.py", "train/console.py"]


def test_updates_a_minute_apart_tell_a_speed() -> None:
    """The time that is left is there from the second on, whatever lies between two."""
    bar, now = live_bar(("{task.completed}",), Terminal()), [0.0]
    bar.get_time = lambda: now[0]
    task = bar.add_task("steps", total=100)
    found = []
    for done in (10, 20, 30):
        now[0] += 60
        bar.update(task, completed=done)
        found.append(bar.tasks[0].time_remaining)
    assert found == [None, 480, 420]
