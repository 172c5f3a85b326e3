"""An S3 server on loopback, by moto."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("obstore", exc_type=ImportError)
moto = pytest.importorskip("moto.server", exc_type=ImportError)

from mmtrain.data.storage import stores  # noqa: E402


@pytest.fixture(scope="session")
def s3_url() -> Iterator[str]:
    """Where the server listens."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(s3_url, monkeypatch, tmp_path_factory) -> Iterator["Bucket"]:
    """An empty bucket, with the environment that names it to mmtrain and to AWS's own tools."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "known")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-of-the-test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    stores._store.cache_clear()
    yield Bucket(f"bucket-{tmp_path_factory.mktemp('b').name}".lower())
    stores._store.cache_clear()


class Bucket:
    """A bucket that files are uploaded to by AWS's own client."""

    def __init__(self, name: str) -> None:
        import os

        import boto3

        self.name, self.url = name, f"s3://{name}"
        self._client = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"])
        self._client.create_bucket(Bucket=name)

    def put(self, key: str, data: bytes) -> str:
        """Upload; the address."""
        self._client.put_object(Bucket=self.name, Key=key, Body=data)
        return f"{self.url}/{key}"

    def upload(self, folder: Path, prefix: str) -> str:
        """Upload a folder's files; the address of the folder there."""
        for path in sorted(folder.iterdir()):
            if path.is_file():
                self.put(f"{prefix}/{path.name}", path.read_bytes())
        return f"{self.url}/{prefix}"
