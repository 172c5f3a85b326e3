"""One of something is one."""

import pytest

from mmtrain.settings.counted import counted


@pytest.mark.parametrize(
    ("num", "told"), [(0, "0 images"), (1, "1 image"), (1.0, "1 image"), (1234, "1,234 images")]
)
def test_one_of_something_is_one(num: float, told: str) -> None:
    assert counted(num, "image") == told
