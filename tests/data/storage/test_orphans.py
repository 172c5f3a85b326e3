"""Workers that read from a store end with the main process, also where that is killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.data.shard_files import write_set
from tests.data.storage.fault_server import serving

_READS = """
import multiprocessing, sys
from tests.data.shard_files import build_data

if __name__ == "__main__":
    batches = build_data(sys.argv[1], workers=2, caption_lines=False).iterate(0, 10_000)
    next(batches)
    print(*(each.pid for each in multiprocessing.active_children()), flush=True)
    while True:
        next(batches)
"""


def lives(process: int) -> bool:
    try:
        told = Path(f"/proc/{process}/stat").read_text()
    except FileNotFoundError:
        return False
    return told.rpartition(")")[2].split()[0] != "Z"


@pytest.mark.slow
def test_workers_end_with_a_main_process_that_is_killed(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    write_set(tmp_path / "set", (9, 8))
    script = tmp_path / "reads.py"
    script.write_text(_READS)
    with serving(tmp_path / "set") as web:
        words = [sys.executable, str(script), f"{web.url}/{{000..001}}.tar"]
        paths = {"PYTHONPATH": os.pathsep.join([str(Path.cwd()), *sys.path])}
        main = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=os.environ | paths)
        assert main.stdout is not None
        workers = [int(word) for word in main.stdout.readline().split()]
        assert len(workers) == 2 and all(map(lives, workers))
        main.send_signal(signal.SIGKILL)
        main.wait()
        end = time.monotonic() + 60
        try:
            while any(map(lives, workers)):
                assert time.monotonic() < end, "workers outlived the main process"
                time.sleep(0.1)
        finally:
            main.stdout.close()  # not before: its workers hold it too
            for worker in filter(lives, workers):
                os.kill(worker, signal.SIGKILL)
