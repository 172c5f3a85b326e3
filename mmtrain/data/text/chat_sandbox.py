"""The sandbox of chat templates: what one may reach, how long it may take, how much it may make.

jinja2's own bars what a template may reach. This one also counts rounds of loops, and weighs every
text, list and number that is made, so that what a rendering holds stays within a multiple of the
conversation. What multiplies (`x * n`, `replace`, `join`, a width) is foreseen: a text of 10 GB
must not be made to be measured.
"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.filters import make_attrgetter
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

_MOST_STEPS = 1_000_000
"""Rounds of loops and calls of macros in one rendering: about a second. A thousand turns, each
looked up among all others, take so many."""
_MOST_CHARACTERS, _MOST_TIMES = 10_000_000, 2000
"""Characters that a rendering makes, and so many more for each of the conversation's. A template
that gathers the text so far anew with every turn makes half as many times as there are turns."""
_MOST_BITS = 10_000
_PER_ITEM = 32
"""Characters that an item of a list counts as."""
_MULTIPLY = {"batch", "center", "expandtabs", "format", "format_map", "indent", "ljust", "rjust"}
_MULTIPLY |= {"round", "slice", "to_bytes", "tojson", "translate", "urlize", "wordwrap", "xmlattr"}
_MULTIPLY |= {"zfill"}
"""Filters and methods that may give what they are called on as often as an argument says, or with
an argument in each place of it."""


class _Budget:
    """Counts what one rendering does and makes.

    Args:
        conversation: what is rendered.

    Raises:
        TemplateError: it is too much.
    """

    def __init__(self, conversation: object = ()) -> None:
        self._given = sum(map(_size, _within(conversation)))
        self._most = _MOST_CHARACTERS + _MOST_TIMES * self._given
        self._steps = self._spent = 0

    def step(self, steps: int = 1) -> None:
        self._steps += steps
        if self._steps > _MOST_STEPS:
            raise jinja2.TemplateError(f"it did not end after {_MOST_STEPS:,} rounds of its loops")

    def check(self, characters: int) -> None:
        """Whether so many may be made."""
        if characters > self._most:
            raise jinja2.TemplateError(
                f"it makes more than {self._most:,} characters of a conversation of {self._given:,}"
            )

    def spend(self, characters: int) -> None:
        """So many were made."""
        self._spent += characters
        self.check(self._spent)

    def weigh(self, value: object) -> int:
        """Spend what was made, with all that is in it -> characters."""
        if isinstance(value, str):  # most are
            self.spend(len(value))
            return len(value)
        before = self._spent
        for one in _within(value):
            self.spend(_size(one))
        return self._spent - before

    def read(self, value: object) -> None:
        """A filter or a method looks at it, an item in a hundredth of a round's time."""
        if isinstance(value, str | bytes):
            self.spend(len(value))
        elif isinstance(value, Collection):
            self.step(len(value) // 100)

    def foresee(self, name: str, own: object, given: list[Any]) -> None:
        """What `own.name(*given)`, or the filter, is about to make."""
        if name == "replace" and len(given) > 1 and isinstance(own, str):
            self.check(len(own) + own.count(str(given[0])) * len(str(given[1])))
        elif name == "join" and given:
            self.check(self.weigh(given[0]) + len(given[0]) * _size(own))
        elif name in _MULTIPLY:
            numbers = [one for one in _within(given) if isinstance(one, int | float)]
            width = sum(int(abs(number)) for number in numbers)
            places = self.weigh(own)
            if name.startswith("format") and isinstance(own, str):
                self.check(sum(map(int, re.findall(r"\d{1,10}", own))))  # widths in it
                places = own.count("%") + own.count("{")
            self.check(places * (1 + self.weigh(given) + width))


def _within(value: object) -> Iterator[Any]:
    """A value and all that is in it."""
    waiting = [value]
    while waiting:
        yield (one := waiting.pop())
        if isinstance(one, Collection) and not isinstance(one, str | bytes):
            waiting += one
            waiting += one.values() if isinstance(one, Mapping) else ()


def _size(value: object) -> int:
    """Characters that a value counts as, without what is in it."""
    if isinstance(value, int) and value.bit_length() > _MOST_BITS:
        raise jinja2.TemplateError(f"it makes a number of {value.bit_length():,} bits")
    if isinstance(value, str | bytes):
        return len(value)
    return _PER_ITEM * len(value) if isinstance(value, Collection) else 1


_BUDGET: ContextVar[_Budget] = ContextVar("_BUDGET")


@contextmanager
def budget(conversation: object = ()) -> Iterator[None]:
    """What is compiled or rendered inside may make so much of the conversation."""
    token = _BUDGET.set(_Budget(conversation))
    try:
        yield
    finally:
        _BUDGET.reset(token)


def _made(value: Any) -> Any:
    _BUDGET.get().weigh(value)
    return value


def _stepped(characters: int) -> bool:
    """A round, in which the template writes so many characters of its own."""
    _BUDGET.get().step()
    _BUDGET.get().spend(characters)
    return True


class _Namespace(Namespace):
    """One may hold others, each many times over: it is not written out."""

    def __repr__(self) -> str:
        return "<Namespace>"


class Sandbox(ImmutableSandboxedEnvironment):
    """An environment for templates that come with a model; rendered under a `budget`.

    Args:
        filters: beside jinja2's.
        options: jinja2's.
    """

    intercepted_binops = frozenset(("*", "**", "+", "%"))
    made, stepped = staticmethod(_made), staticmethod(_stepped)

    def __init__(self, *, filters: Mapping[str, Callable[..., Any]], **options: Any) -> None:
        super().__init__(finalize=_made, **options)
        self.globals["namespace"] = _Namespace
        del self.globals["lipsum"]  # text out of nothing
        every = self.filters | {"join": _join} | dict(filters)
        self.filters = {name: _weighed(name, one) for name, one in every.items()}

    def call_binop(
        self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any
    ) -> Any:
        numbers = all(isinstance(side, int | float) for side in (left, right))
        if operator == "**" and max(abs(left), abs(right)) > 64:
            raise jinja2.TemplateError(f"{left} ** {right} is too large a power")
        if operator == "*" and not numbers:
            times, one = (left, right) if isinstance(left, int) else (right, left)
            _BUDGET.get().check(times * _BUDGET.get().weigh(one))
        if operator == "%" and not numbers:
            _BUDGET.get().foresee("format", left, [right])
        return _made(super().call_binop(context, operator, left, right))

    def call(self, context: jinja2.runtime.Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        if obj is self.made or obj is self.stepped:
            return obj(*args)
        method = getattr(obj, "__wrapped__", obj)  # jinja2 wraps format
        own, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
        spent = _BUDGET.get()
        spent.step()
        spent.read(own)
        if name == "join":
            args = tuple(list(one) if isinstance(one, Iterable) else one for one in args)
        spent.foresee(name, own, [*args, *kwargs.values()])
        return _made(super().call(context, obj, *args, **kwargs))

    def counted(self, source: str) -> jinja2.Template:
        """The template of a source, whose loops are counted and whose texts are weighed."""
        tree = _Weighed().visit(self.parse(source))
        for node in tree.find_all((nodes.For, nodes.Macro, nodes.CallBlock, nodes.Block)):
            # What is in a filter's or a variable's block is no output of the template's yet.
            own = sum(len(text.data) for text in node.find_all(nodes.TemplateData))
            step = _calls("stepped", nodes.Const(own), node.lineno)
            if isinstance(node, nodes.For) and node.test is not None:
                node.test = nodes.And(step, node.test, lineno=node.lineno)
            node.body.insert(0, nodes.ExprStmt(step, lineno=node.lineno))
        with budget():
            code = self.compile(tree)
        return jinja2.Template.from_code(self, code, self.make_globals(None))


class _Weighed(NodeTransformer):
    """What makes a text or a list and is neither call nor operator is weighed too."""

    def generic_visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> nodes.Node:
        node = super().generic_visit(node, *args, **kwargs)
        match node:
            case nodes.Tuple(ctx="store"):
                return node
            case nodes.Concat() | nodes.Getitem(arg=nodes.Slice()):
                return _calls("made", node, node.lineno)
            case nodes.List() | nodes.Tuple() | nodes.Dict():
                holds = any(not isinstance(one, nodes.Const) for one in node.items)
                return _calls("made", node, node.lineno) if holds else node
            case _:
                return node


def _calls(name: str, given: nodes.Expr, line: int) -> nodes.Expr:
    """A call of the environment's own; a name could be set by the template."""
    own = nodes.EnvironmentAttribute(name, lineno=line)
    return nodes.Call(own, [given], [], None, None, lineno=line)


def _weighed(name: str, apply: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that is held to the budget."""
    first = int(hasattr(apply, "jinja_pass_arg"))  # behind context or environment

    @wraps(apply)
    def held(*args: Any, **kwargs: Any) -> Any:
        own, given = args[first], [*args[first + 1 :], *kwargs.values()]
        _BUDGET.get().read(own)
        if name != "join":  # foresees for itself
            _BUDGET.get().foresee(name, own, given)
        return _made(apply(*args, **kwargs))

    return held


@jinja2.pass_environment
def _join(
    environment: jinja2.Environment, value: Iterable[Any], d: Any = "", attribute: Any = None
) -> str:
    """jinja2's, of items that are all there before."""
    if attribute is not None:
        value = map(make_attrgetter(environment, attribute), value)
    items = list(value)
    _BUDGET.get().foresee("join", str(d), [items])
    return str(d).join(map(str, items))
