"""LoRA: a low-rank term beside frozen linear layers. Hu et al. 2021, arXiv:2106.09685, Eq. 3.

    y = W x + b + scale * B A dropout(x),  scale = alpha / r, or alpha / sqrt(r) (arXiv:2312.03732)

B starts at zero, so that a model starts as it was. A layer keeps its parameters' names and gains
`lora_a` [r, in] and `lora_b` [out, r].

DoRA (Liu et al. 2024, arXiv:2402.09353, Eq. 5) trains the length of every row as well, `lora_m`
[out], which starts at that of W's:

    y = m / |W + scale * B A| * (W x + scale * B A dropout(x)) + b

The length of a row, |.|, is a constant to the gradient (its Eq. 11).
"""

from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmtrain.peft.lora_config import LoraConfig

TERMS = ("lora_a", "lora_b", "lora_m")
"""The last parts of the names of a term's parameters."""
DROPOUT_KEYS = "lora_key_B"
"""The row of a batch that dropout is drawn from: an int64 key of each sample."""


class LoraDropout:
    """What the layers of one model share to draw which features their terms do not see.

    A draw is a function of the sample, so that two passes, microbatches, layouts and a resumed run
    all see the same; all tokens of a sample share it.

    Args:
        rate: share of features left out.
        draw: (keys int64 [B], first, num) -> uniform draws `first` to `first + num` [B, num].
    """

    def __init__(self, rate: float, draw: Callable[[Tensor, int, int], Tensor]) -> None:
        self.rate, self._draw = rate, draw
        self._key_B: Tensor | None = None

    def watch(self, stage: nn.Module) -> None:
        """Take the samples' keys out of what the stage is called with."""
        stage.register_forward_pre_hook(self._take, with_kwargs=True)

    def _take(
        self, _: nn.Module, args: tuple[Any, ...], rows: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        self._key_B = rows.get(DROPOUT_KEYS)
        return args, {name: x for name, x in rows.items() if name != DROPOUT_KEYS}

    def __call__(self, x: Tensor, first: int) -> Tensor:
        """[R, ..., in] -> the same with features set to 0 and the rest raised; R is the number of
        samples, or several rows of each sample one after another."""
        assert self._key_B is not None, "the objective gives every sample's key"
        keep_BI = self._draw(self._key_B, first, x.size(-1)) >= self.rate
        keep = keep_BI.repeat_interleave(x.size(0) // keep_BI.size(0), dim=0)
        keep = keep.view(x.size(0), *[1] * (x.ndim - 2), x.size(-1))
        return x * keep.to(x.dtype) / (1 - self.rate)


class LoraLinear(nn.Linear):
    """A frozen linear layer with a trainable term of low rank.

    A linear layer still, so that tensor parallelism shards it as one.

    Args:
        linear: the layer; its parameters are taken over.
        rank: of the term.
        scale: the term's weight.
        dora: train the length of the weight's rows too.
        dropout: shared by the layers of a model. None: the term sees everything.
        first: number of this layer's first draw among those of a sample.
    """

    lora_m: Tensor | None

    def __init__(
        self,
        linear: nn.Linear,
        *,
        rank: int,
        scale: float,
        dora: bool = False,
        dropout: LoraDropout | None = None,
        first: int = 0,
    ) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.scale: float = scale
        self.is_merged: bool = False
        self.dropout: LoraDropout | None = dropout
        self.first: int = first
        like = {"dtype": linear.weight.dtype, "device": linear.weight.device}
        self.lora_a = nn.Parameter(torch.zeros(rank, linear.in_features, **like))
        self.lora_b = nn.Parameter(torch.zeros(linear.out_features, rank, **like))
        length = nn.Parameter(torch.ones(linear.out_features, **like)) if dora else None
        self.register_parameter("lora_m", length)

    def forward(self, input: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        is_scaled = self.lora_m is not None and not self.is_merged
        y = F.linear(input, self.weight, None if is_scaled else self.bias)
        if self.is_merged:
            return y
        if self.dropout is not None and self.training:
            input = self.dropout(input, self.first)
        y = y + F.linear(F.linear(input, self.lora_a), self.lora_b) * self.scale
        if not is_scaled:
            return y
        y = y * self.gain().to(y.dtype)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def gain(self) -> Tensor:
        """What DoRA multiplies each row by, [out]."""
        assert self.lora_m is not None
        return self.lora_m / _lengths(self.weight, self.lora_a, self.lora_b, scale=self.scale)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """A from U(+-fan_in^-.5), B at zero; a row's length is the weight's own."""
        bound = self.in_features**-0.5
        self.lora_a.uniform_(-bound, bound, generator=generator)
        self.lora_b.zero_()
        if self.lora_m is not None:
            self.lora_m.copy_(_lengths(self.weight, self.lora_a, self.lora_b, scale=self.scale))


@torch.no_grad()
def _lengths(weight: Tensor, a: Tensor, b: Tensor, *, scale: float) -> Tensor:
    """Those of the rows of W + scale * B A, [out], in fp32 at least."""
    # A plan's weights are on no device, which autocast does not know.
    kind = "cpu" if weight.is_meta else weight.device.type
    with torch.autocast(kind, enabled=False):
        wide = torch.promote_types(weight.dtype, torch.float32)
        whole = weight.to(wide) + scale * (b.to(wide) @ a.to(wide))
        return torch.linalg.vector_norm(whole, dim=1).clamp(min=torch.finfo(wide).tiny)


def apply_lora(
    model: nn.Module, config: LoraConfig, *, seed: int = 0, dropout: LoraDropout | None = None
) -> list[str]:
    """Give the matching layers their term and freeze everything else, in place.

    Args:
        model: of any kind.
        config: which layers, and how.
        seed: of the initial terms.
        dropout: what the terms do not see, at `config.dropout`.

    Returns:
        The layers' names.

    Raises:
        ValueError: a pattern matches no linear layer, or one of ranks or alphas says nothing.
    """
    assert (dropout is not None) == (config.dropout > 0), "dropout needs the samples' draws"
    linears = {name for name, part in model.named_modules() if isinstance(part, nn.Linear)}
    chosen: set[str] = set()
    for pattern in config.targets:
        matching = {name for name in linears if fnmatchcase(name, pattern)}
        if not matching:
            leaves = ", ".join(sorted({name.rpartition(".")[2] for name in linears}))
            raise ValueError(
                f'targets = "{pattern}" matches no linear layer; the last parts of their names are '
                f"{leaves}"
            )
        chosen |= matching
    config.check_patterns(sorted(chosen))
    model.requires_grad_(False)
    generator, first = torch.Generator().manual_seed(seed), 0
    for name in sorted(chosen):
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        # A front door's dictionary stands for no sample, so nothing is drawn for it.
        drawn = None if "front_door" in name else dropout
        layer = LoraLinear(
            linear,
            rank=config.rank_of(name),
            scale=config.scale_of(name),
            dora=config.dora,
            dropout=drawn,
            first=first,
        )
        first += linear.in_features
        layer.init_weights(generator)
        _replace(model, name, layer)
    return sorted(chosen)


@torch.no_grad()
def add_terms(
    model: nn.Module,
    terms: Mapping[str, tuple[Tensor, Tensor]],
    *,
    scale: float,
    scales: Mapping[str, float] | None = None,
    lengths: Mapping[str, Tensor] | None = None,
) -> None:
    """Give layers the terms of a finished adapter, in place.

    Args:
        model: has the layers.
        terms: A [r, in] and B [out, r] by the layer's name.
        scale: the terms' weight.
        scales: that of layers where it is another one, by the layer's name.
        lengths: DoRA's of the rows, [out], by the layer's name.
    """
    for name, (a, b) in terms.items():
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        length = (lengths or {}).get(name)
        own = (scales or {}).get(name, scale)
        layer = LoraLinear(linear, rank=a.size(0), scale=own, dora=length is not None)
        layer.lora_a.copy_(a)
        layer.lora_b.copy_(b)
        if layer.lora_m is not None and length is not None:
            layer.lora_m.copy_(length)
        _replace(model, name, layer)


def _replace(model: nn.Module, name: str, layer: LoraLinear) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, layer)


@torch.no_grad()
def merge_lora(model: nn.Module) -> None:
    """Put every term into its layer's weight, in place: the same function at no cost."""
    for layer in _lora_layers(model):
        if not layer.is_merged:
            gain = None if layer.lora_m is None else layer.gain()
            layer.weight += layer.scale * (layer.lora_b @ layer.lora_a)
            if gain is not None:
                layer.weight *= gain[:, None]
            layer.is_merged = True


@torch.no_grad()
def unmerge_lora(model: nn.Module) -> None:
    """Take every merged term out again, in place; the weight is what it was up to rounding.

    Raises:
        ValueError: a layer of DoRA, whose rows' first lengths are gone.
    """
    layers = [layer for layer in _lora_layers(model) if layer.is_merged]
    if any(layer.lora_m is not None for layer in layers):
        raise ValueError("a merged weight of dora does not tell how long its rows were")
    for layer in layers:
        layer.weight -= layer.scale * (layer.lora_b @ layer.lora_a)
        layer.is_merged = False


def _lora_layers(model: nn.Module) -> Iterator[LoraLinear]:
    return (part for part in model.modules() if isinstance(part, LoraLinear))


def lora_terms(tensors: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """The terms (A, B) of a state dict, by their layer's name."""
    ends = ".lora_a"
    names = [name.removesuffix(ends) for name in tensors if name.endswith(ends)]
    return {name: (tensors[f"{name}.lora_a"], tensors[f"{name}.lora_b"]) for name in names}


def lora_lengths(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """DoRA's lengths of a state dict, by their layer's name."""
    ends = ".lora_m"
    return {name.removesuffix(ends): x for name, x in tensors.items() if name.endswith(ends)}


def merged_tensors(tensors: Mapping[str, Tensor], config: LoraConfig) -> dict[str, Tensor]:
    """A state dict with the terms put into their weights: that of the plain model."""
    plain = {n: x for n, x in tensors.items() if n.rpartition(".")[2] not in TERMS}
    lengths = lora_lengths(tensors)
    for name, (a, b) in lora_terms(tensors).items():
        weight, scale = plain[f"{name}.weight"], config.scale_of(name)
        whole = weight + scale * (b @ a)
        if name in lengths:
            whole *= (lengths[name] / _lengths(weight, a, b, scale=scale))[:, None]
        plain[f"{name}.weight"] = whole
    return plain
