"""Features as points on a plane: by their widest spread, and by who is near whom.

Both are small and exact, for the thousand points that a picture can show, and repeat themselves to
the last bit: no draw is random.
"""

import math

import torch
from torch import Tensor

PERPLEXITY = 15.0
_ITERATIONS = 500
_EARLY = 100
"""Iterations in which the attraction is exaggerated, so that groups form before they settle."""
_EXAGGERATION = 12.0


def principal_plane(features_NE: Tensor) -> tuple[Tensor, float]:
    """The points on the two axes of most variance, fp64 [N, 2], and the share of it they hold.

    Principal component analysis. Of the two directions of an axis the one is taken whose largest
    entry is positive, so that the picture does not depend on the library's mood.
    """
    centred_NE = features_NE.double() - features_NE.double().mean(0)
    _, value_R, axis_RE = torch.linalg.svd(centred_NE, full_matrices=False)
    axis_2E = axis_RE[:2]
    largest_2 = axis_2E.gather(1, axis_2E.abs().argmax(1, keepdim=True))
    point_N2 = centred_NE @ (axis_2E * largest_2.sign()).T
    total = float(value_R.square().sum())
    share = float(value_R[:2].square().sum()) / total if total else 0.0
    # A plane needs two axes, also where all points lie on one.
    return torch.nn.functional.pad(point_N2, (0, 2 - point_N2.size(1))), share


def neighbour_plane(features_NE: Tensor, *, perplexity: float = PERPLEXITY) -> Tensor:
    """The points on a plane where near stays near: fp64 [N, 2].

    t-SNE, exact (van der Maaten and Hinton 2008, JMLR 9, Eq. 1 to 5), from the principal plane on,
    with momentum and gains as in their reference, the learning rate N / 12 of Belkina et al. 2019
    (Nature Communications 10:5415). Time and memory grow with N squared: 600 points take seconds.

    Args:
        features_NE: distances are Euclidean.
        perplexity: how many neighbours count; fewer where there are few points.
    """
    num = features_NE.size(0)
    start_N2, _ = principal_plane(features_NE)
    if num < 4:
        return start_N2
    joint_NN = _joint_probabilities(features_NE.double(), min(perplexity, (num - 1) / 3)).float()
    point_N2 = (start_N2 / start_N2[:, 0].std().clamp(min=1e-12) * 1e-4).float()
    speed_N2, gain_N2 = torch.zeros_like(point_N2), torch.ones_like(point_N2)
    rate = max(num / _EXAGGERATION, 50.0)
    for step in range(_ITERATIONS):
        early = step < _EARLY
        slope_N2 = _slope(point_N2, joint_NN, _EXAGGERATION if early else 1.0)
        against = slope_N2.sign() != speed_N2.sign()
        gain_N2 = torch.where(against, gain_N2 + 0.2, gain_N2 * 0.8).clamp(min=0.01)
        speed_N2 = (0.5 if early else 0.8) * speed_N2 - rate * gain_N2 * slope_N2
        point_N2 = point_N2 + speed_N2
    return (point_N2 - point_N2.mean(0)).double()


def _joint_probabilities(features_NE: Tensor, perplexity: float) -> Tensor:
    """P of Eq. 1: each point's bandwidth is halved towards the perplexity, all points at once."""
    num = features_NE.size(0)
    square_NN = torch.cdist(features_NE, features_NE).square()
    square_NN.fill_diagonal_(math.inf)
    # Distances in units of the nearest: the search must not depend on the features' scale.
    square_NN = square_NN - square_NN.amin(1, keepdim=True)
    scale = square_NN[square_NN.isfinite()].mean().clamp(min=1e-30)
    low_N1 = torch.full((num, 1), -30.0, dtype=torch.float64, device=features_NE.device)
    high_N1, wanted = -low_N1, math.log(perplexity)
    for _ in range(60):
        middle_N1 = (low_N1 + high_N1) / 2
        share_NN = (-square_NN / scale * middle_N1.exp()).softmax(1)
        too_wide = torch.special.entr(share_NN).sum(1, keepdim=True) > wanted
        low_N1 = torch.where(too_wide, middle_N1, low_N1)
        high_N1 = torch.where(too_wide, high_N1, middle_N1)
    share_NN = (-square_NN / scale * low_N1.exp()).softmax(1)
    return (share_NN + share_NN.T) / (2 * num)


def _nearness(point_N2: Tensor) -> Tensor:
    """1 / (1 + squared distance), [N, N] with zeros on the diagonal."""
    x_N, y_N = point_N2.T
    square_NN = (x_N[:, None] - x_N).square() + (y_N[:, None] - y_N).square()
    return (1 / (1 + square_NN)).fill_diagonal_(0.0)


def _slope(point_N2: Tensor, joint_NN: Tensor, exaggeration: float) -> Tensor:
    """Eq. 5, [N, 2]."""
    near_NN = _nearness(point_N2)
    pull_NN = (exaggeration * joint_NN - near_NN / near_NN.sum()) * near_NN
    return 4 * (pull_NN.sum(1, keepdim=True) * point_N2 - pull_NN @ point_N2)
