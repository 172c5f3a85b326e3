"""Writing text with a decoder: the prompts are read once, then one token a step from the cache.

prompts_BT, real_BT = left_pad([[5, 6, 7], [8]])
start = prefill(decoder, prompts_BT, real_BT=real_BT, max_new_tokens=20)
rows = generate(decoder, start, GenerationConfig(max_new_tokens=20, end_ids=(2,)))
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from mmtrain.models.beam_search import beam_search
from mmtrain.models.decoder import Decoder
from mmtrain.models.prefill import Prefilled
from mmtrain.models.sampling import GenerationConfig, pick_next


@torch.inference_mode()
def stream(
    decoder: Decoder,
    start: Prefilled,
    config: GenerationConfig,
    *,
    generator: torch.Generator | None = None,
) -> Iterator[Tensor]:
    """Yield the rows' next tokens [B] step by step, -1 for a row that has ended.

    Args:
        decoder: writes.
        start: from prefill; its cache is written on.
        config: greedy or drawn.
        generator: of the draws.

    Raises:
        ValueError: the config asks for a beam search, which knows its text only at the end.
    """
    if config.num_beams > 1:
        raise ValueError(f"num_beams = {config.num_beams} has nothing to stream; use generate")
    logits_BV, cache = start.logits_BV, start.cache
    ends = torch.tensor(config.end_ids, device=logits_BV.device)
    has_ended_B = torch.zeros(logits_BV.size(0), dtype=torch.bool, device=logits_BV.device)
    for step in range(config.max_new_tokens):
        next_B = pick_next(logits_BV, config, generator=generator)
        if not config.end_ids:
            yield next_B
        else:
            yield next_B.masked_fill(has_ended_B, -1)
            has_ended_B = has_ended_B | torch.isin(next_B, ends)
            if has_ended_B.all():
                return
        if step + 1 < config.max_new_tokens:
            logits_BV = decoder(next_B[:, None], cache=cache)[:, 0]


def generate(
    decoder: Decoder,
    start: Prefilled,
    config: GenerationConfig,
    *,
    generator: torch.Generator | None = None,
) -> list[list[int]]:
    """The new tokens of each row, its end token (if it came to one) last.

    Args:
        decoder: writes.
        start: from prefill; its cache is used up.
        config: greedy, drawn or by beam search.
        generator: of the draws.
    """
    if config.num_beams > 1:
        return [row.tokens for row in beam_search(decoder, start, config)]
    steps = list(stream(decoder, start, config, generator=generator))
    return [[t for t in row if t >= 0] for row in torch.stack(steps, dim=1).tolist()]
