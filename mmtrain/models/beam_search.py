"""Beam search: the likeliest texts among the few that every step keeps.

As transformers' generate does it (early_stopping = False), token for token: a text that ends
competes with score log p / length^penalty, and a row is done when no running beam's score reaches
that of its worst finished text.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from mmtrain.models.decoder import Decoder
from mmtrain.models.prefill import Prefilled
from mmtrain.models.sampling import GenerationConfig


@dataclass(frozen=True, kw_only=True)
class Text:
    """A finished text of one row."""

    tokens: list[int]
    """New tokens, the end token last where it came to one."""
    score: float
    """Log-probability / length^penalty."""


@dataclass(kw_only=True)
class _Row:
    """A prompt's beams: new tokens of each, and what has finished."""

    beams: list[list[int]]
    finished: list[Text] = field(default_factory=list)
    is_done: bool = False


@torch.inference_mode()
def beam_search(decoder: Decoder, start: Prefilled, config: GenerationConfig) -> list[Text]:
    """The best text of each prompt.

    Args:
        decoder: writes.
        start: from prefill; its cache is used up.
        config: num_beams, length_penalty, max_new_tokens and end_ids.
    """
    K, cache, logits_BV = config.num_beams, start.cache, start.logits_BV
    num_rows, device = logits_BV.size(0), logits_BV.device
    cache.select(torch.arange(num_rows, device=device).repeat_interleave(K))
    logits_BV = logits_BV.repeat_interleave(K, 0)
    rows = [_Row(beams=[[] for _ in range(K)]) for _ in range(num_rows)]
    # All beams of a row are alike at first: only one of them may go on.
    score_RK = torch.full((num_rows, K), float("-inf"), device=device)
    score_RK[:, 0] = 0.0
    for length in range(1, config.max_new_tokens + 1):
        candidates = _candidates(logits_BV, score_RK, config)
        picked = [
            _advance(row, one, length, config) for row, one in zip(rows, candidates, strict=True)
        ]
        if all(row.is_done for row in rows) or length == config.max_new_tokens:
            break
        score_RK = torch.tensor([[c.score for c in kept] for kept in picked], device=device)
        parent = [r * K + c.beam for r, kept in enumerate(picked) for c in kept]
        cache.select(torch.tensor(parent, device=device))
        next_B = torch.tensor([c.token for kept in picked for c in kept], device=device)
        logits_BV = decoder(next_B[:, None], cache=cache)[:, 0]
    return [max(row.finished, key=lambda text: text.score) for row in rows]


@dataclass(frozen=True, kw_only=True)
class _Candidate:
    beam: int
    token: int
    score: float


def _candidates(
    logits_BV: Tensor, score_RK: Tensor, config: GenerationConfig
) -> list[list[_Candidate]]:
    """The likeliest continuations of each row, best first: enough that K of them go on even if
    each beam could end in every way."""
    count = max(2, 1 + len(config.end_ids)) * config.num_beams
    vocabulary = logits_BV.size(-1)
    log_p_RKV = logits_BV.float().log_softmax(-1).view(*score_RK.shape, vocabulary)
    total_RC = (log_p_RKV + score_RK[:, :, None]).flatten(1)
    score_RC, index_RC = total_RC.topk(min(count, total_RC.size(1)))
    return [
        [
            _Candidate(beam=i // vocabulary, token=i % vocabulary, score=score)
            for score, i in zip(scores, indices, strict=True)
        ]
        for scores, indices in zip(score_RC.tolist(), index_RC.tolist(), strict=True)
    ]


def _advance(
    row: _Row, candidates: list[_Candidate], length: int, config: GenerationConfig
) -> list[_Candidate]:
    """Take what has finished into the row's pool -> the K candidates that go on."""
    K, is_last = config.num_beams, length == config.max_new_tokens
    running: list[_Candidate] = []
    for rank, one in enumerate(candidates):
        if not is_last and one.token not in config.end_ids:
            running.append(one)
        elif rank < K and not row.is_done:
            text = Text(
                tokens=[*row.beams[one.beam], one.token],
                score=one.score / length**config.length_penalty,
            )
            row.finished = sorted([*row.finished, text], key=lambda t: -t.score)[:K]
    kept = running[:K]
    if is_last:
        return kept
    row.beams = [[*row.beams[one.beam], one.token] for one in kept]
    best = kept[0].score / length**config.length_penalty
    row.is_done |= len(row.finished) == K and best <= row.finished[-1].score
    return kept
