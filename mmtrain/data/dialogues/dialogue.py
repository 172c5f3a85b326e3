"""One dialogue, whichever form a file has it in.

LLaVA's and ShareGPT's  conversations: [{from: human | gpt | system, value}], image or images
messages                messages: [{role: user | assistant | system, content}], images; content is
                        a text, or a list of {type: text, text} and {type: image}, which may say by
                        index: 0 which of the images it shows
the Cauldron's          texts: [{user, assistant}], images
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

from mmtrain.data.dialogues.unread import ROW, TURN, refuse_unread
from mmtrain.data.sample_error import SampleError

IMAGE = "<image>"
"""Where an image stands in a text."""
FORMS = ("conversations", "messages", "texts")
"""The fields that a dialogue is in."""

Role = Literal["system", "user", "assistant"]
_ROLES: dict[str, Role] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
}
_PART_IMAGES = ("image", "path", "url", "image_url")


class Turn(NamedTuple):
    """What one of them says."""

    role: Role
    text: str
    """With `IMAGE` where an image stands."""


@dataclass(frozen=True, kw_only=True)
class Dialogue:
    """Turns, and what images they show."""

    turns: tuple[Turn, ...]
    """The system's first if there is one, then user and assistant in turn."""
    names: tuple[Any, ...] = ()
    """The images as the row has them: paths, or themselves; of shards there may be none."""
    says_places: bool = True
    """Whether the form has places of images; without one images come before the first question."""

    @property
    def num_places(self) -> int:
        """Places of images."""
        return sum(turn.text.count(IMAGE) for turn in self.turns)

    def with_images(self, num_images: int) -> "Dialogue":
        """The same with a place for each of its images.

        Raises:
            SampleError: there are more places, or fewer.
        """
        places = self.num_places
        if num_images == places:
            return self
        if places or self.says_places:
            told = f"{_count(num_images, 'image')}, {_count(places, f'{IMAGE} place')}"
            raise SampleError("images and their places differ in number", detail=told)
        return replace(self, turns=with_first(self.turns, IMAGE * num_images))

    def to_json(self) -> dict[str, Any]:
        """A row of the form `messages`, without the images."""
        turns = [{"role": turn.role, "content": turn.text} for turn in self.turns]
        return {"messages": turns}


def with_first(turns: tuple[Turn, ...], text: str) -> tuple[Turn, ...]:
    """The turns with a text before the first question."""
    first = next(number for number, turn in enumerate(turns) if turn.role == "user")
    changed = turns[first]._replace(text=text + turns[first].text)
    return (*turns[:first], changed, *turns[first + 1 :])


def parse_dialogue(fields: Mapping[str, Any]) -> Dialogue:
    """The dialogue in a row.

    Raises:
        SampleError: there is none, or it cannot be learnt from.
    """
    found = [name for name in FORMS if fields.get(name) is not None]
    if len(found) != 1:
        told = f"{' and '.join(found)} are there" if found else f"has {', '.join(fields) or 'no'}"
        raise SampleError("several dialogues in a row" if found else "no dialogue", detail=told)
    refuse_unread(fields, ROW)
    rows = _rows(fields[found[0]], found[0])
    shown = _Shown()
    if found[0] == "texts":
        turns = [turn for number, row in enumerate(rows) for turn in _exchange(row, number)]
        says_places = False
    else:
        turns = [_turn(row, number, shown) for number, row in enumerate(rows)]
        # A text alone has no way to say where an image stands but the place itself.
        says_places = found[0] == "conversations" or any(
            isinstance(row.get("content"), list) for row in rows
        )
    turns = _with_system(turns, fields.get("system"))
    _check_turns(turns)
    names = _names(fields)
    if shown.names and names:
        raise SampleError("images named twice", detail="in the turns, and beside them")
    return Dialogue(
        turns=tuple(turns),
        names=tuple(shown.names) or shown.chosen(names),
        says_places=says_places or bool(shown.names),
    )


@dataclass(frozen=True, kw_only=True)
class _Shown:
    """What the parts of turns say of their images, in their order."""

    names: list[Any] = field(default_factory=list)
    """The images themselves, or their paths."""
    numbers: list[Any] = field(default_factory=list)
    """Which of the row's images each is; None where a part does not say it."""

    def chosen(self, names: tuple[Any, ...]) -> tuple[Any, ...]:
        """The row's images in the order in which they are shown.

        Raises:
            SampleError: a part shows one that is not there, or some say which and some do not.
        """
        numbers = self.numbers
        if all(number is None for number in numbers) or numbers == [*range(len(numbers))]:
            return names
        # Of a shard the images have no names here, and stand in the order of their files.
        if not all(type(number) is int and 0 <= number < len(names) for number in numbers):
            told = f"index {', '.join(map(str, numbers))} of {_count(len(names), 'image')}"
            raise SampleError("images and their places differ in order", detail=told)
        return tuple(names[number] for number in numbers)


