"""A web server of ranges and an S3 server on loopback, for measurements: processes of their own."""

import logging
import multiprocessing
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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


def serve_web(folder: Path, told: Connection) -> None:
    """A web server of a folder until this process is ended; tells its address."""
    Handler.folder = folder
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    told.send(f"http://127.0.0.1:{server.server_address[1]}")
    server.serve_forever()


def serve_s3(folder: Path, told: Connection) -> None:
    """moto's server with a folder's files in the bucket `shards`; as above."""
    import boto3  # moto needs it
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    url = "http://{}:{}".format(*server.get_host_and_port())
    keys = {"aws_access_key_id": "known", "aws_secret_access_key": "secret"}
    client = boto3.client("s3", endpoint_url=url, region_name="us-east-1", **keys)
    client.create_bucket(Bucket="shards")
    for path in folder.iterdir():
        client.upload_file(str(path), "shards", path.name, ExtraArgs={"ACL": "public-read"})
    told.send(url)
    signal.pause()


@contextmanager
def serving(serve: Callable[[Path, Connection], None], folder: Path) -> Iterator[str]:
    """The address of a server, which is ended when this is left."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    server = context.Process(target=serve, args=(folder, there), daemon=True)
    server.start()
    try:
        yield here.recv()
    finally:
        server.terminate()
        server.join()
