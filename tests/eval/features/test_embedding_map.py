"""The two planes, against scikit-learn: the principal axes, and what t-SNE makes small."""

import numpy as np
import pytest
import torch
from torch import Tensor

from mmtrain.eval.features.embedding_map import (
    PERPLEXITY,
    _joint_probabilities,
    _nearness,
    neighbour_plane,
    principal_plane,
)


def groups(num: int = 90, *, spread: float = 0.4) -> tuple[Tensor, Tensor]:
    """Unit-norm points in five groups, and the group of each."""
    generator = torch.Generator().manual_seed(3)
    centre_KE = torch.randn(5, 16, generator=generator)
    group_N = torch.arange(num) % 5
    point_NE = centre_KE[group_N] + spread * torch.randn(num, 16, generator=generator)
    return torch.nn.functional.normalize(point_NE, dim=-1), group_N


def divergence(point_N2: Tensor, features_NE: Tensor) -> float:
    """What t-SNE makes small: KL(P || Q) in nats, by its Eq. 2."""
    joint_NN = _joint_probabilities(features_NE.double(), PERPLEXITY)
    near_NN = _nearness(point_N2.double())
    share_NN = (near_NN / near_NN.sum()).clamp(min=1e-300)
    return float(torch.where(joint_NN > 0, joint_NN * (joint_NN / share_NN).log(), 0.0).sum())


def test_the_principal_plane_is_scikit_learns():
    from sklearn.decomposition import PCA

    points, _ = groups()
    got_N2, share = principal_plane(points)
    pca = PCA(2, svd_solver="full").fit(points.double().numpy())
    expected = pca.transform(points.double().numpy())
    assert share == pytest.approx(pca.explained_variance_ratio_.sum())
    for axis in range(2):
        sign = np.sign(got_N2[:, axis].numpy() @ expected[:, axis])
        np.testing.assert_allclose(got_N2[:, axis], sign * expected[:, axis], atol=1e-6)
    mirrored, _ = principal_plane(-points)
    torch.testing.assert_close(mirrored, -got_N2)


def test_joint_probabilities_are_scikit_learns():
    from scipy.spatial.distance import squareform
    from sklearn.manifold._t_sne import _joint_probabilities as reference

    points, _ = groups(40)
    square_NN = torch.cdist(points.double(), points.double()).square().numpy()
    expected = squareform(reference(square_NN, 9.0, 0))
    got = _joint_probabilities(points.double(), 9.0)
    np.testing.assert_allclose(got, expected, rtol=2e-3, atol=1e-8)
    assert float(got.sum()) == pytest.approx(1) and torch.equal(got, got.T)


def test_neighbours_stay_neighbours_as_well_as_scikit_learn_puts_them():
    from sklearn.manifold import TSNE

    points, group_N = groups()
    got_N2 = neighbour_plane(points)
    distance_NN = torch.cdist(got_N2, got_N2).fill_diagonal_(torch.inf)
    assert (group_N[distance_NN.argmin(1)] == group_N).all()
    start_N2, _ = principal_plane(points)
    reference = TSNE(perplexity=15, init="pca", method="exact", random_state=0).fit(points.numpy())
    assert divergence(got_N2, points) < reference.kl_divergence_ * 1.15
    assert divergence(start_N2, points) > reference.kl_divergence_ * 2
    assert divergence(torch.tensor(reference.embedding_), points) == pytest.approx(
        reference.kl_divergence_, rel=1e-2
    )


def test_it_repeats_itself_and_does_not_depend_on_the_scale():
    points, _ = groups(30)
    first = neighbour_plane(points)
    assert torch.equal(first, neighbour_plane(points))
    torch.testing.assert_close(neighbour_plane(points * 1024), first, atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("num", [1, 2, 3, 4, 5])
def test_few_points_and_equal_points_have_a_place(num: int):
    points, _ = groups(num)
    for some in (points, points[:1].expand(num, -1)):
        assert principal_plane(some)[0].shape == (num, 2)
        point_N2 = neighbour_plane(some)
        assert point_N2.shape == (num, 2) and point_N2.isfinite().all()
