"""Chat templates: conversations to the one text that a model was tuned on.

A template comes with a model and is a program, so it runs in a sandbox (chat_sandbox.py): it sees
the conversation and a few functions, nothing else, its loops end and what it makes is bounded.
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

from mmtrain.data.text.chat_sandbox import Sandbox, budget
from mmtrain.data.text.messages import Message, Span
from mmtrain.errors import UsageError

_BEGIN, _END = "\ufdd0", "\ufdd1"
"""No characters (Unicode has them for a program's own use): what the assistant says stands between
them where that is asked."""
_MARKS = "marks_what_is_said"


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
        environment = Sandbox(
            filters={"tojson": _to_json},
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, loopcontrols],
        )
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
            with budget(messages):
                return self._template.render(
                    messages=list(messages),
                    tools=None,
                    documents=None,
                    **{"add_generation_prompt": False} | names,
                    **self._special_tokens,
                )
        except Exception as error:  # a program of somebody else's may raise anything
            raise UsageError(f"chat template: {error or type(error).__name__}") from error


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _to_json(value: Any, **options: Any) -> str:
    """Not jinja2's own, which escapes for HTML."""
    return json.dumps(value, ensure_ascii=False, **options)
