"""The little of Google's and Azure's stores that reading takes: list, head and get, on loopback."""

import math
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

_DATE = "Mon, 02 Nov 2026 10:00:00 GMT"


class Cloud:
    """What a test sees and says of the server."""

    def __init__(self, folder: Path, *, needs: str) -> None:
        self.folder, self.needs, self.url = folder, needs, ""
        self.log: list[tuple[str, str]] = []
        """Method and path of every request."""
        self.busy_status, self.busy_until, self.is_date = 0, 0.0, False

    def busy_for(self, seconds: float, *, status: int, is_date: bool = False) -> None:
        """Refuse whatever comes until then, and say when that is."""
        self.busy_status, self.busy_until = status, time.time() + seconds
        self.is_date = is_date

    @property
    def retry_after(self) -> str:
        """The header, in one of its two forms; empty where nothing is refused."""
        left = self.busy_until - time.time()
        if left <= 0:
            return ""
        when = math.ceil(self.busy_until)
        return formatdate(when, usegmt=True) if self.is_date else str(math.ceil(left))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    cloud: Cloud

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        cloud, split = self.cloud, urlsplit(self.path)
        cloud.log.append((self.command, self.path))
        query = {name: values[0] for name, values in parse_qs(split.query).items()}
        path = cloud.folder / unquote(split.path).lstrip("/").removeprefix("devstoreaccount1/")
        if after := cloud.retry_after:
            self._send(cloud.busy_status, b"busy", {"Retry-After": after})
        elif not re.match(cloud.needs, self.headers.get("Authorization") or ""):
            self._send(403, b"<Error>denied</Error>")
        elif "list-type" in query:
            self._send(200, _google_list(path, query).encode())
        elif query.get("comp") == "list":
            self._send(200, _azure_list(path, query).encode())
        elif path.is_file():
            self._file(path.read_bytes())
        else:
            self._send(404, b"<Error>none</Error>")

    def _file(self, data: bytes) -> None:
        about = {"ETag": f'"{len(data)}"', "Last-Modified": _DATE, "x-goog-generation": "1"}
        span = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
        if span is None:
            self._send(200, data, about)
            return
        first, last = int(span[1]), min(int(span[2]), len(data) - 1)
        about["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        self._send(206, data[first : last + 1], about)

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _below(bucket: Path, query: dict[str, str]) -> list[tuple[str, int]]:
    """Names and sizes that a listing has."""
    prefix = query.get("prefix", "")
    found = [
        (path.relative_to(bucket).as_posix(), path.stat().st_size)
        for path in sorted(bucket.rglob("*"))
        if path.is_file()
    ]
    is_flat = "delimiter" in query
    return [
        (name, size)
        for name, size in found
        if name.startswith(prefix) and not (is_flat and "/" in name[len(prefix) :])
    ]


def _google_list(bucket: Path, query: dict[str, str]) -> str:
    rows = "".join(
        f"<Contents><Key>{name}</Key><Size>{size}</Size>"
        f'<LastModified>2026-11-02T10:00:00Z</LastModified><ETag>"{size}"</ETag></Contents>'
        for name, size in _below(bucket, query)
    )
    return f"<ListBucketResult>{rows}</ListBucketResult>"


def _azure_list(bucket: Path, query: dict[str, str]) -> str:
    rows = "".join(
        f"<Blob><Name>{name}</Name><Properties><Last-Modified>{_DATE}</Last-Modified>"
        f"<Etag>{size}</Etag><Content-Length>{size}</Content-Length>"
        "<Content-Type>application/x-tar</Content-Type></Properties></Blob>"
        for name, size in _below(bucket, query)
    )
    return f"<EnumerationResults><Blobs>{rows}</Blobs><NextMarker/></EnumerationResults>"


@contextmanager
def cloud_at(folder: Path, *, needs: str = "", port: int = 0) -> Iterator[Cloud]:
    """A store whose buckets are the folders in `folder`, at `url`, until the block ends.

    Args:
        folder: of the buckets.
        needs: what the header Authorization must match.
        port: 0: any.
    """
    cloud = Cloud(folder, needs=needs)
    handler = type("Handler", (_Handler,), {"cloud": cloud})
    server = ThreadingHTTPServer(("127.0.0.1", port), handler)
    server.daemon_threads = True
    cloud.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield cloud
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
