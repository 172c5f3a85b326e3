"""Why one sample cannot be used."""

from collections.abc import Collection


class SampleError(Exception):
    """A short reason that can be counted, such as `image missing`.

    Args:
        reason: the same for all samples of the kind.
        detail: what is this sample's own, such as the path that was looked for.
    """

    def __init__(self, reason: str, *, detail: str = "") -> None:
        super().__init__(reason)
        self.detail = detail

    @property
    def told(self) -> str:
        """The reason with its detail, for a message about this sample alone."""
        return f"{self} ({self.detail})" if self.detail else str(self)


class IncompleteError(SampleError):
    """A sample lacks a file that is wanted, or has several in its place: names may be why.

    Args:
        reason: as above.
        wanted: extensions that the file could have.
        detail: as above.
    """

    def __init__(self, reason: str, *, wanted: Collection[str], detail: str = "") -> None:
        super().__init__(reason, detail=detail)
        self.wanted = wanted
