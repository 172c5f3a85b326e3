"""How another library's tensors and ours are the same numbers, said once for both directions.

A `Link` ties a few of our tensors to a few of theirs. What a model must find in a foreign file,
with every shape, follows from our model's shapes and the links: a leftover, missing or mis-shaped
tensor is named as the file names it.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mmtrain.errors import UsageError
from mmtrain.models import Clip, ClipConfig

Tensors = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Link:
    """`to_ours(*theirs)` gives our tensors in order, `to_theirs(*ours)` theirs."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    to_ours: Callable[..., tuple[Tensor, ...]]
    to_theirs: Callable[..., tuple[Tensor, ...]]


def same(ours: str, theirs: str) -> Link:
    """The same tensor under another name."""
    return Link(ours=(ours,), theirs=(theirs,), to_ours=lambda x: (x,), to_theirs=lambda x: (x,))


def same_layer(ours: str, theirs: str, *, bias: bool = True) -> list[Link]:
    """Weight, and bias, of a layer."""
    leaves = ("weight", "bias") if bias else ("weight",)
    return [same(f"{ours}.{leaf}", f"{theirs}.{leaf}") for leaf in leaves]


def transposed(ours: str, theirs: str) -> Link:
    """A matrix that they keep as [in, out]."""
    return Link(
        ours=(ours,), theirs=(theirs,), to_ours=lambda x: (x.T,), to_theirs=lambda x: (x.T,)
    )


def reshaped(ours: str, theirs: str, shape: tuple[int, ...]) -> Link:
    """The same numbers in another shape, ours flat or scalar where theirs has dims of size 1.

    Args:
        ours: our name.
        theirs: their name.
        shape: theirs; -1 for the one dim that is not of size 1.
    """

    def to_ours(x: Tensor) -> tuple[Tensor]:
        return (x.flatten() if -1 in shape else x.reshape(()),)

    return Link(
        ours=(ours,), theirs=(theirs,), to_ours=to_ours, to_theirs=lambda x: (x.reshape(shape),)
    )


def fused(ours: tuple[str, ...], theirs: str) -> Link:
    """Rows of several of our tensors, of one size, one after another in one of theirs."""
    return Link(
        ours=ours,
        theirs=(theirs,),
        to_ours=lambda x: x.chunk(len(ours)),
        to_theirs=lambda *parts: (torch.cat(parts),),
    )


def patch_convolution(ours: str, theirs: str, patch_size: int) -> Link:
    """A patch embedding that they keep as a convolution's [out, channel, row, column]."""

    def to_ours(x: Tensor) -> tuple[Tensor]:
        return (x.permute(0, 2, 3, 1).flatten(1),)

    def to_theirs(x: Tensor) -> tuple[Tensor]:
        return (x.unflatten(1, (patch_size, patch_size, 3)).permute(0, 3, 1, 2),)

    return Link(ours=(ours,), theirs=(theirs,), to_ours=to_ours, to_theirs=to_theirs)


def batched(ours: str, theirs: str) -> Link:
    """The same tensor with a first dim of size 1 in theirs."""
    return Link(
        ours=(ours,), theirs=(theirs,), to_ours=lambda x: (x[0],), to_theirs=lambda x: (x[None],)
    )


def shapes_of(config: ClipConfig) -> Tensors:
    """A model's state dict without its values."""
    with torch.device("meta"):
        return Clip(config).state_dict()


def tensors_from(links: list[Link], shapes: Tensors, found: Tensors, *, source: str) -> Tensors:
    """Our model's tensors, contiguous, from another library's.

    Args:
        links: of every tensor.
        shapes: our state dict, on the meta device.
        found: by their names.
        source: names the file in messages.

    Raises:
        UsageError: tensors are missing, left over or of another shape.
    """
    check_tensors(tensors_to(links, shapes), found, source=source)
    out: Tensors = {}
    for link in links:
        ours = link.to_ours(*(found[name] for name in link.theirs))
        out |= {name: x.contiguous() for name, x in zip(link.ours, ours, strict=True)}
    return out


def tensors_to(links: list[Link], state: Tensors) -> Tensors:
    """Another library's tensors, contiguous, from our model's."""
    linked = {name for link in links for name in link.ours}
    assert linked == state.keys(), f"not linked: {sorted(linked ^ state.keys())[:5]}"
    out: Tensors = {}
    for link in links:
        theirs = link.to_theirs(*(state[name] for name in link.ours))
        # A clone: two names of one storage cannot be written to a safetensors file.
        out |= {
            name: x.clone(memory_format=torch.contiguous_format)
            for name, x in zip(link.theirs, theirs, strict=True)
        }
    return out


def check_tensors(
    wanted: Mapping[str, Tensor], found: Mapping[str, Tensor], *, source: str
) -> None:
    """Refuse tensors that are not the model's, naming the first few of each fault.

    Raises:
        UsageError: naming them as `wanted` and `found` do.
    """
    floats = {name for name, x in wanted.items() if x.is_floating_point()}
    refuse_quantised(found, floats=floats, source=source)
    shapes = [
        f"{name} {list(found[name].shape)} should be {list(x.shape)}"
        for name, x in wanted.items()
        if name in found and found[name].shape != x.shape
    ]
    faults = {
        "of another shape": shapes,
        "missing": sorted(wanted.keys() - found.keys()),
        "not the model's": sorted(found.keys() - wanted.keys()),
    }
    told = [
        f"{len(names)} {fault} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for fault, names in faults.items()
        if names
    ]
    if told:
        raise UsageError(f"{source}: tensors do not fit its config: {'; '.join(told)}")


def refuse_quantised(found: Mapping[str, Tensor], *, floats: Collection[str], source: str) -> None:
    """Refuse weights that were made integers, or 8-bit floats with scales apart.

    Args:
        found: by their names.
        floats: names of those that the model computes with; others are told by how they are called.
        source: names the file in messages.

    Raises:
        UsageError: naming the first such tensor.
    """
    for name, x in found.items():
        leaf = name.rpartition(".")[2]
        kind = str(x.dtype).removeprefix("torch.")
        if x.is_complex():
            raise UsageError(f"{source}: {name} is {kind}, and weights are real numbers")
        is_weight = (name in floats or leaf in ("weight", "bias")) and (
            not x.is_floating_point() or x.element_size() == 1
        )
        if is_weight or leaf in _QUANTISED:
            raise UsageError(
                f"{source}: {name} is {kind}, of quantised weights, which are not read; take the "
                "model that they were made from, or write it dequantised (transformers: "
                "model.dequantize())"
            )


_QUANTISED = (
    "qweight", "qzeros", "g_idx", "SCB", "weight_format", "absmax", "quant_map", "nested_absmax",
    "weight_scale", "weight_scale_inv", "weight_packed", "input_scale", "weight_zero_point",
)  # fmt: skip
"""What quantised weights keep beside or instead of a weight: bitsandbytes, GPTQ, AWQ, fp8."""
