"""Where the rows of a batch come from."""

from collections.abc import Sequence
from typing import Any

from mmtrain.data.numbered import NumberedData
from mmtrain.data.replacing import candidates


def origins(
    data: NumberedData[Any], number: int, keys: Sequence[str]
) -> list[tuple[int, int] | None]:
    """Number of the source, and of the sample in it, of each row; None on padding.

    Args:
        data: the batches.
        number: of the batch.
        keys: that it has.
    """
    rows = data.plan.rows(number)
    found: list[tuple[int, int] | None] = []
    for row, (source, key) in enumerate(zip(rows.source_B.tolist(), keys, strict=True)):
        tried = candidates(data.plan, rows, row, seed=data.seed) if key else ()
        sample = next((each for each in tried if data.sources[source].key(each) == key), None)
        found.append(None if sample is None else (source, sample))
    return found
