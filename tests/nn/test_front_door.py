"""CATT against its formulas, written again; the identity at the start; the kept keys; k-means."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mmtrain.nn import Mask
from mmtrain.nn.front_door import FrontDoor, FrontDoorConfig, _Side, kmeans


def build(**changes: object) -> FrontDoor:
    config = FrontDoorConfig(**{"entries": 7, "num_layers": 2} | changes)  # pyright: ignore[reportArgumentType]
    door = FrontDoor(config, dim=8, num_heads=2)
    door.init_weights(torch.Generator().manual_seed(0))
    return door.double()


def trained(door: FrontDoor) -> FrontDoor:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in door.parameters():
            parameter.normal_(0.0, 0.3, generator=generator)
    return door


def attention(side: _Side, x: Tensor, source: Tensor) -> Tensor:
    """softmax(Q K^T / sqrt(H)) V of one sample, head by head, then feed-forward: Eq. 2 and 3."""
    a, normed, looked = side.attention, side.norm1(x), side.norm1(source)
    heads = []
    for head in range(2):
        part = slice(4 * head, 4 * head + 4)
        q, k, v = a.q(normed)[:, part], a.k(looked)[:, part], a.v(looked)[:, part]
        heads.append((q @ k.T / 4**0.5).softmax(-1) @ v)
    x = x + a.o(torch.cat(heads, -1))
    up = F.gelu(side.feed_forward.up(side.norm2(x)))
    return x + side.feed_forward.down(up)


@pytest.mark.parametrize("shared", [True, False])
def test_the_formulas(shared: bool):
    door = trained(build(shared=shared))
    x_BTD = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(2)).double()
    for row, x in enumerate(x_BTD):
        own = crossed = x
        for layer in door.layers:
            own = attention(layer.in_sample, own, own)
            crossed = attention(layer.cross_sample or layer.in_sample, crossed, door.dictionary)
        expected = x + door.fuse(torch.cat([own, crossed], -1))
        torch.testing.assert_close(door(x_BTD, Mask())[row], expected, rtol=1e-10, atol=1e-10)


def test_it_starts_as_the_exact_identity_and_still_learns():
    door = build().float()
    x_BTD = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(2))
    assert torch.equal(door(x_BTD, Mask()), x_BTD)
    door(x_BTD, Mask()).square().sum().backward()
    assert door.fuse.weight.grad is not None and bool(door.fuse.weight.grad.abs().sum() > 0)


def test_a_masked_token_changes_no_other():
    door = trained(build())
    allowed = torch.tensor([[[True, True, True, False]]])
    x_BTD = torch.randn(1, 4, 8, generator=torch.Generator().manual_seed(2)).double()
    other = x_BTD.clone()
    other[:, 3] += 5.0
    mask = Mask(allowed=allowed)
    torch.testing.assert_close(door(x_BTD, mask)[:, :3], door(other, mask)[:, :3])


def test_evaluation_makes_the_dictionarys_keys_once_until_a_weight_changes():
    door = trained(build()).eval()
    x_BTD = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(2)).double()
    with torch.no_grad():
        before = door(x_BTD, Mask())
        kept = door.dictionary_keys_values()
        assert door.dictionary_keys_values() is kept
        door.dictionary.mul_(2.0)
        assert door.dictionary_keys_values() is not kept
        assert not torch.equal(door(x_BTD, Mask()), before)
        state = {name: torch.zeros_like(value) for name, value in door.state_dict().items()}
        door.load_state_dict(state, assign=True)
        assert torch.equal(door(x_BTD, Mask()), x_BTD)
    assert door.train().dictionary_keys_values() is not door.dictionary_keys_values()


def test_the_weights_of_entries_are_those_of_the_last_layer():
    door = trained(build(num_layers=1)).eval()
    x_BTD = torch.randn(1, 3, 8, generator=torch.Generator().manual_seed(2)).double()
    weights_BTM = door.cross_sample_weights(x_BTD)
    assert weights_BTM.shape == (1, 3, 7)
    torch.testing.assert_close(weights_BTM.sum(-1), torch.ones(1, 3).double())
    # Values that tell the entries apart: the output then is the weights.
    side = door.layers[0].in_sample
    with torch.no_grad():
        q, (k, _) = side.queries(x_BTD), side.keys_values(door.dictionary[None])
    scores = (q[0, 0] * k[0, :, :]).sum(-1) / 2
    torch.testing.assert_close(weights_BTM[0, 0], scores.softmax(0).mean(1))


def test_kmeans_finds_clusters_and_leaves_empty_centres():
    generator = torch.Generator().manual_seed(0)
    true_MD = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    features = true_MD.repeat(40, 1) + 0.1 * torch.randn(120, 2, generator=generator)
    centres = kmeans(features, 3, generator=torch.Generator().manual_seed(3))
    assert torch.cdist(true_MD, centres).min(1).values.max() < 0.2
    many = kmeans(features[:2], 5, generator=generator)
    assert many.shape == (5, 2) and bool(many.isfinite().all())


def test_refusals():
    with pytest.raises(ValueError, match="entries"):
        FrontDoorConfig(entries=0)
    with pytest.raises(ValueError, match="places"):
        FrontDoorConfig(places=())