def _with_system(turns: list[Turn], said: Any) -> list[Turn]:
    """The turns behind what the row's own field has the system say."""
    if said in (None, ""):
        return turns
    if not isinstance(said, str) or any(turn.role == "system" for turn in turns):
        what = "in system and in a turn" if isinstance(said, str) else f"system = {said!r:.60}"
        raise SampleError("dialogue malformed", detail=what)
    return [Turn("system", said), *turns]


def _rows(value: Any, name: str) -> list[Mapping[str, Any]]:
    """The rows of a list; the `datasets` library may give a table of columns."""
    if isinstance(value, Mapping):
        columns = list(value.values())
        if columns and all(isinstance(each, list) for each in columns):
            value = [dict(zip(value, row, strict=False)) for row in zip(*columns, strict=False)]
    if not isinstance(value, list) or not all(isinstance(row, Mapping) for row in value):
        raise SampleError("dialogue malformed", detail=f"{name} is no list of turns")
    return value


def _turn(row: Mapping[str, Any], number: int, shown: _Shown) -> Turn:
    refuse_unread(row, TURN, f"turn {number + 1}: ")
    named, key = row.get("from"), "value"
    if named is None:
        named, key = row.get("role"), "content"
    elif row.get("role") not in (None, named) and _ROLES.get(named) != _ROLES.get(row["role"]):
        raise SampleError("two roles of a turn", detail=f"turn {number + 1}: from and role")
    role = _ROLES.get(named) if isinstance(named, str) else None
    if role is None:
        known = " or ".join(_ROLES)
        raise SampleError("unknown role", detail=f"turn {number + 1}: {named!r}, not {known}")
    return Turn(role, _text(row.get(key), f"turn {number + 1}: {key}", shown))


def _exchange(row: Mapping[str, Any], number: int) -> tuple[Turn, Turn]:
    told = f"texts {number + 1}"
    return (
        Turn("user", _text(row.get("user"), f"{told}: user", None)),
        Turn("assistant", _text(row.get("assistant"), f"{told}: assistant", None)),
    )


def _text(value: Any, told: str, shown: _Shown | None) -> str:
    """A text, or the parts of one; what they say of images goes to `shown`."""
    if isinstance(value, str):
        return value
    if shown is None or not isinstance(value, list):
        raise SampleError("dialogue malformed", detail=f"{told} is no text")
    return "".join(_part(part, told, shown) for part in value)


def _part(part: Any, told: str, shown: _Shown) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return part["text"]
    if kind in ("image", "image_url"):
        found = [part[name] for name in _PART_IMAGES if part.get(name) is not None]
        name = found[0] if found else None
        if isinstance(name, Mapping) and "url" in name:
            name = name["url"]
        if name is None:
            shown.numbers.append(part.get("index"))
        else:
            shown.names.append(name)
        return IMAGE
    raise SampleError("dialogue malformed", detail=f"{told} has a part that is no text or image")


def _names(fields: Mapping[str, Any]) -> tuple[Any, ...]:
    found = [fields[name] for name in ("image", "images") if fields.get(name) not in (None, "", [])]
    if len(found) > 1:
        raise SampleError("images named twice", detail="in image and in images")
    value = found[0] if found else []
    return tuple(value) if isinstance(value, list) else (value,)


def _check_turns(turns: list[Turn]) -> None:
    """Refuse what is no dialogue between a user and an assistant."""
    roles = [turn.role for turn in turns]
    if "assistant" not in roles:
        raise SampleError("dialogue without an assistant")
    for number, turn in enumerate(turns, start=1):
        if number > 1 and turn.role == roles[number - 2]:
            raise SampleError(
                "two turns of one role in a row", detail=f"turns {number - 1} and {number}"
            )
        if turn.role == "system" and number > 1:
            raise SampleError("system's turn is not the first", detail=f"turn {number}")
        if turn.role == "assistant" and not turn.text.strip():
            raise SampleError("empty assistant turn", detail=f"turn {number}")
        if turn.role != "user" and IMAGE in turn.text:
            raise SampleError(f"{IMAGE} in no user's turn", detail=f"turn {number}")
    if next(role for role in roles if role != "system") == "assistant":
        raise SampleError("the assistant speaks first")


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
