"""An evaluation of a run that could not be done, as the run's folder keeps it."""

import json
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path

from mmtrain.eval.together import in_a_line, is_foreseen
from mmtrain.files import replace_file

FAILED = ".failed.json"
"""Behind an evaluation's name: why it failed last."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why an evaluation could not be done."""

    error: str
    """In a line."""
    trace: str | None = None
    """The traceback of what nobody foresaw. None: the line says all."""

    @classmethod
    def of(cls, error: Exception) -> "Failure":
        """From what was raised."""
        trace = None if is_foreseen(error) else "".join(traceback.format_exception(error))
        return cls(error=in_a_line(error), trace=trace)


def write_failure(folder: Path, name: str, failure: Failure, *, step: int, repeat: str) -> None:
    """Keep it as NAME.failed.json.

    Args:
        folder: RUN/eval.
        name: of the evaluation.
        failure: why.
        step: that the weights were of.
        repeat: the command that does the evaluation again.

    Raises:
        OSError: it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    content = {"name": name, "step": step, **asdict(failure), "repeat": repeat}
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    replace_file(folder / f"{name}{FAILED}", text.encode("utf-8", "replace"))


def forget_failure(folder: Path, name: str) -> None:
    """Drop what an earlier attempt left, once the evaluation is done."""
    (folder / f"{name}{FAILED}").unlink(missing_ok=True)
