"""A page and its addresses as one application: what all pages that are served have alike."""

import base64
import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import jinja2
from markupsafe import Markup
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from mmtrain.serve.guard import Guard, Refusal, answer_defect, answer_refusal, read_body

MAX_IMAGE_BYTES = 32 << 20

_FOLDER = Path(__file__).parent


class TakesImages(Protocol):
    """What answers about images; asked from several threads."""

    def about(self) -> dict[str, Any]:
        """What the page says of the model."""
        ...

    def add_image(self, data: bytes) -> dict[str, Any]:
        """Take in an image file; what the page needs to ask about it."""
        ...

    def picture(self, image_id: str) -> bytes:
        """An added image as the page shows it, WebP."""
        ...


@dataclass(frozen=True, kw_only=True)
class PageParts:
    """One page: NAME.html over base.html, its own style and script behind the shared ones."""

    name: str
    """Of its files."""
    limits: Mapping[str, int]
    """What its script knows as LIMITS, beside the size of an image."""


def build_site(
    answers: TakesImages, routes: Sequence[Route], *, page: PageParts, host: str
) -> ASGIApp:
    """The server's ASGI application.

    Args:
        answers: the model.
        routes: the page's own addresses, beside those of images.
        page: what is shown.
        host: the name that the server listens on.
    """
    html, policy = build_page(page)

    async def shown(request: Request) -> Response:
        return HTMLResponse(html)

    async def about(request: Request) -> Any:
        return answers.about()

    async def add_image(request: Request) -> Any:
        data = await read_body(request, limit=MAX_IMAGE_BYTES, what="the image")
        return await run_in_threadpool(answers.add_image, data)

    async def image(request: Request) -> Response:
        picture = await run_in_threadpool(answers.picture, request.path_params["image"])
        return Response(picture, media_type="image/webp")

    everything = [
        Route("/", shown),
        Route("/api/about", as_json(about)),
        Route("/api/images", as_json(add_image), methods=["POST"]),
        Route("/api/images/{image}", image),
        *routes,
    ]
    return guarded(everything, policy=policy, host=host)


def guarded(routes: Sequence[Route], *, policy: str, host: str) -> ASGIApp:
    """Addresses as an application that answers its own page alone, and what goes wrong in a line of
    JSON.

    Args:
        routes: all of them.
        policy: the Content-Security-Policy.
        host: the name that the server listens on.
    """
    app = Starlette(
        routes=routes,
        exception_handlers={
            Refusal: answer_refusal,
            HTTPException: answer_refusal,
            Exception: answer_defect,
        },
    )
    app.router.redirect_slashes = False
    return Guard(app, host=host, policy=policy)


def build_page(page: PageParts) -> tuple[str, str]:
    """The page in one piece, and the policy under which nothing but its own parts may run."""
    limits = {"maxImageBytes": MAX_IMAGE_BYTES, **page.limits}
    css, js = (_assets(page.name, kind) for kind in ("css", "js"))
    return fill_page(page.name, css=css, js=f"const LIMITS = {json.dumps(limits)};\n{js}")


def fill_page(name: str, *, css: str, js: str) -> tuple[str, str]:
    """NAME.html with its style and script, and its policy, see `build_page`."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER), autoescape=True, undefined=jinja2.StrictUndefined
    )
    template = environment.get_template(f"{name}.html")
    html = template.render(css=Markup(css), js=Markup(js))
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


def as_json(
    answer: Callable[[Request], Awaitable[Any]],
) -> Callable[[Request], Awaitable[Response]]:
    """What an address answers with, from what it answers."""

    async def endpoint(request: Request) -> Response:
        # In ASCII: a name of other bytes, or half a character of a caption, has no UTF-8.
        text = json.dumps(await answer(request), allow_nan=False, separators=(",", ":"))
        return Response(text, media_type="application/json")

    return endpoint


def _assets(name: str, kind: str) -> str:
    """The files of a kind that a page has, the shared one first."""
    return "\n".join(
        (_FOLDER / f"{one}.{kind}").read_text(encoding="utf-8") for one in ("page", name)
    )


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
