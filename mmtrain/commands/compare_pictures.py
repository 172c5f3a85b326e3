"""Pictures of the samples that the page of `mmtrain compare` shows."""

import base64
from collections.abc import Sequence

from mmtrain.data.members import read_members
from mmtrain.data.questions.source import brings_questions, open_questions
from mmtrain.data.sample_error import SampleError
from mmtrain.data.sources.open import open_source
from mmtrain.data.sources.source import SampleSource
from mmtrain.errors import UsageError
from mmtrain.eval.comparison import Comparison
from mmtrain.eval.outcomes import sample_names
from mmtrain.eval.result import thumbnail
from mmtrain.eval.samples import decode_sample
from mmtrain.report.paired import shown_flips


def read_pictures(
    found: Sequence[Sequence[Comparison]],
    data: tuple[str, ...],
    *,
    questions: str | None,
    image_key: str,
) -> dict[str, str]:
    """Data URIs, by A's name, of the samples that the page shows; none without data.

    Args:
        found: the results' comparisons with A.
        data: what A was evaluated on.
        questions: the file of questions, where `data` is a folder of their images.
        image_key: the column of the images, of data that have columns.

    Raises:
        UsageError: the data are others, or cannot be read.
    """
    if not data:
        return {}
    wanted = {
        outcome.image: None
        for comparisons in found
        for one in comparisons
        for pairs in shown_flips(one)
        for outcome, _ in pairs
    }
    has_questions = questions is not None or brings_questions(data[0])
    source = (
        open_questions(data, questions=questions, image_key=image_key, key="data")
        if has_questions
        else open_source(data[0] if len(data) == 1 else data, image_key=image_key, key="data")
    )
    return _pictures([*wanted], source, named=" ".join(data))


def _pictures(images: Sequence[str], source: SampleSource, *, named: str) -> dict[str, str]:
    """Data URIs of some samples."""
    number = {name: n for n, name in enumerate(sample_names(source, range(source.num_samples)))}
    if missing := [image for image in images if image not in number]:
        raise UsageError(
            f"data = {named} has no sample {missing[0]} (nor {len(missing) - 1} more of "
            f"{len(images)}), which the first result names; name what it was evaluated on"
        )
    found: dict[str, str] = {}
    for image in images:
        try:
            picture = thumbnail(decode_sample(read_members(source, number[image])))
        except SampleError as error:
            raise UsageError(
                f"data: sample {image}: {error}; mend it or leave --data out"
            ) from error
        found[image] = f"data:image/webp;base64,{base64.b64encode(picture).decode()}"
    return found
