"""A file of answers to choose among, one a line."""

from pathlib import Path

from mmtrain.errors import UsageError


def read_answer_list(path: Path) -> list[str]:
    """Its lines without what is empty, each once.

    Raises:
        UsageError: it cannot be read, or holds none.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").split("\n")]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"answers = {path} cannot be read: {error}") from error
    # A line twice would be two answers that share the probability of one.
    answers = [line for line in dict.fromkeys(lines) if line]
    if not answers:
        raise UsageError(f"answers = {path} holds no answer; write one a line")
    return answers
