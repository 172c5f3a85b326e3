"""Number formats of a run."""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Literal, get_args

import torch
from torch import nn

from mmtrain.errors import UsageError
from mmtrain.nn.products import allows_tf32, tf32_products
from mmtrain.nn.seams import Forward, wrap_forward
from mmtrain.parallel.blocks import numbered_blocks
from mmtrain.parallel.mesh import Layout

Precision = Literal[
    "fp32", "bf16", "tf32", "bf16-main", "bf16-pure", "bf16-fsdp", "fp16", "float8", "fp64"
]
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16, "float8": torch.bfloat16}
_TF32_CAPABILITY = (8, 0)
"""The first CUDA devices that multiply TF32: Ampere."""
_FLOAT8_CAPABILITY = (8, 9)
"""The first CUDA devices that multiply float8: Ada; then Hopper and Blackwell."""


@contextmanager
def autocast(precision: Precision, device: torch.device) -> Iterator[None]:
    """The context that a forward pass runs in: 16-bit products over fp32 weights, products in
    TF32, or neither."""
    cast = nullcontext()
    if precision in _AUTOCAST:
        cast = torch.autocast(device.type, _AUTOCAST[precision])
    with cast, tf32_products(precision == "tf32"):
        yield


def product_dtype(precision: Precision) -> torch.dtype | None:
    """What products are computed in where it is not the weights' own format."""
    return _AUTOCAST.get(precision)


def multiplies_bf16(precision: Precision, device: torch.device) -> bool:
    """Whether a run's products are in bf16, and a CPU's units for that (AMX) compute them."""
    in_bf16 = precision.startswith("bf16")
    return in_bf16 and device.type == "cpu" and torch.cpu._is_amx_tile_supported()


def check_precision(layout: Layout, precision: Precision) -> None:
    """Refuse a number format that the layout does not have.

    Raises:
        UsageError: with the remedy.
    """
    if precision not in (known := get_args(Precision)):
        raise UsageError(f'precision = "{precision}" is unknown; use {" or ".join(known)}')
    if precision == "bf16-fsdp" and not layout.is_sharded:
        raise UsageError(
            f'train.precision = "bf16-fsdp" needs weights that FSDP gathers: parallel.dp_kind = '
            f'"fsdp" and several data-parallel ranks, not dp_kind = "{layout.config.dp_kind}" and '
            f'{layout.size("dp")}; use train.precision = "bf16-main"'
        )
    if precision == "float8" and layout.size("tp") > 1:
        raise UsageError(
            f'train.precision = "float8" does not go with parallel.tp = {layout.size("tp")}: each '
            "rank would scale its share of a matrix in its own way; use parallel.tp = 1 or "
            'train.precision = "bf16"'
        )


def laid_out(layout: Layout, precision: Precision) -> Precision:
    """A number format by the name of who applies it: where FSDP gathers it makes the copies too."""
    return "bf16-fsdp" if precision == "bf16-main" and layout.is_sharded else precision


def apply_precision(stage: nn.Module, precision: Precision, device: torch.device) -> None:
    """Give a stage's weights their stored format and its products theirs, in place.

    `bf16` and `fp16` are autocast: products in that format over fp32 weights; fp16 wants its loss
    scaled (optim/loss_scale.py). `float8` is bf16 with the blocks' products in float8. `bf16-pure`
    stores weights and optimizer state in bf16 without an fp32 copy: the least memory, and updates
    below a weight's 8 bits are lost. `bf16-main` stores both in fp32 and computes with copies
    (main_weights.py); `bf16-fsdp` is the same by FSDP, which copies as it gathers (shard.py).
    `tf32` is of the process (`fast_products`): here it is only asked for. `fp64` is for proofs. The
    logits' scale stays fp32.

    Raises:
        UsageError: the device or the installation has no float8, or no TF32, or the process does
            not allow that.
    """
    check_tf32(precision, device, key="train.precision")
    if precision == "tf32" and not allows_tf32():
        raise UsageError(
            'precision = "tf32" is the process\'s, its backward too: set '
            "torch.backends.cuda.matmul.allow_tf32 = True before"
        )
    if precision == "float8":
        _check_float8(device)
        apply_float8(stage)
    if precision == "bf16-pure":
        stage.to(torch.bfloat16)
    elif precision == "bf16-main":
        # DTensors with it: a recipe, which names a format, is read without the engine.
        from mmtrain.parallel.main_weights import compute_in_bf16

        compute_in_bf16(stage)
    elif precision == "fp64":
        stage.to(torch.float64)
    elif precision in _AUTOCAST:
        _autocast_forward(stage, precision, device)


