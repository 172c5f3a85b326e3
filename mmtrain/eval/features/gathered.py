"""Features of whole sets, on every rank."""

from collections.abc import Callable, Collection

from torch import Tensor

from mmtrain.data.sources.source import SampleSource
from mmtrain.eval.encode import Encoder
from mmtrain.eval.samples import Members, ValueT, encoded_batches
from mmtrain.eval.together import gather_all, sum_of_all


def encode_set(
    encoder: Encoder,
    source: SampleSource,
    read_value: Callable[[Members], ValueT],
    *,
    names: Collection[str] | None = None,
    reads_image: bool = False,
) -> tuple[Tensor, list[ValueT]]:
    """Unit-norm image features [N, E], float32 on the device, and what is read beside each image.

    The same on every rank, whatever their number, to the last bit. Arguments as EvalBatches.

    Raises:
        UsageError: on every rank, when a sample on any of them cannot be evaluated.
    """
    features_NE: Tensor | None = None
    mine: dict[int, ValueT] = {}
    for batch, features_BE in encoded_batches(
        encoder, source, read_value, names=names, reads_image=reads_image
    ):
        if features_NE is None:
            features_NE = features_BE.new_zeros(source.num_samples, features_BE.size(1))
        features_NE[batch.first : batch.first + len(batch.values)] = features_BE
        mine |= dict(enumerate(batch.values, start=batch.first))
    assert features_NE is not None, "a source has samples, so every rank has a round"
    held = gather_all(mine, group=encoder.group, device=encoder.device)
    everyone = {number: value for some in held for number, value in some.items()}
    values = [everyone[number] for number in range(source.num_samples)]
    return sum_of_all(features_NE, group=encoder.group), values
