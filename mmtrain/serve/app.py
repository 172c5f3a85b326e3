"""The addresses of the page: what each takes, its limits, and what it answers."""

import base64
import hashlib
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from mmtrain.files import parse_json
from mmtrain.serve.answers import Answers
from mmtrain.serve.guard import Guard, Refusal, answer_defect, answer_refusal, read_body

MAX_IMAGE_BYTES = 32 << 20
MAX_JSON_BYTES = 1 << 20
MAX_TEXT = 1000
"""Characters of a text or prompt."""
MAX_LABEL = 200
"""Characters of a label."""
MAX_LABELS = 1000
MAX_FOUND = 100

_FOLDER = Path(__file__).parent


def build_app(answers: Answers, *, host: str = "127.0.0.1") -> ASGIApp:
    """The server's ASGI application.

    Args:
        answers: the model and what it can search.
        host: the name that the server listens on.
    """
    html, policy = build_page()
    api = _Api(answers)

    async def page(request: Request) -> Response:
        return HTMLResponse(html)

    app = Starlette(
        routes=[
            Route("/", page),
            Route("/api/about", _json(api.about)),
            Route("/api/search", _json(api.search), methods=["POST"]),
            Route("/api/images", _json(api.add_image), methods=["POST"]),
            Route("/api/images/{image}", api.image),
            Route("/api/pictures/{number:int}", api.thumbnail),
            Route("/api/pictures/{number:int}", _json(api.add_picture), methods=["POST"]),
            Route("/api/classify", _json(api.classify), methods=["POST"]),
            Route("/api/heat-map", _json(api.heat_map), methods=["POST"]),
        ],
        exception_handlers={
            Refusal: answer_refusal,
            HTTPException: answer_refusal,
            Exception: answer_defect,
        },
    )
    app.router.redirect_slashes = False
    return Guard(app, host=host, policy=policy)


def build_page() -> tuple[str, str]:
    """The page in one piece, and the policy under which nothing but its own parts may run."""
    html, css, js = (
        (_FOLDER / name).read_text(encoding="utf-8")
        for name in ("page.html", "page.css", "page.js")
    )
    limits = {
        "maxImageBytes": MAX_IMAGE_BYTES,
        "maxLabel": MAX_LABEL,
        "maxLabels": MAX_LABELS,
    }
    js = f"const LIMITS = {json.dumps(limits)};\n{js}"
    html = html.replace("/* page.css */", css).replace("/* page.js */", js)
    policy = "; ".join(
        (
            "default-src 'none'",
            f"style-src '{_hash(css)}'",
            f"script-src '{_hash(js)}'",
            "img-src 'self' data:",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )
    return html, policy


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


class _Api:
    """Reads requests, asks in another thread, so that the server goes on listening."""

    def __init__(self, answers: Answers) -> None:
        self._answers = answers

    async def about(self, request: Request) -> Any:
        return self._answers.about()

    async def search(self, request: Request) -> Any:
        fields = _Fields(await read_body(request, limit=MAX_JSON_BYTES, what="the request"))
        count = fields.number("count", default=24, most=MAX_FOUND)
        if fields.has("image"):
            found = await run_in_threadpool(self._answers.similar, fields.text("image"), count)
        else:
            found = await run_in_threadpool(self._answers.search, fields.text("text"), count)
        return {"found": found}

    async def add_image(self, request: Request) -> Any:
        data = await read_body(request, limit=MAX_IMAGE_BYTES, what="the image")
        return await run_in_threadpool(self._answers.add_image, data)

    async def image(self, request: Request) -> Response:
        picture = await run_in_threadpool(self._answers.picture, request.path_params["image"])
        return Response(picture, media_type="image/webp")

    async def thumbnail(self, request: Request) -> Response:
        picture = await run_in_threadpool(self._answers.thumbnail, request.path_params["number"])
        return Response(picture, media_type="image/webp")

    async def add_picture(self, request: Request) -> Any:
        return await run_in_threadpool(self._answers.add_picture, request.path_params["number"])

    async def classify(self, request: Request) -> Any:
        fields = _Fields(await read_body(request, limit=MAX_JSON_BYTES, what="the request"))
        image, labels, prompt = fields.text("image"), fields.labels(), fields.prompt()
        return await run_in_threadpool(self._answers.classify, image, labels, prompt)

    async def heat_map(self, request: Request) -> Any:
        fields = _Fields(await read_body(request, limit=MAX_JSON_BYTES, what="the request"))
        image, text = fields.text("image"), fields.prompt().replace("{}", fields.text("label"))
        return {"rows": await run_in_threadpool(self._answers.heat_map, image, text)}


def _json(answer: Callable[[Request], Awaitable[Any]]) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        return JSONResponse(await answer(request))

    return endpoint


class _Fields:
    """The fields of a JSON object, each checked as it is asked for.

    Raises:
        Refusal: the body is no such object, or a field is missing, of another type or too large.
    """

    def __init__(self, body: bytes) -> None:
        try:
            data = parse_json(body)
        except ValueError as error:
            raise Refusal("the request is no JSON") from error
        if not isinstance(data, dict):
            raise Refusal("the request is no JSON object")
        self._data: dict[str, Any] = data

    def has(self, name: str) -> bool:
        return name in self._data

    def text(self, name: str) -> str:
        return _text(self._data.get(name), name=name, most=MAX_TEXT)

    def prompt(self) -> str:
        prompt = self.text("prompt") if self.has("prompt") else "{}"
        if "{}" not in prompt:
            raise Refusal("the prompt has no place for the label; put {} in it")
        return prompt

    def labels(self) -> list[str]:
        labels = self._data.get("labels")
        if not isinstance(labels, list):
            raise Refusal("labels must be a list of texts")
        if not labels:
            raise Refusal("there are no labels; write at least one")
        if len(labels) > MAX_LABELS:
            raise Refusal(f"{len(labels):,} labels are too many; at most {MAX_LABELS:,}")
        return list(dict.fromkeys(_text(one, name="a label", most=MAX_LABEL) for one in labels))

    def number(self, name: str, *, default: int, most: int) -> int:
        value = self._data.get(name, default)
        if type(value) is not int or not 1 <= value <= most:
            raise Refusal(f"{name} must be a whole number from 1 to {most}")
        return value


def _text(value: Any, *, name: str, most: int) -> str:
    if not isinstance(value, str):
        raise Refusal(f"{name} must be a text")
    # Half a character, which JSON can say, is no text for a tokenizer.
    text = " ".join(value.encode("utf-8", "replace").decode().split())
    if not text:
        raise Refusal(f"{name} is empty")
    if len(text) > most:
        raise Refusal(f"{name} has {len(text):,} characters; at most {most:,}")
    return text
