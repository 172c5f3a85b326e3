"""What every test of data begins with."""

import pytest

from mmtrain.data.storage import stores


@pytest.fixture(autouse=True)
def workers_may_fork(monkeypatch) -> None:
    """Tests that replace parts of the process want workers that are its copies, whatever other
    tests of the same process read from stores."""
    monkeypatch.setattr(stores, "_process", 0)
