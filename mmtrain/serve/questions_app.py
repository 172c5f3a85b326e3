"""The addresses of the page that asks: what each takes, its limits, and what it answers."""

import json
import sys
import traceback
from collections.abc import Generator
from contextlib import closing
from typing import Any, get_args

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from mmtrain.data.dialogues.dialogue import Turn
from mmtrain.models.vqa import Head
from mmtrain.serve.fields import Fields, lines, read_fields
from mmtrain.serve.guard import Refusal, refusal_response
from mmtrain.serve.questions import PageQuestion, Questions, Steps
from mmtrain.serve.site import PageParts, build_site

MAX_QUESTION = 10_000
"""Characters; how many tokens it may have, the model says."""
MAX_ANSWER = 100_000
MAX_EARLIER = 100
"""Questions with their answers before one."""
MAX_CHOICES = 100
"""Answers of the page's own, which are computed side by side."""

PAGE = PageParts(
    name="questions",
    limits={"maxQuestion": MAX_QUESTION, "maxEarlier": MAX_EARLIER, "maxChoices": MAX_CHOICES},
)


def build_app(questions: Questions, *, host: str = "127.0.0.1") -> ASGIApp:
    """The server's ASGI application.

    Args:
        questions: the model.
        host: the name that the server listens on.
    """

    async def ask(request: Request) -> Response:
        asked = page_question(await read_fields(request))
        steps = questions.ask(asked)
        # Before the status is sent, which says whether it can be answered.
        first = await run_in_threadpool(next, steps)
        return _Stream(first, steps)

    return build_site(questions, [Route("/api/ask", ask, methods=["POST"])], page=PAGE, host=host)


def page_question(fields: Fields) -> PageQuestion:
    """What a request asks.

    Raises:
        Refusal: a field is missing, of another type or too large.
    """
    if not fields.has("image"):
        raise Refusal("there is no image; drop one first")
    head = fields.raw("head")
    if head is not None and head not in get_args(Head):
        raise Refusal(f"head must be {' or '.join(get_args(Head))}")
    return PageQuestion(
        image=fields.text("image"),
        text=lines(fields.raw("question"), name="the question", most=MAX_QUESTION),
        head=head,
        earlier=_earlier(fields.raw("earlier", default=[])),
        among=_among(fields),
    )


def _among(fields: Fields) -> tuple[str, ...]:
    """The answers that one is chosen of."""
    if not fields.has("labels"):
        return ()
    labels = fields.labels()
    if len(labels) > MAX_CHOICES:
        raise Refusal(f"{len(labels):,} answers to choose among; at most {MAX_CHOICES}")
    return tuple(labels)


def _earlier(rows: Any) -> tuple[Turn, ...]:
    """The turns of a list of {question, answer}."""
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise Refusal("earlier must be a list of questions with their answers")
    if len(rows) > MAX_EARLIER:
        raise Refusal(f"{len(rows):,} questions came before; at most {MAX_EARLIER}, start over")
    turns: list[Turn] = []
    for row in rows:
        question = lines(row.get("question"), name="an earlier question", most=MAX_QUESTION)
        # A model may have said nothing.
        answer = lines(
            row.get("answer"), name="an earlier answer", most=MAX_ANSWER, may_be_empty=True
        )
        turns += [Turn("user", question), Turn("assistant", answer)]
    return tuple(turns)


class _Stream(StreamingResponse):
    """Steps as lines of JSON, as they come. Whoever goes away ends them."""

    def __init__(self, first: dict[str, Any], steps: Steps) -> None:
        self._steps = steps
        self._lines = _lines(first, steps)
        super().__init__(self._lines, media_type="application/x-ndjson")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            # No step is being made: one that is, is waited for before this is reached.
            self._lines.close()
            self._steps.close()


def _lines(first: dict[str, Any], steps: Steps) -> Generator[bytes, None, None]:
    yield _line(first)
    try:
        with closing(steps):
            for step in steps:
                yield _line(step)
    except Exception as error:  # the status is sent, so that the last line says what went wrong
        if not isinstance(error, Refusal):
            traceback.print_exception(error, file=sys.stderr)
        yield bytes(refusal_response(error).body) + b"\n"


def _line(step: dict[str, Any]) -> bytes:
    return json.dumps(step, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace") + b"\n"
