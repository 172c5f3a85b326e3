"""Front-door causal attention (CATT): what a sample shows, and what all samples show.

Yang et al., CVPR 2021, arXiv:2103.03493. A confounder that nobody observed makes the attention of a
model follow what merely came together in training. The front-door adjustment (Pearl 1995) needs no
knowledge of it:

    P(Y | do(X)) = sum_z P(z | X)  sum_x P(x) P(Y | z, x)                                   (1)

Sampling z and x at the level of features (the paper's normalised weighted geometric mean) leaves
two expectations, each of which is an attention:

    z^ = sum_z P(z | X) z = softmax(Q_I K_I^T / sqrt(H)) V_I       in-sample attention      (2)
    x^ = sum_x P(x | X) x = softmax(Q_C K_C^T / sqrt(H)) V_C       cross-sample attention   (3)

Queries, keys and values of (2) come from the sample; keys and values of (3) from a *dictionary*, a
learned table that all samples share and that stands for the training set. Each output goes through
its own feed-forward; (2)'s is the next layer's sample, (3)'s its next query. At the end

    y = x + F [z^ ; x^]                                                                     (4)

with F = 0 at the start, so a trained model that gets this module computes the same to the last bit.
(The paper's fc([z^ ; x^]) is (4) with fc = [1 0] + F.) The numbers of the equations are ours.

Such a module stands on features that a tower has finished, or behind each of a tower's blocks
(`add_front_doors`), which then reads what the one before made of (4).
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from mmtrain.limits import MOST_LAYERS, check_choices, check_counts
from mmtrain.nn.attention import Attention, attend
from mmtrain.nn.block import TransformerBlock
from mmtrain.nn.config import TransformerConfig
from mmtrain.nn.feed_forward import FeedForward
from mmtrain.nn.masks import Mask
from mmtrain.nn.transformer import Transformer

Place = Literal["image", "question", "vision"]
KeysValues = tuple[Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class FrontDoorConfig:
    """How large the dictionaries are, and where and how they work."""

    entries: int = 500
    """Entries of each dictionary; the paper has 500 or 800."""
    num_layers: int = 1
    """Layers of in-sample and cross-sample attention."""
    places: tuple[Place, ...] = ("image", "question")
    """What gets a dictionary: image and question, the features that the heads read; vision, inside
    of the vision tower, what leaves each of its blocks."""
    shared: bool = True
    """One set of weights for in-sample and cross-sample attention, which puts dictionary and
    features into one space; False: one for each."""
    init: Literal["kmeans", "random"] = "kmeans"
    """The dictionaries' start: centres of the features of the first samples, or small noise."""
    ff_dim: int | None = None
    """Width of the feed-forwards. None: 4 times the features'."""

    def __post_init__(self) -> None:
        check_choices(self)
        check_counts(self, "entries", "ff_dim")
        check_counts(self, "num_layers", most=MOST_LAYERS)
        if not self.places:
            raise ValueError(
                'places = [] leaves no place; use "image", "question", "vision" or several of them'
            )


