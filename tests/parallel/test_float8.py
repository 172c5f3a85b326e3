"""Float8 products, emulated where no GPU has them."""

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import nn

from mmtrain.errors import UsageError
from mmtrain.models import Clip
from mmtrain.parallel.blocks import numbered_blocks
from mmtrain.parallel.precision import apply_float8, apply_precision
from mmtrain.parallel.recompute import RecomputeConfig, apply_recompute
from mmtrain.peft import LoraConfig, apply_lora
from tests.parallel.test_data_parallel_kinds import losses_on_a_gpu
from tests.parallel.tiny_clip import make_batch, modern_config, tiny_config, worst

CPU = torch.device("cpu")


def gradients(stage: nn.Module) -> dict[str, torch.Tensor]:
    """Of a fixed sum over the features."""
    batch = make_batch()
    rows = {"tokens_BT": batch.tokens_BT, "length_B": batch.text_length_B}
    features = stage(batch.images_BCHW, **rows)
    weight = torch.randn(features.shape, generator=torch.Generator().manual_seed(0))
    (features * weight).sum().backward()
    return {n: p.grad for n, p in stage.named_parameters() if p.grad is not None}


def float8_stage(config, recompute: RecomputeConfig | None = None) -> nn.Module:
    stage = Clip(config).init_weights(0).stage()
    apply_float8(stage, emulate=True)
    if recompute is not None:
        apply_recompute(stage, recompute)
    return stage


@pytest.mark.parametrize("config", [tiny_config(), modern_config()])
def test_the_blocks_products_alone_are_rounded_to_float8(config):
    model = Clip(config).init_weights(0)
    before = dict(model.stage().named_parameters())
    stage = model.stage()
    apply_float8(stage, emulate=True)
    inside = {one for _, block in numbered_blocks(stage) for one in block.modules()}
    linears = [one for one in stage.modules() if isinstance(one, nn.Linear)]
    assert any(one in inside for one in linears)
    for one in linears:
        assert (type(one).__name__ == "Float8Linear") == (one in inside)
    after = dict(stage.named_parameters())
    assert after.keys() == before.keys()
    assert all(after[name] is before[name] for name in after)


def test_a_product_is_that_of_scaled_and_rounded_tensors():
    def rounded(x: torch.Tensor) -> torch.Tensor:
        scale = 448 / x.abs().max()  # E4M3's largest number
        return (x * scale).to(torch.float8_e4m3fn).float() / scale

    stage = float8_stage(tiny_config())
    linear = next(one for one in stage.modules() if type(one).__name__ == "Float8Linear")
    assert isinstance(linear, nn.Linear)
    x = torch.randn(3, 5, linear.in_features, generator=torch.Generator().manual_seed(1))
    want = rounded(x) @ rounded(linear.weight).T + linear.bias
    torch.testing.assert_close(linear(x), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("config", [tiny_config(patch_dropout=0.25), modern_config()])
def test_gradients_are_near_those_of_fp32(config):
    want = gradients(Clip(config).init_weights(0).stage())
    got = gradients(float8_stage(config))
    assert got.keys() == want.keys()
    # A key's bias has no true gradient.
    names = {name for name in want if not name.endswith("attention.k.bias")}
    error, name = worst({n: got[n] for n in names}, {n: want[n] for n in names})
    assert 1e-4 < error < 0.3, f"{name} is off by {error:.1e}"


@pytest.mark.parametrize("kind", ["full", "selective"])
def test_recomputed_products_are_the_same(kind):
    config = modern_config()
    want = gradients(float8_stage(config))
    got = gradients(float8_stage(config, RecomputeConfig(kind=kind)))
    assert all(torch.equal(got[name], want[name]) for name in want)


def test_what_float8_does_not_go_with_is_refused_in_a_line(monkeypatch):
    stage = Clip(tiny_config()).stage()
    with pytest.raises(UsageError, match=r"compute capability 8\.9 or higher\), not device = .cpu"):
        apply_precision(stage, "float8", CPU)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA A100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    with pytest.raises(UsageError, match=r"not NVIDIA A100 \(8\.0\); use train\.precision = "):
        apply_precision(stage, "float8", torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UsageError, match=r"pip install 'mmtrain\[float8\]'"):
        apply_precision(stage, "float8", torch.device("cuda"))


def test_a_low_rank_term_is_refused():
    model = Clip(tiny_config()).init_weights(0)
    apply_lora(model, LoraConfig(targets=("text.*.attention.q",)))
    with pytest.raises(UsageError, match=r'does not know the layers of peft\.kind = "lora"'):
        apply_float8(model.stage(), emulate=True)


@pytest.mark.gpu
def test_trains_as_bf16_does(tmp_path: Path):
    pytest.importorskip("torchao")
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("this GPU has no float8")
    words = ("--train.steps", "6", "--train.precision")
    want = losses_on_a_gpu(tmp_path / "bf16", *words, "bf16")
    got = losses_on_a_gpu(tmp_path / "float8", *words, "float8")
    assert got == pytest.approx(want, rel=5e-2)
    assert got != want
