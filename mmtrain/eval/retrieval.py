"""Retrieval: an image finds its captions among all captions, a caption its image among images."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from mmtrain.data.sources.open import open_source
from mmtrain.data.sources.source import SampleSource
from mmtrain.eval.captions import (
    Captions,
    ReadCaptions,
    ReadImageCaptions,
    first_rows,
    image_rows,
    number_captions,
)
from mmtrain.eval.chosen import chosen
from mmtrain.eval.encode import Encoder, encode_texts
from mmtrain.eval.examples import pick_examples
from mmtrain.eval.features.gathered import encode_set
from mmtrain.eval.intervals import INTERVALS, bootstrap_interval
from mmtrain.eval.outcomes import Outcome, told_apart
from mmtrain.eval.result import EvalResult, provenance
from mmtrain.eval.scores import own_blocks, rank_of_any, rank_of_target
from mmtrain.eval.together import sum_of_all

RECALL_AT = (1, 5, 10)


@torch.no_grad()
def evaluate_retrieval(
    encoder: Encoder,
    *,
    data: str | Sequence[str] | SampleSource,
    captions: Sequence[str] = ("txt",),
    caption_lines: bool | None = None,
    num_examples: int = 10,
    index_dir: str | None = None,
) -> EvalResult:
    """Recall at 1, 5 and 10 in both directions over every sample, the same on every rank.

    Image to text: one of the image's captions, or a text equal to one, is among the first k of all
    captions. Text to image: the caption's own image is among the first k of all images; rows of a
    table that name one file are one image. Karpathy and Fei-Fei 2015, arXiv:1412.2306, Sec. 4.1.
    Equal scores rank in the order of the images' names. Scores are computed block by block, never
    all images by all texts at once.

    Args:
        encoder: the model and the ranks that share the work.
        data: shards, as data.train takes them, or another source.
        captions: where captions are: the member `txt`, or fields of the .json, lists included.
        caption_lines: every line of a text is a caption, as in CLIP benchmark's shards; False: the
            whole text is one. None: a text of several lines is refused.
        num_examples: how many of the best and of the worst images to keep.
        index_dir: where the shards' indexes are kept.

    Raises:
        UsageError: on every rank: an unreadable sample, one without a caption, or one that may have
            one caption or several.
    """
    source = open_source(data, index_dir=index_dir, key="data")
    read = ReadCaptions(fields=tuple(captions), lines=caption_lines)
    read_both = ReadImageCaptions(read_captions=read)
    first = first_rows(source)
    once = chosen(source, [sample for sample, row in enumerate(first) if sample == row])
    images_NE, each = encode_set(encoder, once, read_both, names=read.fields, reads_image=True)
    rows = image_rows(source, first, each, _further(encoder, source, first, read))
    images_NE = images_NE[torch.tensor(rows.order, device=images_NE.device)]
    known = number_captions(rows.captions, encoder.device)
    texts_UE = encode_texts(encoder, known.distinct)
    rank_N, first_N, lead_N = _image_to_text(encoder, images_NE, texts_UE, known)
    rank_M = _text_to_image(encoder, images_NE, texts_UE, known)

    best, worst = pick_examples(
        encoder,
        source,
        rank_N,
        lead_N,
        num=num_examples,
        samples=rows.samples,
        describe=lambda i: (rows.captions[i][0], known.distinct[int(first_N[i])]),
        num_candidates=len(rank_M),
    )
    figures = {
        **_recalls("i2t", rank_N),
        **_recalls("t2i", rank_M),
        **_intervals(rank_M, known.image_M),
        "num_samples": source.num_samples,
        "num_images": len(rank_N),
        "num_different_images": rows.num_different,
        "num_texts": len(rank_M),
        "min_captions": min(map(len, rows.captions)),
        "max_captions": max(map(len, rows.captions)),
        "captions": list(captions),
        **provenance(encoder, source),
    }
    found = [known.distinct[text] for text in first_N.tolist()]
    outcomes = _outcomes(rank_N, rank_M, rows.names, rows.captions, found)
    return EvalResult(figures=figures, best=best, worst=worst, outcomes=outcomes)


def _further(
    encoder: Encoder, source: SampleSource, first: Sequence[int], read: ReadCaptions
) -> list[list[str]]:
    """Captions of the rows whose image was encoded with another row's: no image is looked at."""
    numbers = [sample for sample, row in enumerate(first) if sample != row]
    if not numbers:
        return []
    blind = replace(encoder, kept=lambda rows: torch.zeros(rows.num_samples, 1), progress=None)
    return encode_set(blind, chosen(source, numbers), read, names=read.fields)[1]


