"""Two results on the same samples: their difference, and how far chance alone would move it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmtrain.eval.intervals import bootstrap_interval


@dataclass(frozen=True, kw_only=True)
class Paired:
    """B against A."""

    num: int
    """Samples."""
    num_images: int
    """Images that they are about."""
    a: float
    """Mean of A."""
    b: float
    """Mean of B."""
    interval: tuple[float, float] | None
    """95 % interval of B - A. None: all samples are about one image, which tells none."""
    table: tuple[int, int, int, int] | None
    """Right in both, only in A, only in B, in neither. None: scores lie between wrong and right."""
    p_value: float | None
    """McNemar's, exact, every sample taken as independent. None: as above."""

    @property
    def difference(self) -> float:
        """B - A."""
        return self.b - self.a


def compare_paired(
    a_N: NDArray[np.float64], b_N: NDArray[np.float64], image_N: NDArray[np.int64]
) -> Paired:
    """Compare scores of the same samples.

    Args:
        a_N: scores of A, from 0 to 1.
        b_N: scores of B.
        image_N: number of each sample's image.
    """
    is_binary = bool(np.isin(a_N, (0, 1)).all() and np.isin(b_N, (0, 1)).all())
    a_right, b_right = a_N == 1, b_N == 1
    cells = ((True, True), (True, False), (False, True), (False, False))
    table = [int(((a_right == a) & (b_right == b)).sum()) for a, b in cells]
    return Paired(
        num=a_N.size,
        num_images=np.unique(image_N).size,
        a=float(a_N.mean()),
        b=float(b_N.mean()),
        interval=bootstrap_interval(b_N - a_N, image_N),
        table=(table[0], table[1], table[2], table[3]) if is_binary else None,
        p_value=mcnemar(table[1], table[2]) if is_binary else None,
    )


def mcnemar(only_a: int, only_b: int) -> float:
    """The exact two-sided p-value of McNemar's test (1947): what is right in one of the two is as
    likely in either, Bin(n, 1/2)."""
    num, least = only_a + only_b, min(only_a, only_b)
    if 2 * least >= num:
        return 1.0
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, num + 1)))])
    k = np.arange(least + 1)
    log_p = log_factorial[num] - log_factorial[k] - log_factorial[num - k] - num * np.log(2)
    return float(min(1.0, 2 * np.exp(log_p).sum()))
