"""The addresses of the page that searches: what each takes, its limits, and what it answers."""

from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from mmtrain.serve.answers import Answers
from mmtrain.serve.fields import MAX_LABEL, MAX_LABELS, read_fields
from mmtrain.serve.site import PageParts, as_json, build_site

MAX_FOUND = 100

PAGE = PageParts(name="search", limits={"maxLabel": MAX_LABEL, "maxLabels": MAX_LABELS})


def build_app(answers: Answers, *, host: str = "127.0.0.1") -> ASGIApp:
    """The server's ASGI application.

    Args:
        answers: the model and what it can search.
        host: the name that the server listens on.
    """
    api = _Api(answers)
    routes = [
        Route("/api/search", as_json(api.search), methods=["POST"]),
        Route("/api/pictures/{number:int}", api.thumbnail),
        Route("/api/pictures/{number:int}", as_json(api.add_picture), methods=["POST"]),
        Route("/api/classify", as_json(api.classify), methods=["POST"]),
        Route("/api/heat-map", as_json(api.heat_map), methods=["POST"]),
    ]
    return build_site(answers, routes, page=PAGE, host=host)


class _Api:
    """Reads requests, asks in another thread, so that the server goes on listening."""

    def __init__(self, answers: Answers) -> None:
        self._answers = answers

    async def search(self, request: Request) -> Any:
        fields = await read_fields(request)
        count = fields.number("count", default=24, most=MAX_FOUND)
        if fields.has("image"):
            found = await run_in_threadpool(self._answers.similar, fields.text("image"), count)
        else:
            found = await run_in_threadpool(self._answers.search, fields.text("text"), count)
        return {"found": found}

    async def thumbnail(self, request: Request) -> Response:
        picture = await run_in_threadpool(self._answers.thumbnail, request.path_params["number"])
        return Response(picture, media_type="image/webp")

    async def add_picture(self, request: Request) -> Any:
        return await run_in_threadpool(self._answers.add_picture, request.path_params["number"])

    async def classify(self, request: Request) -> Any:
        fields = await read_fields(request)
        image, labels, prompt = fields.text("image"), fields.labels(), fields.prompt()
        return await run_in_threadpool(self._answers.classify, image, labels, prompt)

    async def heat_map(self, request: Request) -> Any:
        fields = await read_fields(request)
        image, text = fields.text("image"), fields.prompt().replace("{}", fields.text("label"))
        return {"rows": await run_in_threadpool(self._answers.heat_map, image, text)}
