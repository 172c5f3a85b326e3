"""A web server of ranges on loopback, for measurements: a process of its own."""

import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from pathlib import Path


class Handler(BaseHTTPRequestHandler):
    """Answers ranges of files in a folder."""

    protocol_version = "HTTP/1.1"
    folder: Path

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(is_head=True)

    def do_GET(self) -> None:
        self._answer(is_head=False)

    def _answer(self, *, is_head: bool) -> None:
        with (self.folder / self.path.lstrip("/")).open("rb") as file:
            size = file.seek(0, 2)
            asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
            first, last = (int(asked[1]), int(asked[2])) if asked else (0, size - 1)
            last = min(last, size - 1)
            file.seek(first)
            body = b"" if is_head else file.read(last + 1 - first)
        self.send_response(206 if asked else 200)
        self.send_header("ETag", f'"{size}"')
        self.send_header("Content-Length", str(last + 1 - first))
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        self.end_headers()
        self.wfile.write(body)


def serve(folder: Path, told: Connection) -> None:
    """A server until this process is ended; tells its port."""
    Handler.folder = folder
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    told.send(server.server_address[1])
    server.serve_forever()
