"""What became of each sample of an evaluation, beside its figures: for comparing two results."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from mmtrain.data.questions.question import as_shown
from mmtrain.data.storage.addresses import base_name
from mmtrain.errors import UsageError
from mmtrain.files import parse_json, replace_file

if TYPE_CHECKING:
    from mmtrain.data.sources.source import SampleSource


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One sample's part in a figure."""

    metric: str
    """The figure, which is the mean of its outcomes."""
    id: str
    """Of the question, the image or the text; unique within the metric."""
    image: str
    """What the outcomes of one image have in common: they are not independent of each other."""
    score: float
    """From 0 to 1."""
    kinds: Mapping[str, str] = field(default_factory=dict)
    """Its types by name, such as question_type."""
    asked: str = ""
    """The question; empty where there is none."""
    wanted: str = ""
    """What would have been right."""
    said: str = ""
    """What the model gave."""
    is_cut: bool = False
    """Whether that stops where there was no room for more."""

    @property
    def shown(self) -> str:
        """What the model gave, as it is shown."""
        return as_shown(self.said, is_cut=self.is_cut)


def sample_names(source: "SampleSource", samples: Iterable[int]) -> list[str]:
    """Names of samples by which two evaluations find each other's, in whatever order each read
    them: the key, with the name of its file, or of its file and folders, where keys repeat."""
    numbers = list(samples)
    keys = [source.key(number) for number in numbers]
    if len(set(keys)) == len(keys):
        return keys
    places = [source.place(number) for number in numbers]
    return told_apart(
        keys,
        [f"{base_name(place)}/{key}" for place, key in zip(places, keys, strict=True)],
        [f"{place}/{key}" for place, key in zip(places, keys, strict=True)],
    )


def name_order(names: Sequence[str]) -> list[int]:
    """Places of names, by letter: an order that does not depend on the data's."""
    return sorted(range(len(names)), key=names.__getitem__)


def told_apart(names: Sequence[str], *fuller: Sequence[str]) -> list[str]:
    """Unique names: each in the first form that no other has; numbered where all forms repeat."""
    found = list(names)
    for form in fuller:
        often = Counter(found)
        found = [
            other if often[name] > 1 else name for name, other in zip(found, form, strict=True)
        ]
    taken: set[str] = set()
    for place, name in enumerate(found):
        number = 1
        while found[place] in taken:
            number += 1
            found[place] = f"{name} ({number})"
        taken.add(found[place])
    return found


def outcomes_path(result: Path) -> Path:
    """Where the outcomes of a result's file (NAME.json) are."""
    return result.with_suffix(".outcomes.jsonl")


def outcome_lines(outcomes: Iterable[Outcome]) -> bytes:
    """A line for each."""
    rows = (asdict(one) for one in outcomes)
    kept = ({key: value for key, value in row.items() if not _is_default(value)} for row in rows)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept)
    # A key may hold half a character, which UTF-8 cannot write.
    return text.encode("utf-8", "replace")


def _is_default(value: Any) -> bool:
    return value is False or value in ({}, "")  # a score of 0 is equal to False


def write_outcomes(result: Path, outcomes: Sequence[Outcome]) -> None:
    """Beside a result's file; of a result that has none, what an earlier one left is removed.

    Raises:
        OSError: it cannot be written.
    """
    path = outcomes_path(result)
    if outcomes:
        replace_file(path, outcome_lines(outcomes))
    else:
        path.unlink(missing_ok=True)


def read_outcomes(result: Path) -> dict[str, dict[str, Outcome]]:
    """The outcomes of a result, by metric and id.

    Args:
        result: NAME.json, as `mmtrain eval` wrote it.

    Raises:
        UsageError: there are none, the file is damaged, or it is of another result.
    """
    figures, path = read_figures(result), outcomes_path(result)
    if not path.is_file():
        raise UsageError(
            f"{result} has no {path.name} beside it; `mmtrain eval vqa`, `answers`, `zero-shot`, "
            "`knn`, `linear-probe`, `pairs` and `retrieval` write both: repeat the evaluation"
        )
    found: dict[str, dict[str, Outcome]] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        outcome = _read_line(line, f"{path}:{number}")
        held = found.setdefault(outcome.metric, {})
        if outcome.id in held:
            raise UsageError(f"{path}:{number}: {outcome.id} is there twice; repeat the evaluation")
        held[outcome.id] = outcome
    for metric, held in found.items():
        mean, told = fmean(one.score for one in held.values()), figures.get(metric)
        if not isinstance(told, float | int) or not abs(mean - told) <= 1e-6:  # NaN is neither
            raise UsageError(
                f"{path} gives {metric} = {mean:.6g}, but {result.name} has {told}: they are of "
                "two evaluations; repeat one"
            )
    if not found:
        raise UsageError(f"{path} is empty; repeat the evaluation")
    return found


def read_figures(path: Path) -> dict[str, Any]:
    """The figures of a result, NAME.json.

    Raises:
        UsageError: it cannot be read, or is something else.
    """
    try:
        found = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise UsageError(f"{path} is no result of `mmtrain eval`")
    return found


def _read_line(line: bytes, place: str) -> Outcome:
    try:
        outcome = Outcome(**parse_json(line))
        texts = (outcome.metric, outcome.id, outcome.image, *outcome.kinds.values())
        texts += (outcome.asked, outcome.wanted, outcome.said)
        fits = isinstance(outcome.is_cut, bool) and 0 <= outcome.score <= 1
        if fits and all(isinstance(text, str) for text in texts):
            return outcome
    except (ValueError, TypeError, AttributeError) as error:
        raise UsageError(f"{place} is damaged ({error}); repeat the evaluation") from error
    raise UsageError(f"{place} is damaged; repeat the evaluation")
