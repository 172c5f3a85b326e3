"""Multiple choice: how many answers name a letter, and the right one."""

from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from mmtrain.data.questions.letters import letter_of
from mmtrain.data.questions.options import options_of
from mmtrain.data.questions.question import Said


def is_right(said: Said) -> bool:
    """Whether the letter that it names is the right one."""
    return letter_of(said.prediction, options_of(said.question)) == said.question.answers[0]


def letter_figures(answered: Sequence[Said]) -> dict[str, Any]:
    """How many answers name no letter, which are wrong; of ScienceQA also accuracy by what its
    published table has: subject, context (a question with text and image is in both), grade."""
    unread = sum(letter_of(one.prediction, options_of(one.question)) is None for one in answered)
    figures: dict[str, Any] = {"num_unread": unread}
    for name in ("subject", "context", "grade"):
        groups: dict[str, list[bool]] = defaultdict(list)
        for one in answered:
            value = one.question.extra.get(name, [])
            for kind in [value] if isinstance(value, str) else value:
                groups[kind].append(is_right(one))
        if groups:
            figures[f"per_{name}"] = {kind: fmean(some) for kind, some in sorted(groups.items())}
    return figures
