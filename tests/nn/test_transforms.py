"""What torch.func's transforms make of a block with functions of our own in it."""

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap
from torch.nn import functional as F

from mmtrain.nn import build_norm
from mmtrain.nn.rope import apply_rope, rope_1d
from mmtrain.nn.transforms import is_transformed

X_NBTD = torch.randn(2, 3, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


class Turned(nn.Module):
    """An RMSNorm and a rotation."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = build_norm("rms", 8, eps=1e-6).double()

    def forward(self, x_BTD: Tensor) -> Tensor:
        heads_BTNH = self.norm(x_BTD).unflatten(-1, (2, 4))
        return apply_rope(heads_BTNH, rope_1d(torch.arange(x_BTD.size(-2)), 4)).flatten(-2)


def test_gradients_of_each_sample_are_those_of_backward():
    model = Turned()
    weights = dict(model.named_parameters())

    def loss(weights: dict[str, Tensor], x_BTD: Tensor) -> Tensor:
        return functional_call(model, weights, (x_BTD,)).pow(3).sum()

    found = vmap(grad(loss), in_dims=(None, 0))(weights, X_NBTD)["norm.weight"]
    for one, x_BTD in zip(found, X_NBTD, strict=True):
        (wanted,) = torch.autograd.grad(loss(weights, x_BTD), [model.norm.weight])
        torch.testing.assert_close(one, wanted, rtol=1e-10, atol=1e-10)
    assert not is_transformed()


@pytest.mark.filterwarnings("ignore:.torch.jit.script:FutureWarning")  # of torch, in jvp
def test_directions_go_through_it():
    model, x_BTD, step_BTD = Turned(), X_NBTD[0], X_NBTD[1]
    found = jvp(model, (x_BTD,), (step_BTD,))[1]
    with torch.no_grad():
        further, back = model(x_BTD + 1e-6 * step_BTD), model(x_BTD - 1e-6 * step_BTD)
    torch.testing.assert_close(found, (further - back) / 2e-6, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("layout", [(0, 1, 2), (1, 0, 2), (2, 1, 0), (1, 2, 0)])
def test_an_rms_norm_reads_any_layout(layout: tuple[int, ...]):
    x = X_NBTD[0].permute(layout).detach().requires_grad_()
    weight = torch.rand(x.size(-1), dtype=torch.float64)
    norm = build_norm("rms", x.size(-1), eps=1e-6).double()
    norm.load_state_dict({"weight": weight})
    ours, theirs = norm(x), F.rms_norm(x, weight.shape, weight, 1e-6)
    torch.testing.assert_close(ours, theirs)
    found, wanted = (torch.autograd.grad(y.pow(3).sum(), x)[0] for y in (ours, theirs))
    torch.testing.assert_close(found, wanted)
