"""`mmtrain watch`: runs as a live page, as long as they go and after."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mmtrain.data.storage.addresses import SCHEMES
from mmtrain.errors import UsageError
from mmtrain.files import real_path
from mmtrain.report.run_folder import is_run
from mmtrain.serve.server import listen, need_packages, serve_until_interrupted

if TYPE_CHECKING:
    from starlette.types import ASGIApp

_REPORT = Path(__file__).parents[1] / "report"
_NICER = 10
_LONGEST_VERSION = 64


def watch_command(*, runs: Sequence[Path], host: str, port: int) -> None:
    """Serve a page about runs until interrupted; their folders are only read.

    Args:
        runs: run folders; what is not there yet is waited for.
        host: a name or address of this machine.
        port: 0 takes one that is free.

    Raises:
        UsageError: the extra is not installed, the port is taken, a run is named twice or a file.
    """
    need_packages("watch")
    _refuse(runs)
    with listen(host, port) as listener:
        app = build_app(runs, host=host)
        # The run has the processor before the page has it.
        os.nice(_NICER)
        for path in runs:
            if not is_run(path):
                print(
                    f"{path} holds no run yet; the page shows it as soon as it begins", flush=True
                )
        names = runs[0] if len(runs) == 1 else f"{len(runs)} runs"
        serve_until_interrupted(app, listener, host=host, told=f"{names}, only read")


def _refuse(runs: Sequence[Path]) -> None:
    for number, path in enumerate(runs):
        if path.parts[:1] and path.parts[0].removesuffix(":") in SCHEMES and not path.exists():
            raise UsageError(f"run = {path} is an address; name a folder of this machine")
        if real_path(path) in [real_path(other) for other in runs[:number]]:
            raise UsageError(f"run = {path} is named twice; name every run once")
        # One that is not there yet may come, but not below a file.
        there = next(each for each in (path, *path.absolute().parents) if each.exists())
        if not there.is_dir():
            is_it = "is no folder" if there == path else f"cannot come: {there} is no folder"
            raise UsageError(f"run = {path} {is_it}; name a run folder")


def build_app(runs: Sequence[Path], *, host: str = "127.0.0.1") -> "ASGIApp":
    """The page, and what it asks for, as an ASGI application."""
    from starlette.concurrency import run_in_threadpool
    from starlette.requests import Request
    from starlette.responses import HTMLResponse, Response
    from starlette.routing import Route

    from mmtrain.serve.site import as_json, fill_page, guarded
    from mmtrain.serve.watched import Watched

    folder = Path(__file__).parent
    css = "\n".join(
        file.read_text("utf-8") for file in (_REPORT / "page.css", folder / "watch.css")
    )
    html, policy = fill_page("watch", css=css, js=(folder / "watch.js").read_text("utf-8"))
    watched = Watched(runs)

    async def shown(request: Request) -> Response:
        return HTMLResponse(html)

    async def newest(request: Request) -> dict[str, object]:
        seen = request.query_params.get("seen", "")[:_LONGEST_VERSION]
        return await run_in_threadpool(watched.newest, seen)

    routes = [Route("/", shown), Route("/api/runs", as_json(newest))]
    return guarded(routes, policy=policy, host=host)
