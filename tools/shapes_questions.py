"""Questions about pictures of several coloured shapes, by kind, with true answers."""

import random
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from mmtrain.data.questions.question import Question
from tools.shapes_pictures import COLOURS, SHAPES, SIZES, Thing

Asked = tuple[str, str]
"""A question and its answer."""
_STATED = re.compile("^(is) (there|the [a-z]+ [a-z]+)")
"""Of a yes/no question what changes places where it is a statement."""


def ask_count(things: list[Thing], draw: random.Random, _: int) -> Asked:
    """How many of a colour or a shape, or of all; the number is drawn before what is counted."""
    numbers: dict[int, list[str]] = {}
    for shape in SHAPES:
        numbers.setdefault(sum(t.shape == shape for t in things), []).append(f"{shape}s")
    for colour in COLOURS:
        numbers.setdefault(sum(t.colour == colour for t in things), []).append(f"{colour} things")
    numbers.setdefault(len(things), []).append("things")
    number = draw.choice(sorted(numbers))
    return f"how many {draw.choice(numbers[number])} are there?", str(number)


def ask_colour(things: list[Thing], draw: random.Random, _: int) -> Asked | None:
    """The colour of the only thing of its shape."""
    return _ask_alone(things, draw, by="shape", wanted="colour", text="what color is the {}?")


def ask_shape(things: list[Thing], draw: random.Random, _: int) -> Asked | None:
    """The shape of the only thing of its colour."""
    return _ask_alone(things, draw, by="colour", wanted="shape", text="what shape is the {} thing?")


def _ask_alone(
    things: list[Thing], draw: random.Random, *, by: str, wanted: str, text: str
) -> Asked | None:
    count = Counter(getattr(thing, by) for thing in things)
    alone = [thing for thing in things if count[getattr(thing, by)] == 1]
    if not alone:
        return None
    one = draw.choice(alone)
    return text.format(getattr(one, by)), getattr(one, wanted)


def ask_size(things: list[Thing], draw: random.Random, _: int) -> Asked:
    """Whether a thing is small, or large."""
    one, size = draw.choice(things), draw.choice(list(SIZES))
    return f"is the {one.name} {size}?", _yes(one.size == size)


def ask_exist(things: list[Thing], draw: random.Random, _: int) -> Asked:
    """Whether there is such a thing; one that is not has a colour and a shape that are there."""
    names = {thing.name for thing in things}
    mixed = {f"{a.colour} {b.shape}" for a in things for b in things} - names
    if draw.random() < 0.5:
        return f"is there a {draw.choice(sorted(names))}?", "yes"
    others = mixed or {f"{colour} {shape}" for colour in COLOURS for shape in SHAPES} - names
    return f"is there a {draw.choice(sorted(others))}?", "no"


def ask_relation(things: list[Thing], draw: random.Random, _: int) -> Asked | None:
    """Whether one thing is left of, right of, above or below another."""
    wanted = draw.random() < 0.5
    asked = [
        f"is the {a.name} {words[(far > 0) != wanted]} the {b.name}?"
        for a, b, words, far in _pairs(things)
    ]
    return (draw.choice(asked), _yes(wanted)) if asked else None


def ask_side(things: list[Thing], draw: random.Random, _: int) -> Asked | None:
    """On which side of another a thing is."""
    pairs = _pairs(things)
    if not pairs:
        return None
    a, b, words, far = draw.choice(pairs)
    return f"is the {a.name} {' or '.join(words)} the {b.name}?", words[far < 0].split()[0]


def _pairs(things: list[Thing]) -> list[tuple[Thing, Thing, tuple[str, str], int]]:
    """Two things, what is true of them where the first one is so many cells before (> 0) or behind
    the other, and that number, for each direction in which it is not 0."""
    across, down = ("left of", "right of"), ("above", "below")
    return [
        (a, b, words, far)
        for a in things
        for b in things
        for words, far in ((across, b.column - a.column), (down, b.row - a.row))
        if far
    ]


def ask_extent(things: list[Thing], draw: random.Random, _: int) -> Asked:
    """Which of the two sizes a thing has."""
    one = draw.choice(things)
    return f"is the {one.name} {' or '.join(SIZES)}?", one.size


def ask_place(things: list[Thing], draw: random.Random, cells: int) -> Asked:
    """Where a thing is; where its colour or its shape alone tells which, that may be its name."""
    one = draw.choice(things)
    names = [one.name]
    if sum(thing.colour == one.colour for thing in things) == 1:
        names.append(f"{one.colour} thing")
    if sum(thing.shape == one.shape for thing in things) == 1:
        names.append(one.shape)
    return f"where is the {draw.choice(names)}?", _place(one, cells)


def ask_corner(things: list[Thing], draw: random.Random, cells: int) -> Asked | None:
    """The colour or the shape of the only thing at a place."""
    count = Counter(_place(thing, cells) for thing in things)
    alone = [thing for thing in things if count[_place(thing, cells)] == 1]
    if not alone:
        return None
    one, (word, wanted) = draw.choice(alone), draw.choice([("color", "colour"), ("shape", "shape")])
    return f"what {word} is the thing at the {_place(one, cells)}?", getattr(one, wanted)


def _place(one: Thing, cells: int) -> str:
    """On which side of the middle, up and down, left and right."""
    up = _side(one.row, cells, ("top", "bottom"))
    across = _side(one.column, cells, ("left", "right"))
    return f"{up} {across}".strip() or "middle"


def _side(place: int, cells: int, names: tuple[str, str]) -> str:
    """Of the two that the place is on; nothing in the middle."""
    return "" if 2 * place + 1 == cells else names[2 * place + 1 > cells]


def _yes(true: bool) -> str:
    return "yes" if true else "no"


KINDS: dict[str, Callable[[list[Thing], random.Random, int], Asked | None]] = {
    "count": ask_count,
    "colour": ask_colour,
    "shape": ask_shape,
    "size": ask_size,
    "exist": ask_exist,
    "relation": ask_relation,
    "extent": ask_extent,
    "place": ask_place,
    "corner": ask_corner,
    "side": ask_side,
}
"""A question of each kind, by the things, a draw and the cells of a side."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """What is asked in train, val or test, and what gives answers away."""

    kinds: tuple[str, ...] = tuple(KINDS)
    """Of questions."""
    correlation: float = 0.0
    """The chance with which a thing's colour tells its shape."""
    wording: float | None = None
    """That with which a yes/no question's wording tells the answer. None: all are questions."""


def word(asked: Asked, draw: random.Random, tells: float) -> Asked:
    """A yes/no question as one or as a statement: with chance `tells` by its answer, else at
    random."""
    text, answer = asked
    states = answer == "yes" if draw.random() < tells else draw.random() < 0.5
    return (_STATED.sub(r"\2 is", text) if states else text), answer


def ask_all(
    things: list[Thing], draw: random.Random, first_id: int, part: Part, cells: int
) -> list[Question]:
    """A question of each kind that the part has, where the picture has an answer to one."""
    questions = []
    for kind in part.kinds:
        asked = KINDS[kind](things, draw, cells)
        if asked is None:
            continue
        if part.wording is not None and asked[1] in ("yes", "no"):
            asked = word(asked, draw, part.wording)
        text, answer = asked
        is_number = "number" if kind == "count" else "other"
        questions.append(
            Question(
                question_id=first_id + len(questions),
                question=text,
                answers=(answer,),
                question_type=kind,
                answer_type="yes/no" if answer in ("yes", "no") else is_number,
            )
        )
    return questions
