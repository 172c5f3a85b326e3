"""A file on its way to a store, and the process that sends it is killed."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import boto3
import pytest

from mmtrain.cli import main
from mmtrain.data.storage.open import open_file
from mmtrain.data.storage.place import open_place
from mmtrain.train.copy_checkpoints import sealed_in
from tests.train.test_mirrored_run import train

MIB = 1 << 20
PUT = (
    "import sys; from pathlib import Path; from mmtrain.data.storage.place import open_place; "
    "open_place(sys.argv[1], key='to').put('large', Path(sys.argv[2]))"
)


class Way:
    """To a server, on which nothing more goes there once so many bytes went."""

    def __init__(self, url: str, *, after: int) -> None:
        host, port = url.removeprefix("http://").split(":")
        self._server, self._left = (host, int(port)), after
        self.stalls, self.ends = threading.Event(), threading.Event()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"

    def serve(self) -> None:
        """Take connections until the listener is closed."""
        while not self.ends.is_set():
            try:
                here, _ = self.listener.accept()
            except OSError:
                return
            there = socket.create_connection(self._server)
            for way in ((here, there, True), (there, here, False)):
                threading.Thread(target=self._carry, args=way, daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket, counts: bool) -> None:
        try:
            while data := source.recv(1 << 16):
                self._left -= len(data) * counts
                if self._left < 0:
                    self.stalls.set()
                    self.ends.wait()
                    break
                sink.sendall(data)
        except OSError:
            pass  # the other side was killed
        for each in (source, sink):
            each.close()


@contextmanager
def stalling(url: str, *, after: int) -> Iterator[Way]:
    way = Way(url, after=after)
    threading.Thread(target=way.serve, daemon=True).start()
    try:
        yield way
    finally:
        way.ends.set()
        way.listener.close()


def kill_half_way(words: list[str], way: Way) -> None:
    """Run a command that sends over a way, and kill it when nothing more goes there."""
    environment = os.environ | {"AWS_ENDPOINT_URL": way.url, "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen([sys.executable, *words], env=environment)
    assert way.stalls.wait(60) and child.poll() is None
    child.kill()
    child.wait()


def unfinished(bucket: str) -> list[str]:
    """The keys that a bucket has uploads of which nobody ended."""
    client = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"])
    return [one["Key"] for one in client.list_multipart_uploads(Bucket=bucket).get("Uploads", [])]


@pytest.mark.parametrize("older", [None, b"older"])
def test_half_a_file_is_never_there_and_it_is_sent_again(s3, s3_url, tmp_path, older) -> None:
    """An older one of its name stays until the new one is whole."""
    large, place = tmp_path / "large", open_place(f"{s3.url}/runs", key="to")
    large.write_bytes(os.urandom(MIB) * 24)  # three parts
    if older is not None:
        place.put("large", older)
    with stalling(s3_url, after=12 * MIB) as way:
        kill_half_way(["-c", PUT, f"{s3.url}/runs", str(large)], way)
    assert unfinished(s3.name) == ["runs/large"]  # what docs/checkpoints.md tells of
    assert place.sizes() == ({} if older is None else {"large": len(older)})
    place.put("large", large)
    assert place.sizes() == {"large": 24 * MIB}
    with open_file(place.address("large")) as file:
        assert file.read(0, file.size) == large.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_a_push_that_was_killed_goes_on(s3, s3_url, tmp_path, capsys, share) -> None:
    """There is no seal before all of a checkpoint is there."""
    run, url = tmp_path / "run", f"{s3.url}/runs/first"
    assert train(run) == 0
    newest = max((run / "checkpoints").iterdir())
    size = sum(path.stat().st_size for path in newest.iterdir())
    with stalling(s3_url, after=int(share * size)) as way:
        kill_half_way(["-m", "mmtrain", "checkpoint", "push", str(newest), url], way)
    assert sealed_in(open_place(url, key="to").sizes()) == {}
    back = tmp_path / "back"
    assert main(["checkpoint", "pull", url, str(back)]) == 2
    assert "holds no sealed checkpoint" in capsys.readouterr().err
    assert main(["checkpoint", "push", str(newest), url]) == 0
    assert main(["checkpoint", "pull", url, str(back)]) == 0
    assert main(["checkpoint", "verify", str(back)]) == 0
