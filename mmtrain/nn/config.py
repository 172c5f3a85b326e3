"""The shape of a stack of blocks, plain data."""

import sys
from dataclasses import dataclass
from typing import Literal

from torch import nn

from mmtrain.limits import MOST_LAYERS, check_choices, check_counts
from mmtrain.nn.feed_forward import GATED, Activation
from mmtrain.nn.masks import MaskKind
from mmtrain.nn.norm import NormKind, build_norm

NormOrder = Literal["pre", "post", "branch", "sandwich"]
InitScheme = Literal["torch", "scaled"]


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Shape of a stack of blocks; it spans CLIP, SigLIP, timm's ViT, GPT-1/2, Llama, Qwen,
    Gemma and OLMo."""

    dim: int
    """Width of the residual stream."""
    num_layers: int
    """Blocks; 0 in a tower that has a trunk instead."""
    num_heads: int
    """Query heads."""
    num_kv_heads: int | None = None
    """Key and value heads; must divide num_heads. None: num_heads (MHA); 1 is MQA."""
    head_dim: int | None = None
    """Features per head. None: dim / num_heads."""
    ff_dim: int | None = None
    """Width of the feed-forward. None: 4 * dim, or 8/3 * dim rounded up to 8 where gated."""
    activation: Activation = "gelu"
    """gelu, gelu_tanh, quick_gelu, relu; gated: swiglu, geglu, geglu_tanh."""
    norm: NormKind = "layer"
    """layer, rms, partial_rms (statistic over a share of the features), gemma_rms (1 + weight)."""
    norm_eps: float = 1e-5
    """Added under the root of every norm."""
    norm_fraction: float = 0.0625
    """Share of the features that partial_rms measures."""
    norm_bias: bool = True
    """Whether layer norms have a bias; the other kinds never do."""
    norm_order: NormOrder = "pre"
    """pre: x + f(norm(x)); post: norm(x + f(x)), as GPT-1; branch: x + norm(f(x)), as OLMo 2
    (arXiv:2501.00656); sandwich: x + norm(f(norm(x))), as Gemma 2 (arXiv:2408.00118)."""
    qkv_bias: bool = True
    """Biases on the query, key and value projections."""
    out_bias: bool = True
    """Bias on attention's output projection."""
    ff_bias: bool = True
    """Biases in the feed-forward."""
    qk_norm: NormKind | None = None
    """Norm of queries and keys (arXiv:2302.05442), its eps, fraction and bias as above. None:
    off."""
    qk_norm_over: Literal["head", "heads"] = "head"
    """head: each head has a statistic of its own, and all share their scales; heads: one of all
    heads of a token, as OLMo 2."""
    attention_scale: float | None = None
    """What scores are multiplied by. None: 1 / sqrt(head_dim)."""
    attention_cap: float | None = None
    """Scores s become cap * tanh(s / cap) (arXiv:2408.00118); by plain products, which hold all
    scores at once. None: off."""
    layer_scale: float | None = None
    """Initial value of the learned scale on each branch (arXiv:2103.17239, Eq. 4). None: off."""
    stochastic_depth: float = 0.0
    """Chance to drop the last block's attention, and its feed-forward, of a sample; it grows
    linearly with depth (arXiv:1603.09382)."""
    mask: MaskKind = "full"
    """full, causal, prefix (bidirectional prefix) or block (shared context, separate questions)."""
    local_window: int | None = None
    """Keys that a query of the local layers sees, its own counted; the other layers see all
    (decoders only). None: no such layers."""
    local_layers: tuple[int, ...] | None = None
    """The local layers, from 0. None: 1, 3, 5 ... (GPT-3's alternation, arXiv:2005.14165, section
    2.1)."""
    context_dim: int | None = None
    """Width of what cross-attention in every block looks at. None: no cross-attention."""
    init: InitScheme = "torch"
    """Table of initial weights, see Transformer.init_weights."""

    def __post_init__(self) -> None:
        check_choices(self)
        check_counts(self, "dim", "num_heads", "num_kv_heads", "head_dim", "ff_dim", "context_dim")
        check_counts(self, "num_layers", least=0, most=MOST_LAYERS)
        check_counts(self, "local_window", most=sys.maxsize)
        if self.head_dim is None and self.dim % self.num_heads:
            raise ValueError(
                f"num_heads = {self.num_heads} must divide dim = {self.dim}, or set head_dim"
            )
        if self.num_heads % self.kv_heads:
            raise ValueError(
                f"num_kv_heads = {self.kv_heads} must divide num_heads = {self.num_heads}"
            )
        self._check_layers()
        for name in ("attention_scale", "attention_cap"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name} = {value} must be above 0")
        if self.qk_norm is None and self.qk_norm_over != "head":
            raise ValueError(
                f'qk_norm_over = "{self.qk_norm_over}" has no effect without qk_norm; leave it out'
            )
        if self.layer_scale is not None and self.norm_order in ("branch", "sandwich"):
            raise ValueError(
                f'layer_scale = {self.layer_scale} and norm_order = "{self.norm_order}" both scale '
                "a branch where it ends; leave one out"
            )
        if not 0 < self.norm_fraction <= 1:
            raise ValueError(f"norm_fraction = {self.norm_fraction} must lie in (0, 1]")
        if not 0 <= self.stochastic_depth < 1:
            raise ValueError(f"stochastic_depth = {self.stochastic_depth} must lie in [0, 1)")

    def check_blocks(self) -> None:
        """Refuse a stack without a block, for who has nothing else.

        Raises:
            ValueError: naming the field.
        """
        check_counts(self, "num_layers")

    def _check_layers(self) -> None:
        layers = self.local_layers
        if layers is None:
            return
        if self.local_window is None:
            raise ValueError("local_layers has no effect without local_window; leave it out")
        if wrong := [layer for layer in layers if not 0 <= layer < self.num_layers]:
            raise ValueError(
                f"local_layers has {wrong[0]}, and the layers are 0 to {self.num_layers - 1}"
            )

    def is_local(self, layer: int) -> bool:
        """Whether a layer sees the window alone."""
        if self.local_window is None:
            return False
        return layer % 2 == 1 if self.local_layers is None else layer in self.local_layers

    @property
    def kv_heads(self) -> int:
        """Key and value heads, resolved."""
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

    @property
    def head_size(self) -> int:
        """Features per head, resolved."""
        return self.dim // self.num_heads if self.head_dim is None else self.head_dim

    @property
    def hidden_dim(self) -> int:
        """Width of the feed-forward, resolved."""
        if self.ff_dim is not None:
            return self.ff_dim
        return -(-self.dim // 3) * 8 if self.activation in GATED else 4 * self.dim

    @property
    def matrix_weights(self) -> int:
        """Weights of the matrices of one block, cross-attention left out."""
        heads = (2 * self.num_heads + 2 * self.kv_heads) * self.head_size
        matrices = 3 if self.activation in GATED else 2
        return self.dim * heads + matrices * self.dim * self.hidden_dim

    def build_norm(self, dim: int, *, kind: NormKind | None = None) -> nn.Module:
        """A norm over `dim` features: of `kind`, or the configured one; the rest as configured."""
        return build_norm(
            kind or self.norm,
            dim,
            eps=self.norm_eps,
            fraction=self.norm_fraction,
            bias=self.norm_bias,
        )
