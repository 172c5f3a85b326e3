"""One question about an image, whichever set it is of."""

from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

Form = Literal["vqa", "vizwiz", "gqa", "textvqa", "pope", "scienceqa", "choice"]
"""Whose official evaluation judges an answer; `vqa`: VQAv2's, and every set without its own."""
FORMS: tuple[Form, ...] = get_args(Form)


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question about an image."""

    question_id: int | str
    """Unique in its set; result files name it."""
    question: str
    """As it was asked."""
    answers: tuple[str, ...] = ()
    """Every annotator's answer (VQAv2 and VizWiz have ten); empty where the set has none."""
    question_type: str = ""
    """Such as `how many`; empty where the set tells none."""
    answer_type: str = ""
    """Such as `yes/no`; empty where the set tells none."""
    extra: dict[str, Any] = field(default_factory=dict)
    """What only one set has, such as GQA's `entailed`."""

    @property
    def form(self) -> Form:
        """The set's form: what `extra` says, else told by what only it has."""
        if "form" in self.extra:
            return self.extra["form"]
        if "isBalanced" in self.extra or "types" in self.extra:
            return "gqa"
        return "vizwiz" if "answerable" in self.extra else "vqa"

    @property
    def has_image(self) -> bool:
        """Whether it is about one; ScienceQA asks many without."""
        return not self.extra.get("no_image", False)

    def to_json(self) -> dict[str, Any]:
        """As a shard's .json holds it; what is empty is left out."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        values["answers"] = list(self.answers)
        return {name: value for name, value in values.items() if value not in ("", [], {})}


@dataclass(frozen=True, kw_only=True)
class Said:
    """A question and what was answered, by a model or whoever."""

    question: Question
    """With the right answers, where the set has them."""
    prediction: str
    """The answer."""
    is_cut: bool = False
    """Whether it stops where there was no room for more, not where the model ended it."""

    @property
    def shown(self) -> str:
        """The answer as it is shown."""
        return as_shown(self.prediction, is_cut=self.is_cut)


def as_shown(answer: str, *, is_cut: bool) -> str:
    """An answer to look at: one that was cut does not read as a whole one."""
    return f"{answer} … (cut off)".lstrip() if is_cut else answer


def questions_from_json(fields: dict[str, Any]) -> tuple[Question, ...]:
    """The questions in a sample's .json, as `Question.to_json` wrote them.

    Raises:
        ValueError: there are none, or one is not of this form.
    """
    rows = fields.get("questions")
    if not isinstance(rows, list) or not rows:
        raise ValueError("no questions")
    return tuple(_from_json(row) for row in rows)


def _from_json(row: Any) -> Question:
    """One row, of the types that `Question` has: `answers = "cat"` would be read as c, a and t."""
    try:
        question = Question(**{**row, "answers": tuple(row.get("answers", ()))})
    except (TypeError, AttributeError) as error:
        raise ValueError("questions malformed") from error
    texts = (question.question, question.question_type, question.answer_type, *question.answers)
    fits = isinstance(row.get("answers", []), list) and isinstance(question.extra, dict)
    fits = fits and question.extra.get("form", "vqa") in FORMS
    if not fits or not all(isinstance(text, str) for text in texts):
        raise ValueError("questions malformed")
    return question
