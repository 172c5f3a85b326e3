"""What all data are read through: samples by number."""

from collections.abc import Collection, Sequence
from typing import Protocol

IMAGE_KEY = "filepath"
"""The column of the images in a manifest or a saved data set where no setting names one."""


class SampleSource(Protocol):
    """Samples by number. Safe to pickle and to fork."""

    num_samples: int
    """How many; at least one."""
    shard_sizes: list[int]
    """Samples of each piece that is best read together; their sum is num_samples."""

    @property
    def fingerprint(self) -> str:
        """Changes when the data do; not with their folder."""
        ...

    def key(self, sample: int) -> str:
        """Names a sample."""
        ...

    def place(self, sample: int) -> str:
        """The file or folder that a sample is in."""
        ...

    def read(self, sample: int, wanted: Collection[str] | None = None) -> dict[str, bytes]:
        """A sample's files by extension, or those of them that are `wanted`.

        Raises:
            SampleError: it cannot be used.
            OSError: it cannot be read just now.
        """
        ...


def wants_image(wanted: Collection[str] | None) -> bool:
    """Whether more of a sample is asked for than its texts, where only its image's own bytes tell
    which extension that has."""
    return wanted is None or not {"json", "txt"}.issuperset(wanted)


Data = str | Sequence[str] | SampleSource
"""What data.train takes, or an opened source."""
