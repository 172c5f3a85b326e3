"""Multinomial logistic regression by L-BFGS, and the search for its regularisation.

The objective is scikit-learn's: C times the sum of the cross entropies plus half the squared
weights, the bias being free. It has one minimum, so whoever finds it predicts the same.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.nn import functional as F

from mmtrain.collectives import rank_and_size
from mmtrain.eval.scores import blocks
from mmtrain.eval.together import sum_of_all

MAX_ITERATIONS = 1000
"""As in the paper that the linear probe is from (arXiv:2103.00020, App. A.3)."""


@dataclass(frozen=True, kw_only=True)
class LinearClassifier:
    """Scores of classes, linear in the features."""

    weight_ME: Tensor
    """float64, the last column being the bias; E counts it."""

    def scores(self, features_NE: Tensor) -> Tensor:
        """float32 [N, M]."""
        return (_with_one(features_NE) @ self.weight_ME.T).float()


def fit_logistic(
    features_NE: Tensor, class_N: Tensor, *, num_classes: int, strength: float
) -> LinearClassifier:
    """The minimum, to fp64's accuracy or after MAX_ITERATIONS.

    Liu and Nocedal 1989, L-BFGS; the products are taken block by block, so that memory grows with
    N * E, never with N * M.

    Args:
        features_NE: any float; where they are is where the work is done.
        class_N: int64 classes.
        num_classes: M; a class without samples is allowed.
        strength: scikit-learn's C, the inverse of the regularisation.
    """
    x_NE = _with_one(features_NE)
    N = x_NE.size(0)
    weight_ME = x_NE.new_zeros(num_classes, x_NE.size(1)).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weight_ME],
        max_iter=MAX_ITERATIONS,
        max_eval=2 * MAX_ITERATIONS,
        tolerance_grad=1e-6,
        tolerance_change=1e-12,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        penalised_ME = weight_ME.detach().clone()
        penalised_ME[:, -1] = 0
        loss = penalised_ME.square().sum() / (2 * strength * N)
        gradient_ME = penalised_ME / (strength * N)
        for rows in blocks(N, num_classes):
            log_p_BM = F.log_softmax(x_NE[rows] @ weight_ME.detach().T, dim=1)
            loss += F.nll_loss(log_p_BM, class_N[rows], reduction="sum") / N
            error_BM = log_p_BM.exp_()
            error_BM[torch.arange(len(error_BM), device=error_BM.device), class_N[rows]] -= 1
            gradient_ME += error_BM.T @ x_NE[rows] / N
        weight_ME.grad = gradient_ME
        return loss

    optimizer.step(closure)
    return LinearClassifier(weight_ME=weight_ME.detach())


def _with_one(features_NE: Tensor) -> Tensor:
    """float64, a column of ones behind."""
    x_NE = features_NE.double()
    return torch.cat([x_NE, x_NE.new_ones(len(x_NE), 1)], dim=1)


def search_strength(
    score: Callable[[float], float], *, device: torch.device, group: ProcessGroup | None
) -> tuple[float, dict[float, float]]:
    """The C with the highest score, and the scores of all that were tried.

    Seven from 1e-6 to 1e6, then four times the two neighbours of the best at half the distance:
    eight to a decade at the end, as Radford et al. 2021, arXiv:2103.00020, App. A.3. Each is tried
    on one rank; of equal scores the smaller C wins.

    Args:
        score: how well a C does; not collective.
        device: where the ranks communicate.
        group: the ranks that share out the candidates.
    """
    found: dict[float, float] = {}
    best, step = 1.0, 2.0
    exponents = [-6 + step * number for number in range(7)]
    for _ in range(5):
        found |= try_strengths([10**x for x in exponents], score, device=device, group=group)
        best = min(found, key=lambda strength: (-found[strength], strength))
        step /= 2
        middle = round(math.log10(best) * 8) / 8  # exact, so that nothing is tried twice
        exponents = [x for x in (middle - step, middle + step) if abs(x) <= 6]
    return best, dict(sorted(found.items()))


def try_strengths(
    strengths: Sequence[float],
    score: Callable[[float], float],
    *,
    device: torch.device,
    group: ProcessGroup | None,
) -> dict[float, float]:
    """The score of each, on every rank; each is computed on one."""
    rank, ranks = rank_and_size(group)
    scores = torch.zeros(len(strengths), dtype=torch.float64, device=device)
    for number in range(rank, len(strengths), ranks):
        scores[number] = score(strengths[number])
    scores = sum_of_all(scores, group=group)
    return dict(zip(strengths, scores.tolist(), strict=True))
