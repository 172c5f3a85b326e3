"""metrics.jsonl: one line for each logged step whatever happened; the console; the mirrors."""

import io
import json
from pathlib import Path

import pytest

from mmtrain.errors import UsageError
from mmtrain.train.metric_mirrors import LogConfig
from mmtrain.train.metrics import MetricsLog, read_metrics


def record(step: int, **numbers: float) -> dict[str, float]:
    """A step's numbers."""
    base = {"step": step, "loss": 1.0 / step, "samples_per_second": 1234.5}
    return base | {"data_wait_fraction": 0.25} | numbers


def write(run_dir: Path, steps: range, *, start: int = 0, **config) -> str:
    """Log some steps -> what the console showed."""
    stream = io.StringIO()
    log = MetricsLog(run_dir, LogConfig(**config), total_steps=10, start_step=start, stream=stream)
    with log:
        for step in steps:
            log.log(record(step))
    return stream.getvalue()


def test_lines_are_exact(tmp_path: Path) -> None:
    """Floats come back bit for bit; what is not finite is null, as JSON has nothing else."""
    with MetricsLog(tmp_path, LogConfig(), total_steps=2, stream=io.StringIO()) as log:
        log.log(record(1, loss=0.1 + 0.2))
        log.log(record(2, loss=float("nan")))
    first, second = read_metrics(tmp_path / "metrics.jsonl")
    assert first["loss"] == 0.1 + 0.2 and second["loss"] is None


def test_resume_drops_what_will_be_written_again(tmp_path: Path) -> None:
    """Lines after the checkpoint's step and a half-written one go; every step is there once."""
    write(tmp_path, range(1, 7))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')
    write(tmp_path, range(5, 9), start=4)
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == list(range(1, 9))


def test_plain_console_line(tmp_path: Path) -> None:
    """What a log file shows."""
    line = write(tmp_path, range(1, 2)).splitlines()[0]
    assert line.startswith("step 1/10  loss 1.0000  1,234 samples/s  data wait 25%  eta 0:00:")


def test_live_console(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal one line is redrawn, and messages do not tear it."""
    monkeypatch.setenv("TERM", "xterm")

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    with MetricsLog(tmp_path, LogConfig(), total_steps=10, stream=stream) as log:
        log.log(record(1))
        log.say("step 1  val: top1 3.00%")
    shown = stream.getvalue()
    assert "loss 1.0000" in shown and "step 1  val: top1 3.00%" in shown and "1/10" in shown


def test_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """metrics.jsonl that cannot be written ends the run with the remedy, not a traceback."""
    with MetricsLog(tmp_path, LogConfig(), total_steps=2, stream=io.StringIO()) as log:
        log.log(record(1))

        def full(text: str) -> int:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(
            log, "_file", type("Full", (), {"write": full, "close": log._file.close})
        )
        with pytest.raises(UsageError, match=r"metrics.jsonl cannot be written \(No space left"):
            log.log(record(2))


def test_numbers_are_plain_json(tmp_path: Path) -> None:
    """Any tool reads them."""
    write(tmp_path, range(1, 2))
    assert set(json.loads((tmp_path / "metrics.jsonl").read_text())) == set(record(1))


def test_quiet_shows_no_record_and_says_the_rest(tmp_path: Path) -> None:
    stream = io.StringIO()
    log = MetricsLog(tmp_path, LogConfig(), total_steps=2, stream=stream, quiet=True)
    with log:
        log.log(record(1))
        log.say("an evaluation failed")
    assert stream.getvalue() == "an evaluation failed\n"
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1
