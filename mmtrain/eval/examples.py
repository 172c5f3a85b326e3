"""The images that an evaluation shows: its clearest successes and its worst failures."""

from collections.abc import Callable, Sequence

from torch import Tensor

from mmtrain.data.members import read_members
from mmtrain.data.sources.source import SampleSource
from mmtrain.eval.encode import Encoder
from mmtrain.eval.result import Example, thumbnail
from mmtrain.eval.samples import decode_sample
from mmtrain.eval.scores import best_and_worst


def pick_examples(
    encoder: Encoder,
    source: SampleSource,
    rank_N: Tensor,
    lead_N: Tensor,
    *,
    num: int,
    samples: Sequence[int],
    describe: Callable[[int], tuple[str, str]],
    num_candidates: int,
) -> tuple[list[Example], list[Example]]:
    """The `num` best and the `num` worst images, the worst first; none but on the main rank.

    Args:
        encoder: tells whether this is the main rank.
        source: where the pictures are read again.
        rank_N: places before the right candidate of each image.
        lead_N: lead of the right candidate over the best other one.
        num: how many of each.
        samples: the number of each image in the source.
        describe: number of an image -> the right text and the one in first place.
        num_candidates: texts that each image chose from.
    """
    if not encoder.is_main:
        return [], []

    def example(index: int) -> Example:
        text, predicted = describe(index)
        return Example(
            key=source.key(samples[index]),
            text=text,
            predicted=predicted,
            rank=int(rank_N[index]) + 1,
            num_candidates=num_candidates,
            picture=thumbnail(decode_sample(read_members(source, samples[index]))),
        )

    best, worst = best_and_worst(rank_N, lead_N, num=num)
    return [example(index) for index in best], [example(index) for index in worst]
