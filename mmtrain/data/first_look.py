"""A few samples looked at before a run, for what would go wrong without a word."""

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np

from mmtrain.data.members import StoredFeatures
from mmtrain.data.sample_error import SampleError
from mmtrain.data.samples import SampleReader
from mmtrain.data.sources.source import SampleSource
from mmtrain.errors import UsageError

_NUM_PROBES = 64
"""Samples that are looked at, evenly spread, before a label key is found to be in none."""
_NUM_CAPTION_PROBES = 256
"""Of captions, which may be in few; where the first samples have all, no more are looked at."""
_NUM_LINE_PROBES = 4
"""Samples that are looked at before every text is found to have several lines."""


def refuse_unknown_label_key(reader: SampleReader, key: str) -> None:
    """A label key that no sample has would turn every label off without a word.

    Raises:
        UsageError: no sample that is looked at has it.
    """
    if reader.label_key is None:
        return
    probes = _probes(reader.source, _NUM_PROBES)
    with one_line_for_disks(f"{key}.train"):
        if not any(reader.has_label(number) for number in probes):
            raise UsageError(
                f"{key}.label_key = {reader.label_key}: none of {len(probes)} samples has "
                f"it; {reader.describe(0)}; name a key that it has, or leave it out"
            )


def refuse_unknown_captions(readers: Sequence[SampleReader], *, setting: str, key: str) -> None:
    """A place of captions that no sample has would leave every draw to the others without a word;
    where all have none the samples are bad, and that is told.

    Args:
        readers: of the sources that the places are of.
        setting: what names the places, with its value, for messages.
        key: where the data come from, for messages.

    Raises:
        UsageError: no sample that is looked at has a caption there, and some have one elsewhere.
    """
    places = list(readers[0].captions)
    missing, looked_at = set(places) if len(places) > 1 else set[str](), 0
    with one_line_for_disks(key):
        for reader in readers:
            for number in _probes(reader.source, _NUM_CAPTION_PROBES):
                if not missing:
                    return
                missing -= reader.places(number)
                looked_at += 1
    if 0 < len(missing) < len(places):
        told = ", ".join(place for place in places if place in missing)
        raise UsageError(
            f"{setting}: none of {looked_at} samples looked at has a caption in {told}; "
            f"{readers[0].describe(0)}; name places that are there, or leave it out"
        )


def refuse_unknown_places(source: SampleSource, places: Sequence[str]) -> None:
    """The same of a command's `--captions`.

    Raises:
        UsageError: as above.
    """
    if len(places) > 1:
        reader = SampleReader(source, transform=None, captions=dict.fromkeys(places, 1.0))
        refuse_unknown_captions([reader], setting=f"--captions {' '.join(places)}", key="data")


def refuse_unknown_features(reader: SampleReader, stored: StoredFeatures, key: str) -> None:
    """Features that no sample has would teach nothing without a word.

    Raises:
        UsageError: no sample that is looked at has them, or they are of another width.
    """
    file, probes = f"{stored.name}.npy", _probes(reader.source, _NUM_PROBES)
    with one_line_for_disks("data.join"):
        for number in probes:
            try:
                if stored.read(reader.source.read(number, {file})) is not None:
                    return
            except SampleError as error:
                if str(error).startswith(stored.name):
                    wide = "as many as model.embed_dim says; make them by a model that is as wide"
                    raise UsageError(
                        f"{key}: {reader.source.key(number)}: {error.told}; they must be {wide}"
                    ) from error
    raise UsageError(
        f"{key}: none of {len(probes)} samples looked at has {file}; data.join names the folder "
        "that mmtrain embed wrote (features), or a table with such a column of lists"
    )


def refuse_untold_lines(reader: SampleReader, key: str) -> None:
    """Several captions, a line each, would be trained on as one long text.

    Raises:
        UsageError: texts may be such lists, and no setting says.
    """
    if reader.caption_lines is not None:
        return
    probes = _probes(reader.source, _NUM_LINE_PROBES)
    with one_line_for_disks(f"{key}.train"):
        found = [reader.has_lines(number) for number in probes]
    if any(found) and False not in found:
        places = ", ".join(reader.captions)
        raise UsageError(
            f"{key}.caption_lines: {places} has several lines in each of {len(probes)} samples "
            f"looked at, the first is {reader.source.key(probes[0])}; set true where every "
            "line is a caption, of which one is drawn, or false where a text is one caption"
        )


def _probes(source: SampleSource, most: int) -> list[int]:
    """Some samples, evenly spread."""
    num = source.num_samples
    return np.linspace(0, num - 1, min(most, num)).astype(int).tolist()


@contextlib.contextmanager
def one_line_for_disks(key: str) -> Iterator[None]:
    """A shard that cannot be read, tried several times, stops the run: it replaces no sample.

    Raises:
        UsageError: within the context, in place of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise UsageError(f"{key}: {error}; mend that and go on with --resume") from error