def check_tf32(precision: Precision, device: torch.device, *, key: str) -> None:
    """Refuse products in TF32 on a device that has none.

    Args:
        precision: any; others are passed over.
        device: that computes.
        key: the setting that it came from.

    Raises:
        UsageError: with the remedy.
    """
    if precision == "tf32" and (have := _lacking(device, _TF32_CAPABILITY)) is not None:
        raise UsageError(
            f'{key} = "tf32" needs a GPU that multiplies TF32 (compute capability '
            f'{_told(_TF32_CAPABILITY)} or higher), not {have}; use {key} = "fp32"'
        )


def apply_float8(stage: nn.Module, *, emulate: bool = False) -> None:
    """Compute the products of the blocks' linear layers in float8, in place, by torchao.

    Values and weights in E4M3, gradients in E5M2 (Micikevicius et al., arXiv:2209.05433), each
    tensor scaled by its largest value of the moment; sums in fp32. Parameters stay as they are
    stored, under their names. Embeddings, norms, attention and heads are left alone.

    Args:
        stage: its blocks are changed.
        emulate: round to float8 and multiply in fp32, slowly, on any device.

    Raises:
        UsageError: a block has LoRA's layers, which torchao does not know.
    """
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    # The products want multiples of 16, and a microbatch has any number of tokens.
    config = Float8LinearConfig(emulate=emulate, pad_inner_dim=True)
    for _, block in numbered_blocks(stage):
        linears = [one for one in block.modules() if isinstance(one, nn.Linear)]
        if any(type(one) is not nn.Linear for one in linears):
            raise UsageError(
                'train.precision = "float8" does not know the layers of peft.kind = "lora"; use '
                'train.precision = "bf16"'
            )
        convert_to_float8_training(block, config=config)


def _check_float8(device: torch.device) -> None:
    if (have := _lacking(device, _FLOAT8_CAPABILITY)) is not None:
        raise UsageError(
            'train.precision = "float8" needs a GPU that multiplies float8 (compute capability '
            f'{_told(_FLOAT8_CAPABILITY)} or higher), not {have}; use train.precision = "bf16"'
        )
    if importlib.util.find_spec("torchao") is None:
        raise UsageError(
            "train.precision = \"float8\" needs the package torchao; pip install 'mmtrain[float8]'"
        )


def _lacking(device: torch.device, needed: tuple[int, int]) -> str | None:
    """What a device is that has less than a compute capability; None: it has it."""
    if device.type != "cuda":
        return f'device = "{device.type}"'
    capability = torch.cuda.get_device_capability(device)
    if capability >= needed:
        return None
    return f"{torch.cuda.get_device_name(device)} ({_told(capability)})"


def _told(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))


def _autocast_forward(stage: nn.Module, precision: Precision, device: torch.device) -> None:
    """Run every forward of the stage in an autocast of its own.

    Autocast keeps cast weights until its outermost context ends. One context around several
    microbatches gave FSDP's gathered weights gradients that were off by more than their norm.
    """

    def in_format(forward: Forward) -> Forward:
        def run(*inputs: Any, **rows: Any) -> Any:
            with autocast(precision, device):
                return forward(*inputs, **rows)

        return run

    wrap_forward(stage, "autocast", in_format)
