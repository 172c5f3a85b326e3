"""Chat templates: conversations to the one text that a model was tuned on.

A template comes with a model and is a program, so it runs in jinja2's sandbox: it sees the
conversation and a few functions, nothing else, and its loops end.
"""

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
import jinja2.nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from mmtrain.data.text.messages import Message, Span
from mmtrain.errors import UsageError

_BEGIN, _END = "\ufdd0", "\ufdd1"
"""No characters (Unicode has them for a program's own use): what the assistant says stands between
them where that is asked."""
_MARKS = "marks_what_is_said"
_STEP = "_step"
_MOST_STEPS = 1_000_000
"""Rounds of loops and calls of macros in one rendering: about a second. A thousand turns, each
looked up among all others, take so many."""
_MOST_REPEATED = 1_000_000
"""Characters or items that a product makes."""


class _Generation(Extension):
    """`{% generation %}` marks what the assistant says; the text is the same without the mark."""

    tags = {"generation"}  # noqa: RUF012 - the base class has it so

    def parse(self, parser: Parser) -> list[jinja2.nodes.Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return [_if_marking(_BEGIN, line), *body, _if_marking(_END, line)]


def _if_marking(mark: str, line: int) -> jinja2.nodes.Node:
    """What writes a mark where `_MARKS` is true."""
    written = jinja2.nodes.Output([jinja2.nodes.TemplateData(mark)])
    return jinja2.nodes.If(jinja2.nodes.Name(_MARKS, "load"), [written], [], []).set_lineno(line)


class _Sandbox(ImmutableSandboxedEnvironment):
    """jinja2's bars what a template may reach; this one also how long it may take over it."""

    intercepted_binops = frozenset(("*", "**"))

    def call_binop(
        self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any
    ) -> Any:
        numbers = all(isinstance(side, int | float) for side in (left, right))
        if operator == "**" and max(abs(left), abs(right)) > 64:
            raise jinja2.TemplateError(f"{left} ** {right} is too large a power")
        if operator == "*" and not numbers:
            times, one = (left, right) if isinstance(left, int) else (right, left)
            if times * len(one) > _MOST_REPEATED:
                raise jinja2.TemplateError(f"it repeats a text {times:,} times")
        return super().call_binop(context, operator, left, right)

    def counted(self, source: str) -> jinja2.Template:
        """The template of a source, in which each round of a loop and each call of a macro calls
        `_STEP`."""
        tree = self.parse(source)
        for node in tree.find_all((jinja2.nodes.For, jinja2.nodes.Macro, jinja2.nodes.CallBlock)):
            name = jinja2.nodes.Name(_STEP, "load")
            step = jinja2.nodes.ExprStmt(jinja2.nodes.Call(name, [], [], None, None))
            node.body.insert(0, step.set_lineno(node.lineno))
        return jinja2.Template.from_code(self, self.compile(tree), self.make_globals(None))


class _Steps:
    """Counts what one rendering does.

    Raises:
        TemplateError: it does too much.
    """

    def __init__(self) -> None:
        self._num = 0

    def __call__(self) -> None:
        self._num += 1
        if self._num > _MOST_STEPS:
            raise jinja2.TemplateError(f"it did not end after {_MOST_STEPS:,} rounds of its loops")


class ChatTemplate:
    """A compiled template.

    Args:
        source: the template.
        special_tokens: the names that templates know, such as bos_token, and their spelling.
        today: what templates that tell the date say. None: the day on which they are rendered.

    Raises:
        UsageError: it is no template.
    """

    def __init__(
        self, source: str, *, special_tokens: Mapping[str, str], today: datetime | None = None
    ) -> None:
        environment = _Sandbox(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda form: (today or datetime.now()).strftime(form)
        try:
            self._template = environment.counted(source)
        except jinja2.TemplateError as error:
            raise UsageError(f"chat template: {error}") from error
        self._special_tokens = dict(special_tokens)

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
        """The conversation as one text; with `add_generation_prompt` up to where the answer begins.

        Raises:
            UsageError: the template refuses the conversation, or asks for what the sandbox bars.
        """
        return self._render(messages, add_generation_prompt=add_generation_prompt)

    def render_marked(self, messages: Sequence[Message]) -> tuple[str, list[Span]]:
        """The conversation as one text, and where in it stands what the template marks as said by
        the assistant (`{% generation %}`); nothing where it has no such marks.

        Raises:
            UsageError: as `render`.
        """
        parts = re.split(f"([{_BEGIN}{_END}])", self._render(messages, **{_MARKS: True}))
        text, spans = "", []
        for part in parts:
            if part == _BEGIN:
                spans.append((len(text), len(text)))
            elif part == _END:
                spans[-1] = (spans[-1][0], len(text))
            else:
                text += part
        return text, spans

    def _render(self, messages: Sequence[Message], **names: bool) -> str:
        try:
            return self._template.render(
                messages=list(messages),
                tools=None,
                documents=None,
                **{"add_generation_prompt": False} | names,
                **self._special_tokens,
                **{_STEP: _Steps()},
            )
        except Exception as error:  # a program of somebody else's may raise anything
            raise UsageError(f"chat template: {error}") from error


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _to_json(value: Any, **options: Any) -> str:
    """Not jinja2's own, which escapes for HTML."""
    return json.dumps(value, ensure_ascii=False, **options)