class _Side(nn.Module):
    """Attention and feed-forward on residual branches: one of the two sides of a layer."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.norm1 = config.build_norm(config.dim)
        self.attention = Attention(
            config.dim,
            num_heads=config.num_heads,
            num_kv_heads=config.kv_heads,
            head_dim=config.head_size,
        )
        self.norm2 = config.build_norm(config.dim)
        self.feed_forward = FeedForward(
            config.dim, config.hidden_dim, activation=config.activation, bias=config.ff_bias
        )

    def keys_values(self, context_BSD: Tensor) -> KeysValues:
        """Keys and values [B, S, K, H] of what is looked at."""
        x, head_dim = self.norm1(context_BSD), self.attention.head_dim
        k = self.attention.k(x).unflatten(-1, (-1, head_dim))
        return k, self.attention.v(x).unflatten(-1, (-1, head_dim))

    def queries(self, x_BTD: Tensor) -> Tensor:
        """[B, T, N, H]."""
        return self.attention.q(self.norm1(x_BTD)).unflatten(-1, (-1, self.attention.head_dim))

    def forward(self, x_BTD: Tensor, keys_values: KeysValues, mask: Mask) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        k, v = (part.expand(x_BTD.size(0), -1, -1, -1) for part in keys_values)
        x_BTD = x_BTD + self.attention.o(attend(self.queries(x_BTD), k, v, mask).flatten(-2))
        return x_BTD + self.feed_forward(self.norm2(x_BTD))


class FrontDoorAttention(nn.Module):
    """One layer: in-sample attention (2) and cross-sample attention (3), side by side."""

    def __init__(self, config: TransformerConfig, *, shared: bool) -> None:
        super().__init__()
        self.in_sample = _Side(config)
        self.cross_sample = None if shared else _Side(config)

    @property
    def cross_side(self) -> _Side:
        """The weights of cross-sample attention."""
        return self.in_sample if self.cross_sample is None else self.cross_sample

    def forward(
        self, in_BTD: Tensor, cross_BTD: Tensor, dictionary: KeysValues, mask: Mask
    ) -> tuple[Tensor, Tensor]:
        """Both streams [B, T, D] one layer on.

        Args:
            in_BTD: the sample's own stream.
            cross_BTD: the stream that has looked at the dictionary so far.
            dictionary: its keys and values for this layer, [1, M, K, H].
            mask: which of the sample's own tokens each may see.
        """
        in_BTD = self.in_sample(in_BTD, self.in_sample.keys_values(in_BTD), mask)
        return in_BTD, self.cross_side(cross_BTD, dictionary, Mask())


class FrontDoor(nn.Module):
    """A stack of such layers over one modality's features, with its dictionary, fused by (4)."""

    no_decay: ClassVar[tuple[str, ...]] = ("dictionary",)
    weights_meet: ClassVar[bool] = True

    def __init__(self, config: FrontDoorConfig, *, dim: int, num_heads: int) -> None:
        super().__init__()
        block = TransformerConfig(
            dim=dim, num_layers=config.num_layers, num_heads=num_heads, ff_dim=config.ff_dim
        )
        self.dictionary = nn.Parameter(torch.zeros(config.entries, dim))
        self.layers = nn.ModuleList(
            FrontDoorAttention(block, shared=config.shared) for _ in range(config.num_layers)
        )
        self.fuse = nn.Linear(2 * dim, dim)
        self._kept: tuple[object, list[KeysValues]] | None = None

    def forward(self, x_BTD: Tensor, mask: Mask) -> Tensor:
        """[B, T, D] -> [B, T, D], the same as x until training moves `fuse`."""
        in_BTD = cross_BTD = x_BTD
        for layer, keys_values in zip(self.layers, self.dictionary_keys_values(), strict=True):
            in_BTD, cross_BTD = layer(in_BTD, cross_BTD, keys_values, mask)
        return x_BTD + self.fuse(torch.cat([in_BTD, cross_BTD], dim=-1))

    def dictionary_keys_values(self) -> list[KeysValues]:
        """Each layer's keys and values of the dictionary; in evaluation they are computed once.

        Whether they still hold is told by the parameters' identities and version counters, so
        weights that are loaded or trained on make them anew.
        """
        if self.training or torch.is_grad_enabled():
            return self._keys_values()
        state = tuple((id(p), p.data_ptr(), p._version, p.dtype) for p in self.parameters())
        if self._kept is None or self._kept[0] != state:
            self._kept = state, self._keys_values()
        return self._kept[1]

    def _keys_values(self) -> list[KeysValues]:
        dictionary_1MD = self.dictionary[None]
        return [layer.cross_side.keys_values(dictionary_1MD) for layer in self._typed_layers()]

    def _typed_layers(self) -> list[FrontDoorAttention]:
        return [layer for layer in self.layers if isinstance(layer, FrontDoorAttention)]

    @torch.no_grad()
    def cross_sample_weights(self, x_BTD: Tensor) -> Tensor:
        """Which entries fire: the last layer's cross-sample attention, mean of heads [B, T, M]."""
        layers, all_kept = self._typed_layers(), self.dictionary_keys_values()
        for layer, keys_values in zip(layers[:-1], all_kept[:-1], strict=True):
            x_BTD = layer.cross_side(x_BTD, keys_values, Mask())
        q_BTNH, k_1MKH = layers[-1].cross_side.queries(x_BTD), all_kept[-1][0]
        scores = torch.einsum("btnh,mnh->bntm", q_BTNH, k_1MKH[0]) * q_BTNH.size(-1) ** -0.5
        return scores.softmax(-1).mean(1)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """Draw initial weights: linears U(+-fan_in^-.5), dictionary N(.01), `fuse` zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                bound = module.in_features**-0.5
                module.weight.uniform_(-bound, bound, generator=generator)
                if module.bias is not None:
                    module.bias.zero_()
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()
        self.dictionary.normal_(0.0, 0.01, generator=generator)
        self.fuse.weight.zero_()
        self.fuse.bias.zero_()


class FrontDoorBlock(TransformerBlock):
    """A block with a front door behind it, which takes the place of that block.

    A block still, so that whatever lays out blocks lays it out as one; its own parameters keep
    their names, the door's are below `front_door`.
    """

    def __init__(self, block: TransformerBlock, door: FrontDoor) -> None:
        nn.Module.__init__(self)
        vars(self).update(vars(block) | {"_modules": dict(block._modules)})
        self.front_door = door

    def forward(self, x_BTD: Tensor, *, mask: Mask, **others: Any) -> Tensor:
        """[B, T, D] -> [B, T, D]; takes what the block takes."""
        return self.front_door(super().forward(x_BTD, mask=mask, **others), mask)


def add_front_doors(transformer: Transformer, config: FrontDoorConfig) -> None:
    """Put a front door behind every block, in place: the same function at first."""
    core = transformer.config
    for name, block in list(transformer.blocks.items()):
        assert isinstance(block, TransformerBlock)
        door = FrontDoor(config, dim=core.dim, num_heads=core.num_heads)
        transformer.blocks[name] = FrontDoorBlock(block, door)


def kmeans(
    features_BD: Tensor, num_centres: int, *, generator: torch.Generator, num_rounds: int = 20
) -> Tensor:
    """Centres [M, D] of features by Lloyd's rounds from random features.

    A centre that nobody is nearest to stays where it is; with fewer features than centres, the rest
    are repeated with a little noise.

    Args:
        features_BD: what is summarised.
        num_centres: M.
        generator: picks the first centres.
        num_rounds: of assignment and mean.
    """
    num = features_BD.size(0)
    order = torch.randperm(num, generator=generator)
    chosen = features_BD[order[torch.arange(num_centres) % num]].clone()
    noise = torch.randn(chosen.shape, generator=generator, dtype=chosen.dtype)
    repeated = (torch.arange(num_centres) >= num)[:, None]
    chosen += repeated * noise * 0.01 * features_BD.std()
    for _ in range(num_rounds):
        nearest_B = torch.cdist(features_BD, chosen).argmin(1)
        count_M = torch.bincount(nearest_B, minlength=num_centres)
        total_MD = torch.zeros_like(chosen).index_add_(0, nearest_B, features_BD)
        mean_MD = total_MD / count_M.clamp(min=1)[:, None]
        chosen = torch.where((count_M > 0)[:, None], mean_MD, chosen)
    return chosen
