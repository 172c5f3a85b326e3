"""Why an evaluation failed: in a line, with the traceback of what nobody foresaw alone."""

import pytest

from mmtrain.errors import UsageError
from mmtrain.eval import together
from mmtrain.eval.failure import Failure


def raised(error: Exception, cause: Exception | None) -> Exception:
    try:
        raise error from cause
    except Exception as found:
        return found


@pytest.mark.parametrize(
    ("error", "cause", "is_foreseen"),
    [
        (UsageError("no such file"), None, True),
        (UsageError("is not JSON"), ValueError("line 3"), True),
        (OSError(5, "I/O"), KeyError("a"), True),
        (KeyError("a"), None, False),
        (KeyError("a"), UsageError("no such file"), False),
        (together._TheirsToo("rank 1: is not JSON"), None, True),
        (together._TheirsToo("is not JSON"), UsageError("is not JSON"), True),
        (
            together._TheirsToo("is not JSON"),
            raised(UsageError("is not JSON"), ValueError("line 3")),
            True,
        ),
        (together._TheirsToo("rank 0: KeyError: 'a'"), KeyError("a"), False),
    ],
)
def test_a_mistake_has_no_traceback(error: Exception, cause: Exception | None, is_foreseen: bool):
    failure = Failure.of(raised(error, cause))
    assert (failure.trace is None) == is_foreseen
    assert failure.error and "\n" not in failure.error
