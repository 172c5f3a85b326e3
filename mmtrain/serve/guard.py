"""What stands between the page and whoever calls it: whose requests are answered, how large a body
may be, and what every answer carries.

A server on one's own machine is still reachable by every web page that is open there. So a name
that somebody else's DNS points at 127.0.0.1 is refused (Host), as is a request that another page
makes (Origin), and no other page may frame the page or read its pictures.
"""

import ipaddress
import sys
import traceback
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class Refusal(Exception):
    """A request that is not answered: a status and one line for whoever made it, without paths."""

    def __init__(self, message: str, *, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class Guard:
    """Refuses what is not meant for this server and adds the headers of every answer.

    Args:
        app: what answers.
        host: the name that the server was told to listen on; it, `localhost` and any numeric
            address are its own names.
        policy: the Content-Security-Policy.
    """

    def __init__(self, app: ASGIApp, *, host: str, policy: str) -> None:
        self._app = app
        self._own_names = {host.lower(), "localhost"}
        self._headers = {
            "Content-Security-Policy": policy,
            "Cross-Origin-Resource-Policy": "same-origin",
            "Cross-Origin-Opener-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
            # Numbers of pictures mean something else after the next start.
            "Cache-Control": "no-store",
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self._headers)
            await send(message)

        refusal = self._refusal(Headers(scope=scope))
        app = self._app if refusal is None else refusal_response(refusal)
        await app(scope, receive, send_with_headers)

    def _refusal(self, headers: Headers) -> Refusal | None:
        host = headers.get("host", "")
        if not self._is_own(host):
            message = "this server answers to its own address alone; open it by 127.0.0.1"
            return Refusal(message, status=421)
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            return Refusal("another page asked; only the page served here may", status=403)
        return None

    def _is_own(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
            if name in self._own_names:
                return True
            # Of a numeric address no DNS can say where it leads.
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


async def read_body(request: Request, *, limit: int, what: str) -> bytes:
    """The request's body; one that is too large is not read on.

    Args:
        request: whose body.
        limit: bytes at most.
        what: names the body in messages.

    Raises:
        Refusal: the body is empty, larger than `limit`, or its sender went away.
    """
    too_large = Refusal(f"{what} is larger than {_size(limit)}; send a smaller one", status=413)
    told = request.headers.get("content-length", "")
    if told.isdecimal() and int(told) > limit:
        raise too_large
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit:
                raise too_large
    except ClientDisconnect as error:
        raise Refusal(f"{what} was cut off") from error
    if not body:
        raise Refusal(f"{what} is empty")
    return bytes(body)


def refusal_response(error: Exception) -> JSONResponse:
    """One line of JSON for a refusal, for an unknown address, and for a defect of ours."""
    headers = {}
    match error:
        case Refusal():
            status, message = error.status, str(error)
            # What is left of the body would be taken for the next request.
            headers = {"Connection": "close"} if status == 413 else {}
        case HTTPException():
            status, message = error.status_code, error.detail.lower()
        case _:
            status, message = 500, "the server made a mistake; its terminal tells which"
    return JSONResponse({"error": " ".join(message.split())}, status_code=status, headers=headers)


async def answer_refusal(request: Request, error: Exception) -> JSONResponse:
    """As `refusal_response`, in the form that starlette calls."""
    return refusal_response(error)


async def answer_defect(request: Request, error: Exception) -> JSONResponse:
    """The traceback to the terminal, none of it to the page."""
    traceback.print_exception(error, file=sys.stderr)
    return refusal_response(error)


def _size(count: int) -> str:
    return f"{count >> 20} MB" if count >= 1 << 20 else f"{count >> 10} KB"
