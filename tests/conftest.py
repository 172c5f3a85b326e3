"""A run of the tests leaves nothing behind: its folders (7 GB) and lock files would fill a disk.

`tmp_path` is kept for the tests that failed alone (pyproject.toml); all else that is written to the
folder of temporary files (caches of compilers, sockets, locks) goes with the session.
"""

import atexit
import functools
import gc
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from multiprocessing import util

import pytest

from mmtrain.cli import program


def pytest_configure(config: pytest.Config) -> None:
    """Workers and the processes that tests start inherit the folder."""
    logging.disable(logging.DEBUG)  # checkpoints make a record of every tensor, for no handler
    if "PYTEST_XDIST_WORKER" in os.environ:
        return
    os.environ["COLUMNS"] = "100"  # what is told is folded to this, whatever terminal it runs in
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())
    made = os.environ["TMPDIR"] = tempfile.tempdir = tempfile.mkdtemp(prefix="mmtrain-tests-")
    # The first to be registered is the last to be called: multiprocessing removes a folder in it.
    atexit.unregister(util._exit_function)  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    atexit.register(util._exit_function)  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """What is imported and collected (some millions of objects) is garbage for no test: it is left
    out of all later collections, and each run that a test trains begins with a whole one."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


@pytest.fixture(autouse=True, scope="session")
def one_parser() -> Iterator[None]:
    """A process has one command, and makes the parser of all commands for it (40 ms); one of tests
    has hundreds, which share it: it keeps nothing of what it reads."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(program, "build_parser", functools.cache(program.build_parser))
        yield
