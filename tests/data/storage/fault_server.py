"""A small web server of ranges that fails as real ones do, by a script or by seeded dice."""

import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, MutableSequence
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

FAULTS = ("500", "503", "429", "cut", "drop", "stall", "whole")
"""What passes when it is asked again: `whole` answers a range with the file from its start."""

Fault = Callable[[str, int], str]
"""Path and number of a request -> the fault to make, empty for none."""


def dice(*, seed: int, share: float, faults: tuple[str, ...] = FAULTS) -> Fault:
    """Faults for a share of all requests, the same for a seed."""
    rng, lock = random.Random(seed), threading.Lock()

    def fault(path: str, number: int) -> str:
        with lock:
            return rng.choice(faults) if rng.random() < share else ""

    return fault


class Ranges:
    """What a test sees of the server."""

    def __init__(self, folder: Path, *, fault: Fault, stall: float, head: str) -> None:
        self.folder, self.fault, self.stall, self.head = folder, fault, stall, head
        self.requests: Counter[str] = Counter()
        """By method, by fault, and `bytes` sent."""
        self.log: MutableSequence[tuple[str, str, float]] = []
        """Path, range and time of every GET."""
        self.logins: set[str] = set()
        """What requests said in `Authorization`."""
        self.etag_suffix = ""
        self.url, self.is_gone = "", False
        self.lock = threading.Lock()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16
    disable_nagle_algorithm = True
    ranges: Ranges

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(is_head=True)

    def do_GET(self) -> None:
        self._answer(is_head=False)

    def _answer(self, *, is_head: bool) -> None:
        ranges, name = self.ranges, self.path.partition("?")[0]
        if ranges.is_gone:  # a connection that was kept
            self._drop()
            return
        asked = self.headers.get("Range") or ""
        with ranges.lock:
            ranges.logins.add(self.headers.get("Authorization") or "")
            ranges.requests[self.command] += 1
            number = ranges.requests[self.command]
            if not is_head:
                ranges.log.append((name, asked, time.monotonic()))
        fault = ranges.head if is_head else ranges.fault(name, number)
        with ranges.lock:
            ranges.requests[fault] += 1
        path = ranges.folder / name.lstrip("/")
        if fault.isdigit() or not path.is_file():
            self._refuse(int(fault or 404))
            return
        data = path.read_bytes()
        if fault == "drop":
            self._drop()
            return
        if fault == "stall":
            time.sleep(ranges.stall)
        self._send(data, "" if fault == "whole" else asked, fault, is_head=is_head)

    def _drop(self) -> None:
        self.close_connection = True
        self.connection.close()

    def _refuse(self, status: int) -> None:
        self.send_response(status)
        if status == 429:
            self.send_header("Retry-After", "1")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send(self, data: bytes, asked: str, fault: str, *, is_head: bool) -> None:
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", asked)
        first, last = 0, len(data) - 1
        if span:
            first, last = int(span[1]), min(int(span[2] or last), last)
        if first > last and data:
            self._refuse(416)
            return
        body = data[first : last + 1]
        self.send_response(206 if span else 200)
        self.send_header("Content-Length", str(len(body)))
        if span:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        suffix = "other" if fault == "etag" else self.ranges.etag_suffix
        self.send_header("ETag", f'"{len(data)}{suffix}"')
        self.end_headers()
        if is_head:
            return
        if fault == "cut":
            body, self.close_connection = body[: len(body) // 2], True
        with self.ranges.lock:
            self.ranges.requests["bytes"] += len(body)
        with suppress(ConnectionError):  # who asked may have had enough
            self.wfile.write(body)


@contextmanager
def serving(
    folder: Path,
    *,
    fault: Fault = lambda path, number: "",
    stall: float = 5.0,
    head: str = "",
) -> Iterator[Ranges]:
    """A server of the files of a folder on loopback, at `url`, until the block ends.

    Args:
        folder: what it serves.
        fault: what goes wrong with each GET.
        stall: seconds that a stalled answer takes to begin.
        head: the status of every HEAD, where it is none of success.
    """
    ranges = Ranges(folder, fault=fault, stall=stall, head=head)
    handler = type("Handler", (_Handler,), {"ranges": ranges})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    ranges.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield ranges
    finally:
        ranges.is_gone = True
        server.shutdown()
        server.server_close()
        thread.join()
