"""Which library multiplies fp32 matrices on a CPU: whichever, the numbers are fp32's."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from mmtrain.nn import Mask, attend, products
from mmtrain.nn.config import TransformerConfig
from mmtrain.nn.products import by_onednn, fast_products
from mmtrain.nn.transformer import Transformer

CPU = torch.device("cpu")
SETTING = torch.backends.mkldnn.matmul


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """What this machine is, which the tests pretend about."""
    products.onednn_is_better.cache_clear()
    yield
    products.onednn_is_better.cache_clear()


def pretend(monkeypatch: pytest.MonkeyPatch, *, amx: bool, avx512: bool, vendor: str) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_supported", lambda: avx512)
    monkeypatch.setattr(products.Path, "read_text", lambda self: f"vendor_id : {vendor}\n")


@pytest.mark.parametrize("shape", [(1, 64, 64), (7, 33, 129), (256, 192, 576), (640, 512, 48)])
def test_products_and_their_gradients_are_those_of_fp32(shape: tuple[int, int, int]):
    """On this machine, whichever it is."""
    rows, inner, columns = shape
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, inner, generator=generator, requires_grad=True)
    weight = torch.randn(columns, inner, generator=generator, requires_grad=True)
    bias = torch.randn(columns, generator=generator)
    with fast_products(CPU):
        out = torch.nn.functional.linear(x, weight, bias)
        grads = torch.autograd.grad(out.square().sum(), [x, weight])
    exact = [t.detach().double().requires_grad_() for t in (x, weight)]
    want = torch.nn.functional.linear(*exact, bias.double())
    wanted = torch.autograd.grad(want.square().sum(), exact)
    for got, right in zip((out, *grads), (want, *wanted), strict=True):
        assert (got - right).abs().max() <= 3e-6 * right.abs().max()


@pytest.mark.parametrize(
    ("amx", "avx512", "vendor", "taken"),
    [
        (False, True, "AuthenticAMD", True),
        (True, True, "AuthenticAMD", False),
        (False, False, "AuthenticAMD", False),
        (False, True, "GenuineIntel", False),
    ],
)
def test_it_is_taken_where_it_is_faster(amx, avx512, vendor, taken, monkeypatch):
    pretend(monkeypatch, amx=amx, avx512=avx512, vendor=vendor)
    monkeypatch.setattr(products, "_is_exact", lambda: True)
    with fast_products(CPU):
        assert by_onednn() is taken
    with fast_products(torch.device("cuda")):
        assert not by_onednn()


def test_a_library_that_rounds_is_not_taken(monkeypatch):
    pretend(monkeypatch, amx=False, avx512=True, vendor="AuthenticAMD")
    plain = torch.Tensor.__matmul__

    def rounded(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return plain(a.bfloat16(), b.bfloat16()).float()

    monkeypatch.setattr(torch.Tensor, "__matmul__", rounded)
    with fast_products(CPU):
        assert not by_onednn()


def test_what_was_set_is_there_again_afterwards(monkeypatch):
    pretend(monkeypatch, amx=False, avx512=True, vendor="AuthenticAMD")
    monkeypatch.setattr(products, "_is_exact", lambda: True)
    before = SETTING.fp32_precision
    with pytest.raises(ZeroDivisionError), fast_products(CPU):
        with fast_products(CPU):
            assert by_onednn()
        assert by_onednn()
        raise ZeroDivisionError
    assert SETTING.fp32_precision == before


def test_attention_takes_large_products_where_small_ones_are_slow(monkeypatch):
    pretend(monkeypatch, amx=False, avx512=True, vendor="AuthenticAMD")
    monkeypatch.setattr(products, "_is_exact", lambda: True)
    monkeypatch.setattr("mmtrain.nn.attention.PLAIN_UP_TO", {})
    ran = []
    for name in ("_attend_plain", "_attend_fused"):
        monkeypatch.setattr(
            f"mmtrain.nn.attention.{name}", lambda *given, name=name: ran.append(name)
        )
    x = torch.zeros(1, 50, 1, 4)
    attend(x, x, x, Mask())
    with fast_products(CPU):
        attend(x, x, x, Mask())
        attend(x.double(), x.double(), x.double(), Mask())
    assert ran == ["_attend_fused", "_attend_plain", "_attend_fused"]


@pytest.mark.parametrize("in_autocast", [False, True])
def test_products_of_one_input_read_one_cast_of_it(in_autocast: bool):
    config = TransformerConfig(dim=16, num_layers=1, num_heads=2, activation="swiglu")
    block = Transformer(config).blocks["0"]
    read: dict[str, Tensor] = {}
    for name, module in block.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(
                lambda _, given, name=name: read.update({name: given[0]})
            )
    x = torch.randn(2, 3, 16, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=in_autocast):
        block(x, mask=Mask())
    attention = [read[f"attention.{name}"] for name in "qkv"]
    gated = [read[f"feed_forward.{name}"] for name in ("up", "gate")]
    for first, *others in (attention, gated):
        assert first.dtype == (torch.bfloat16 if in_autocast else torch.float32)
        assert all(other is first for other in others)
