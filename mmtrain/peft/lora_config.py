"""Which layers get a term of low rank, and its size in each."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from mmtrain.limits import check_counts


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Which layers get a low-rank term, and its size."""

    rank: int = 8
    """Rank of the term."""
    alpha: float = 16.0
    """Its weight: the term counts alpha / rank."""
    rslora: bool = False
    """Count alpha / sqrt(rank) instead, which large ranks want (arXiv:2312.03732)."""
    dropout: float = 0.0
    """Share of a layer's input features that the term does not see, drawn for each sample."""
    dora: bool = False
    """Train the length of a weight's rows too (DoRA, arXiv:2402.09353)."""
    targets: tuple[str, ...] = ("*.attention.q", "*.attention.v")
    """Names of linear layers, with * for any part: `*.attention.*`, `text.*.feed_forward.up`."""
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    """Another rank for some of them, by patterns as of targets; the first that fits counts."""
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    """Another alpha, likewise; a layer's term counts its alpha / its rank."""

    def __post_init__(self) -> None:
        check_counts(self, "rank")
        for name, rank in self.rank_pattern.items():
            if rank < 1:
                raise ValueError(f'rank_pattern."{name}" = {rank} must be at least 1')
            LoraConfig(rank=rank)  # the upper bound of a rank
        for name, alpha in (("", self.alpha), *self.alpha_pattern.items()):
            if alpha <= 0:
                key = f'alpha_pattern."{name}"' if name else "alpha"
                raise ValueError(f"{key} = {alpha} must be above 0")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout = {self.dropout} must lie in [0, 1)")
        if not self.targets:
            raise ValueError("targets = [] names no layer; leave it out for queries and values")

    @property
    def scale(self) -> float:
        """What the term is multiplied by where no pattern says otherwise."""
        return lora_scale(self.alpha, self.rank, rslora=self.rslora)

    def rank_of(self, name: str) -> int:
        """The rank of a layer's term."""
        return _first_fitting(self.rank_pattern, name, self.rank)

    def scale_of(self, name: str) -> float:
        """What a layer's term is multiplied by."""
        alpha = _first_fitting(self.alpha_pattern, name, self.alpha)
        return lora_scale(alpha, self.rank_of(name), rslora=self.rslora)

    def check_patterns(self, chosen: Sequence[str]) -> None:
        """Refuse a pattern that says nothing of the layers that get a term.

        Raises:
            ValueError: it fits none of them, or others before it fit all that it fits.
        """
        for key in ("rank_pattern", "alpha_pattern"):
            patterns = list(getattr(self, key))
            first = {next((p for p in patterns if fnmatchcase(n, p)), None) for n in chosen}
            for pattern in patterns:
                if pattern in first:
                    continue
                fits = any(fnmatchcase(name, pattern) for name in chosen)
                why = (
                    "others before it fit all its layers; put it first"
                    if fits
                    else ("it fits none of the layers that targets names")
                )
                raise ValueError(f'{key}."{pattern}" has no effect: {why}')


def lora_scale(alpha: float, rank: int, *, rslora: bool) -> float:
    """What a term is multiplied by."""
    return alpha / (math.sqrt(rank) if rslora else rank)


def _first_fitting(patterns: Mapping[str, Any], name: str, default: Any) -> Any:
    return next((x for pattern, x in patterns.items() if fnmatchcase(name, pattern)), default)
