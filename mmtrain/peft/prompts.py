"""Learned tokens before a decoder's text: prompt tuning, P-tuning and prefix tuning.

The decoder is frozen. Prompt tuning (Lester et al. 2021, arXiv:2104.08691) learns n vectors in
front of the embedded text; P-tuning v1 (Liu et al. 2021, arXiv:2103.10385) learns them through an
LSTM or an MLP; prefix tuning (Li and Liang 2021, arXiv:2101.00190), which P-tuning v2
(arXiv:2110.07602) is too, learns the keys and values of n tokens in every layer. The text's
positions begin at n, and the prefix's keys are not rotated, as in peft's files.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from mmtrain.limits import check_choices, check_counts
from mmtrain.nn import DecoderCache, GivenKV, KVCache, TransformerConfig

PromptKind = Literal["prompt", "p_tuning", "prefix"]


@dataclass(frozen=True, kw_only=True)
class PromptConfig:
    """Learned tokens, and what they are learned through."""

    kind: PromptKind = "prompt"
    """prompt: vectors. p_tuning: vectors through a network. prefix: keys and values per layer."""
    num_tokens: int = 20
    """Learned tokens."""
    network: Literal["mlp", "lstm"] | None = None
    """What the vectors pass in training: mlp or lstm for p_tuning, mlp or none for prefix."""
    hidden_dim: int = 128
    """Width of that network."""

    def __post_init__(self) -> None:
        check_choices(self)
        check_counts(self, "num_tokens", "hidden_dim")
        allowed = {"prompt": (None,), "p_tuning": ("mlp", "lstm"), "prefix": (None, "mlp")}
        if self.network not in allowed[self.kind]:
            shown = " or ".join("none" if x is None else x for x in allowed[self.kind])
            raise ValueError(f'network = "{self.network}" is not for {self.kind}; use {shown}')


class LearnedTokens(nn.Module):
    """n learned rows, through a network or not -> [n, out].

    In peft's order, so that the same weights give the same rows: an mlp is two hidden layers of
    ReLU for P-tuning and one of tanh for a prefix; an lstm is two-way with two layers, then ReLU.

    Args:
        config: which tokens.
        dim: width of the decoder's token vectors.
        out_dim: `dim`, or the numbers of a prefix token: 2 * layers * key heads * head size.
    """

    no_decay: ClassVar[tuple[str, ...]] = ("rows",)

    def __init__(self, config: PromptConfig, *, dim: int, out_dim: int) -> None:
        super().__init__()
        self.config = config
        hidden = config.hidden_dim
        rows = out_dim if config.network is None else dim
        self.rows = nn.Parameter(torch.empty(config.num_tokens, rows))
        self.lstm: nn.LSTM | None = None
        self.network: nn.Sequential | None = None
        if config.kind == "prefix" and config.network == "mlp":
            layers = [nn.Linear(dim, hidden), nn.Tanh(), nn.Linear(hidden, out_dim)]
            self.network = nn.Sequential(*layers)
        elif config.network == "mlp":
            self.network = nn.Sequential(
                nn.Linear(dim, hidden),
                nn.ReLU(),
                nn.Linear(hidden, hidden),
                nn.ReLU(),
                nn.Linear(hidden, out_dim),
            )
        elif config.network == "lstm":
            self.lstm = nn.LSTM(dim, hidden, num_layers=2, bidirectional=True, batch_first=True)
            self.network = nn.Sequential(
                nn.Linear(2 * hidden, 2 * hidden), nn.ReLU(), nn.Linear(2 * hidden, out_dim)
            )

    def forward(self) -> Tensor:
        """The rows [n, out]."""
        rows = self.rows
        if self.lstm is not None:
            rows = self.lstm(rows[None])[0][0]
        return rows if self.network is None else self.network(rows)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """Rows from N(.02), linears and the lstm from U(+-fan_in^-.5), biases at zero."""
        self.rows.normal_(0.0, 0.02, generator=generator)
        for part in (self.network, self.lstm):
            for name, parameter in () if part is None else part.named_parameters():
                if "bias" in name:
                    parameter.zero_()
                else:
                    bound = parameter.size(1) ** -0.5
                    parameter.uniform_(-bound, bound, generator=generator)


def learned_tokens(config: PromptConfig, blocks: TransformerConfig) -> LearnedTokens:
    """The learned tokens of a decoder with these blocks."""
    prefix = 2 * blocks.num_layers * blocks.kv_heads * blocks.head_size
    out_dim = prefix if config.kind == "prefix" else blocks.dim
    return LearnedTokens(config, dim=blocks.dim, out_dim=out_dim)


def baked(config: PromptConfig) -> PromptConfig:
    """The config of learned tokens that have left their network behind, as exports hold them."""
    if config.network is None:
        return config
    kind = "prompt" if config.kind == "p_tuning" else config.kind
    return replace(config, kind=kind, network=None, hidden_dim=PromptConfig.hidden_dim)


def prefix_layers(rows_nF: Tensor, blocks: TransformerConfig) -> list[tuple[Tensor, Tensor]]:
    """Rows of a prefix -> keys and values of each layer, [1, n, K, H] each.

    peft's order: a row holds, per layer, all of its key and then all of its value.
    """
    n = rows_nF.size(0)
    parts = rows_nF.view(n, 2 * blocks.num_layers, blocks.kv_heads, blocks.head_size)
    return [
        (parts[None, :, 2 * layer], parts[None, :, 2 * layer + 1])
        for layer in range(blocks.num_layers)
    ]


def given_prefix(
    rows_nF: Tensor, blocks: TransformerConfig, *, batch_size: int, num_tokens: int
) -> DecoderCache:
    """A prefix as the cache of one training pass, its gradients kept; the text comes behind it.

    Args:
        rows_nF: from LearnedTokens.
        blocks: of the decoder.
        batch_size: texts.
        num_tokens: of a text.
    """
    layers = [
        GivenKV(*(part.expand(batch_size, -1, -1, -1) for part in pair))
        for pair in prefix_layers(rows_nF, blocks)
    ]
    n = rows_nF.size(0)
    cache = DecoderCache(
        layers, batch_size=batch_size, max_length=n + num_tokens, device=rows_nF.device
    )
    cache.append(n)
    return cache


@torch.no_grad()
def fill_prefix(cache: DecoderCache, rows_nF: Tensor, blocks: TransformerConfig) -> None:
    """Put a prefix into an empty cache of generation."""
    for layer, (k, v) in zip(cache.layers, prefix_layers(rows_nF, blocks), strict=True):
        assert isinstance(layer, KVCache)
        batch_size = layer.k_BKSH.size(0)
        layer.update(*(x.expand(batch_size, -1, -1, -1) for x in (k, v)))
    cache.append(rows_nF.size(0))
