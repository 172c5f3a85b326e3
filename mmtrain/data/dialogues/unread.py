"""What a row or a turn says beside its words that nothing here reads: such a row is a bad sample.

Left out in silence, an answer that a file marks as not to be learnt would be learnt, and a call of
a tool would be a turn without it.
"""

from collections.abc import Mapping
from typing import Any

from mmtrain.data.images.decode import may_be_image
from mmtrain.data.sample_error import SampleError

_NOTHING: tuple[Any, ...] = (None, "", [], {}, "[]")
ROW: dict[str, tuple[Any, ...]] = dict.fromkeys(
    ("tools", "video", "videos", "audio", "audios"), _NOTHING
)
"""Fields of a row, and with which values they say nothing."""
TURN: dict[str, tuple[Any, ...]] = {
    "tool_calls": _NOTHING,
    "function_call": _NOTHING,
    "reasoning_content": _NOTHING,
    "thinking": _NOTHING,
    # Which answers are learnt: OpenAI's, and those of programs that fine-tune.
    "weight": (None, 1),
    "loss": (None, True),
    "train": (None, True),
}
"""Fields of a turn, and with which values they say nothing."""


def refuse_unread(
    fields: Mapping[str, Any], known: Mapping[str, tuple[Any, ...]], told: str = ""
) -> None:
    """Refuse fields that say something.

    Args:
        fields: a row or a turn.
        known: `ROW` or `TURN`.
        told: names the turn in messages.

    Raises:
        SampleError: naming the first.
    """
    for name, nothing in known.items():
        value = fields.get(name)
        if value not in nothing:
            raise SampleError("says what is not read", detail=f"{told}{name} = {value!r:.60}")


def refuse_unread_image(row: Mapping[str, Any]) -> None:
    """Refuse a row that names an image in another field than those of images, where it names none
    there: it would be learnt without. Ids may be called as images are.

    Raises:
        SampleError: naming the field.
    """
    for name, value in row.items():
        if not name.endswith("id") and may_be_image(value):
            raise SampleError("says what is not read", detail=f"{name}, an image; call it image")
