"""An application behind an address of this machine, until it is interrupted."""

import errno
import importlib.util
import os
import socket
from typing import TYPE_CHECKING

from mmtrain.errors import UsageError

if TYPE_CHECKING:
    from starlette.types import ASGIApp

_MAX_CONNECTIONS = 32


def need_packages(command: str) -> None:
    """Refuse to go on without the extra.

    Raises:
        UsageError: a package of it is not installed.
    """
    for package in ("starlette", "uvicorn"):
        if importlib.util.find_spec(package) is None:
            raise UsageError(f"{command} needs the package {package}; pip install 'mmtrain[serve]'")


def listen(host: str, port: int) -> socket.socket:
    """The socket that answers at an address; port 0 takes one that is free.

    Raises:
        UsageError: it is taken, or the host is none of this machine's.
    """
    if port > 65535:
        raise UsageError(f"port = {port} must be at most 65535")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        number = error.errno or 0  # below zero where the name led nowhere
        # Behind the reason Python says once more what was tried.
        reason = os.strerror(number) if number > 0 else (error.strerror or "").partition(" (")[0]
        remedy = "choose another with --port, or --port 0 for one that is free"
        if number < 0 or number == errno.EADDRNOTAVAIL:
            remedy = "name an address of this machine with --host"
        raise UsageError(
            f"host = {host}, port = {port} cannot be listened on ({reason}); {remedy}"
        ) from error


def serve_until_interrupted(
    app: "ASGIApp", listener: socket.socket, *, host: str, told: str
) -> None:
    """Answer until Ctrl-C, and say where before and that it ended after.

    Args:
        app: what answers.
        listener: from `listen`.
        host: what it was told to listen on.
        told: stands behind the address.
    """
    # Only what the extra brings, see `need_packages`.
    import uvicorn

    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        ws="none",
        lifespan="off",
        limit_concurrency=_MAX_CONNECTIONS,
        timeout_graceful_shutdown=2,
    )
    print(f"{_url(host, listener)}  ({told}; Ctrl-C ends it)", flush=True)
    try:
        uvicorn.Server(config).run(sockets=[listener])
    except KeyboardInterrupt:
        print("ended")


def _url(host: str, listener: socket.socket) -> str:
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{listener.getsockname()[1]}"