def _intervals(rank_M: Tensor, image_M: Tensor) -> dict[str, dict[str, tuple[float, float]]]:
    """Of the recalls by text that have no outcomes, where images have several texts: whole images
    are drawn with all of theirs."""
    image_of = image_M.cpu().numpy()
    if len(image_of) == len(set(image_of.tolist())):
        return {}
    found = {
        f"t2i_recall@{k}": bootstrap_interval((rank_M < k).double().numpy(), image_of)
        for k in RECALL_AT[1:]
    }
    return {INTERVALS: {name: ends for name, ends in found.items() if ends is not None}}


def _outcomes(
    rank_N: Tensor,
    rank_M: Tensor,
    names: Sequence[str],
    captions: Sequence[Sequence[str]],
    found: Sequence[str],
) -> tuple[Outcome, ...]:
    """Of each image and of each of its texts, whether the first find is right."""
    of_images = [
        Outcome(
            metric="i2t_recall@1",
            id=name,
            image=name,
            score=float(rank < 1),
            wanted=own[0],
            said=own[0] if rank < 1 else said,
        )
        for name, own, said, rank in zip(names, captions, found, rank_N.tolist(), strict=True)
    ]
    texts = [(name, text) for name, own in zip(names, captions, strict=True) for text in own]
    ids = told_apart([f"{name}: {text}" for name, text in texts])
    of_texts = [
        Outcome(metric="t2i_recall@1", id=id, image=name, score=float(rank < 1))
        for id, (name, _), rank in zip(ids, texts, rank_M.tolist(), strict=True)
    ]
    return (*of_images, *of_texts)


def _image_to_text(
    encoder: Encoder, images_NE: Tensor, texts_UE: Tensor, known: Captions
) -> tuple[Tensor, Tensor, Tensor]:
    """Places before an image's best caption, the text in first place, the lead: [N], on CPU."""
    num_images = images_NE.size(0)
    table_2N = torch.zeros(2, num_images, dtype=torch.int64, device=images_NE.device)
    lead_N = images_NE.new_zeros(num_images)
    copies_U = torch.bincount(known.text_M, minlength=len(known.distinct))
    for rows in own_blocks(encoder.group, num_images, texts_UE.size(0)):
        scores_BU = images_NE[rows] @ texts_UE.T
        table_2N[1, rows] = scores_BU.argmax(1)
        own_M = (known.image_M >= rows.start) & (known.image_M < rows.stop)
        table_2N[0, rows], lead_N[rows] = rank_of_any(
            scores_BU, known.image_M[own_M] - rows.start, known.text_M[own_M], copies_U
        )
    rank_N, first_N = sum_of_all(table_2N, group=encoder.group).cpu()
    return rank_N, first_N, sum_of_all(lead_N, group=encoder.group).cpu()


def _text_to_image(
    encoder: Encoder, images_NE: Tensor, texts_UE: Tensor, known: Captions
) -> Tensor:
    """Places before each caption's image: [M], on CPU."""
    rank_M = torch.zeros_like(known.text_M)
    for rows in own_blocks(encoder.group, len(rank_M), images_NE.size(0)):
        scores_BN = texts_UE[known.text_M[rows]] @ images_NE.T
        rank_M[rows] = rank_of_target(scores_BN, known.image_M[rows])
    return sum_of_all(rank_M, group=encoder.group).cpu()


def _recalls(way: str, rank: Tensor) -> dict[str, float]:
    return {f"{way}_recall@{k}": int((rank < k).sum()) / len(rank) for k in RECALL_AT}
