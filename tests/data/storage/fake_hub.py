"""A hub of one data set on loopback: its commits, its tree; the files lie on another server."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tests.data.storage.fault_server import Ranges, serving

REPO = "some-one/pairs"
ERRORS = {401: "RepoNotFound", 403: "GatedRepo", 404: "RepoNotFound"}


class Hub:
    """What a test sees and sets."""

    def __init__(self, folder: Path, files: Ranges) -> None:
        self.folder, self.files = folder, files
        self.commits = {"main": "a" * 40, "v1": "b" * 40}
        """By branch or tag."""
        self.token, self.status, self.url = "", 0, ""
        """What opens it; what it answers instead of anything."""
        self.requests: list[str] = []


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub, path = self.hub, unquote(urlsplit(self.path).path)
        hub.requests.append(path)
        if hub.status or (hub.token and self.headers.get("Authorization") != f"Bearer {hub.token}"):
            self._refuse(hub.status or 401)
            return
        for begin, answer in (
            (f"/api/datasets/{REPO}/revision/", self._revision),
            (f"/api/datasets/{REPO}/tree/", self._tree),
            (f"/datasets/{REPO}/resolve/", self._resolve),
        ):
            if path.startswith(begin):
                answer(path.removeprefix(begin))
                return
        self._refuse(404)

    def _revision(self, name: str) -> None:
        if name not in (*self.hub.commits, *self.hub.commits.values()):
            self._refuse(404, error="RevisionNotFound")
            return
        self._send({"id": REPO, "sha": self.hub.commits.get(name, name), "tags": []})

    def _tree(self, rest: str) -> None:
        _, _, inside = rest.partition("/")
        top = self.hub.folder / inside
        if not top.is_dir():
            self._refuse(404, error="EntryNotFound")
            return
        deep = "recursive=true" in self.path.lower()
        found = sorted(top.rglob("*") if deep else top.iterdir())
        self._send([self._entry(each) for each in found])

    def _entry(self, path: Path) -> dict[str, object]:
        name = path.relative_to(self.hub.folder).as_posix()
        if path.is_dir():
            return {"type": "directory", "path": name, "oid": "0" * 40}
        return {"type": "file", "path": name, "size": path.stat().st_size, "oid": "1" * 40}

    def _resolve(self, rest: str) -> None:
        self.send_response(302)
        self.send_header("Location", f"{self.hub.files.url}/{rest.partition('/')[2]}")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _refuse(self, status: int, *, error: str | None = None) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", error or ERRORS.get(status, ""))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send(self, content: object) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


@contextmanager
def hub_of(folder: Path) -> Iterator[Hub]:
    """A hub whose data set `REPO` holds the folder's files, until the block ends."""
    with serving(folder) as files:
        hub = Hub(folder, files)
        handler = type("Handler", (_Handler,), {"hub": hub})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        hub.url = f"http://localhost:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            server.server_close()
            thread.join()
