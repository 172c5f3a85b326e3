"""Images and questions in a decoder's cache, ready for answers to be written or scored.

Where the mask shows an image none of its questions, its keys serve them all: it is read once.

    images = read_images(generator, image_BPD)
    start = read_behind(generator, [(images, 0), (images, 0)], text_QTD, length_Q, max_new_tokens=8)
"""

from collections.abc import Sequence
from typing import TypedDict

import torch
from torch import Tensor

from mmtrain.models.generate_answers import AnswerGenerator
from mmtrain.models.prefill import Prefilled, prefill, to_the_left
from mmtrain.nn import DecoderCache
from mmtrain.peft.prompts import fill_prefix


def serves_all_questions(generator: AnswerGenerator) -> bool:
    """Whether what the decoder makes of an image is the same whatever is asked."""
    return generator.decoder.config.transformer.mask != "prefix"


@torch.no_grad()
def read_images(generator: AnswerGenerator, image_BPD: Tensor) -> DecoderCache:
    """The decoder's tokens of images, and of what stands before them, in its cache, a row each,
    with no room for more.

    Raises:
        ValueError: the mask shows an image its question.
    """
    if not serves_all_questions(generator):
        raise ValueError('mask = "prefix": an image is read anew with every question')
    num_images, num_tokens = image_BPD.shape[:2]
    cache = _begun_cache(generator, num_images, num_tokens)
    is_block = generator.decoder.config.transformer.mask == "block"
    segment_BP = torch.zeros(num_images, num_tokens, dtype=torch.int64, device=image_BPD.device)
    generator.decoder(
        image_BPD, segment_BT=segment_BP if is_block else None, cache=cache, num_logits=1
    )
    return cache


@torch.no_grad()
def read_behind(
    generator: AnswerGenerator,
    images: Sequence[tuple[DecoderCache, int]],
    text_QTD: Tensor,
    length_Q: Tensor,
    *,
    max_new_tokens: int,
) -> Prefilled:
    """Questions behind images that were read, each in a row of its own.

    Args:
        generator: the head.
        images: from `read_images`, the cache and the row of each question's; all of as many tokens,
            and they stay as they are.
        text_QTD: the questions as vectors, padding behind them.
        length_Q: tokens of each, at least 1.
        max_new_tokens: tokens that follow, for which the context must have room.

    Raises:
        ValueError: they exceed the context.
    """
    num_questions, num_tokens = text_QTD.shape[:2]
    room = images[0][0].num_slots + num_tokens + max_new_tokens
    cache = generator.decoder.build_cache(num_questions, room)
    cache.begin_as(images)
    text_QTD, real_QT, _ = to_the_left(text_QTD, length_Q)
    is_block = generator.decoder.config.transformer.mask == "block"
    return prefill(
        generator.decoder,
        text_QTD,
        real_BT=real_QT,
        segment_BT=torch.where(real_QT, 1, -1) if is_block else None,
        max_new_tokens=max_new_tokens,
        cache=cache,
    )


@torch.no_grad()
def read_together(
    generator: AnswerGenerator,
    image_QPD: Tensor,
    text_QTD: Tensor,
    length_Q: Tensor,
    *,
    max_new_tokens: int,
) -> Prefilled:
    """Each question with its image in one pass, under any mask a row sees what it saw in training;
    the rest as `read_behind` takes it."""
    num_questions, num_slots = image_QPD.size(0), image_QPD.size(1) + text_QTD.size(1)
    cache = _begun_cache(generator, num_questions, num_slots + max_new_tokens)
    rows = rows_together(generator, image_QPD, text_QTD, length_Q, num_before=cache.num_slots)
    return prefill(generator.decoder, **rows, max_new_tokens=max_new_tokens, cache=cache)


class TogetherRows(TypedDict):
    """Each question behind its image, padding before both: what the decoder is given of them."""

    x: Tensor
    real_BT: Tensor
    prefix_length_B: Tensor | None
    segment_BT: Tensor | None


def rows_together(
    generator: AnswerGenerator,
    image_QPD: Tensor,
    text_QTD: Tensor,
    length_Q: Tensor,
    *,
    num_before: int,
) -> TogetherRows:
    """Rows that the decoder reads as it was trained to, behind so many slots of its cache."""
    num_patches = image_QPD.size(1)
    x_QSD, real_QS, source_QS = to_the_left(
        torch.cat([image_QPD, text_QTD], dim=1), num_patches + length_Q
    )
    kind = generator.decoder.config.transformer.mask
    segment_QS = torch.where(real_QS, (source_QS >= num_patches).long(), -1)
    return {
        "x": x_QSD,
        "real_BT": real_QS,
        "prefix_length_B": num_before + num_patches + length_Q if kind == "prefix" else None,
        "segment_BT": segment_QS if kind == "block" else None,
    }


def _begun_cache(generator: AnswerGenerator, num_rows: int, num_slots: int) -> DecoderCache:
    """A cache with room for so many tokens, a learned prefix in it where there is one."""
    decoder, prompt = generator.decoder, generator.prompt
    if prompt is None or prompt.config.kind != "prefix":
        return decoder.build_cache(num_rows, num_slots)
    rows_nF, blocks = prompt(), decoder.config.transformer
    cache = decoder.build_cache(num_rows, rows_nF.size(0) + num_slots)
    fill_prefix(cache, rows_nF, blocks)
    if blocks.mask == "block":
        cache.append_segments(torch.zeros_like(cache.positions))
    return cache
