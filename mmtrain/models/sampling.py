"""Which token comes next: the likeliest one, or a draw."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """How the next token is chosen and when a text ends."""

    max_new_tokens: int = 64
    """Tokens written at most."""
    end_ids: tuple[int, ...] = ()
    """Tokens that end a text; they are its last."""
    temperature: float = 0.0
    """0: the likeliest token. Else tokens are drawn, logits divided by it first."""
    top_k: int | None = None
    """Draw from the k likeliest tokens only. None: from all."""
    top_p: float | None = None
    """Draw from the fewest tokens whose probabilities reach p (the nucleus). None: from all."""
    num_beams: int = 1
    """More than 1: beam search, see beam_search.py."""
    length_penalty: float = 1.0
    """Beam search divides a text's log-probability by its length to this power."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens = {self.max_new_tokens} must be at least 1")
        if self.temperature < 0:
            raise ValueError(f"temperature = {self.temperature} must be at least 0")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k = {self.top_k} must be at least 1")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p = {self.top_p} must lie in (0, 1]")
        if self.num_beams < 1:
            raise ValueError(f"num_beams = {self.num_beams} must be at least 1")
        draws = self.temperature > 0
        if not draws and (self.top_k is not None or self.top_p is not None):
            raise ValueError("top_k and top_p choose what is drawn from: set temperature above 0")
        if draws and self.num_beams > 1:
            raise ValueError(
                f"num_beams = {self.num_beams} searches and temperature = {self.temperature} "
                "draws; leave one out"
            )


def pick_next(
    logits_BV: Tensor, config: GenerationConfig, *, generator: torch.Generator | None = None
) -> Tensor:
    """Next tokens [B]: the likeliest, or drawn from what `keep_likely` leaves."""
    if config.temperature == 0:
        return logits_BV.argmax(-1)
    kept_BV = keep_likely(
        logits_BV.float() / config.temperature, top_k=config.top_k, top_p=config.top_p
    )
    return torch.multinomial(kept_BV.softmax(-1), 1, generator=generator)[:, 0]


def keep_likely(
    logits_BV: Tensor, *, top_k: int | None = None, top_p: float | None = None
) -> Tensor:
    """Logits with all but the likely tokens at -inf: first top-k, then the nucleus of what is left.

    The nucleus (Holtzman et al. 2020, arXiv:1904.09751, Eq. 2) holds the likeliest token always.
    """
    if top_k is not None and top_k < logits_BV.size(-1):
        least_B1 = logits_BV.topk(top_k).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < least_B1, float("-inf"))
    if top_p is not None:
        sorted_BV, order_BV = logits_BV.sort(descending=True)
        share_BV = sorted_BV.softmax(-1)
        # A token is out if those before it reach p.
        out_BV = share_BV.cumsum(-1) - share_BV >= top_p
        out_BV[:, 0] = False
        out_BV = torch.zeros_like(out_BV).scatter(1, order_BV, out_BV)
        logits_BV = logits_BV.masked_fill(out_BV, float("-inf"))
    return logits_BV
