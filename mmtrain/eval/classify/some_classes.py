"""A folder of class folders of which some are read: those of the classes that are answers."""

import hashlib
from collections.abc import Collection

from mmtrain.data.order.plan import even_pieces
from mmtrain.data.sources.image_folder import ImageFolderSource
from mmtrain.data.sources.source import SampleSource
from mmtrain.errors import UsageError
from mmtrain.eval.classify.classes import ClassList


class SomeClassesSource:
    """The images of some class folders; a SampleSource.

    Args:
        source: of all of them.
        folders: the names of those that are read.
    """

    def __init__(self, source: ImageFolderSource, folders: Collection[str]) -> None:
        self._source, self._folders = source, sorted(folders)
        numbers = range(source.num_samples)
        self._numbers = [n for n in numbers if source.key(n).split("/")[0] in folders]
        self.num_samples = len(self._numbers)
        self.shard_sizes = even_pieces(self.num_samples)

    @property
    def fingerprint(self) -> str:
        """Of all images, and of which folders are read."""
        told = "\n".join([self._source.fingerprint, *self._folders])
        return hashlib.blake2b(told.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()

    def key(self, sample: int) -> str:
        """The image's path below the folder."""
        return self._source.key(self._numbers[sample])

    def place(self, sample: int) -> str:
        """The folder."""
        return self._source.place(self._numbers[sample])

    def read(self, sample: int, wanted: Collection[str] | None = None) -> dict[str, bytes]:
        """As the whole folder's."""
        return self._source.read(self._numbers[sample], wanted)


def only_classes(
    source: SampleSource, known: ClassList, named: ClassList, *, key: str
) -> SampleSource:
    """The source; of a folder of class folders, its images of the known classes.

    Args:
        source: where labels are no folders' names, it stays as it is.
        known: the classes that are answers.
        named: those and the others that were named, whose folders are left out.
        key: the setting that names the data.

    Raises:
        UsageError: a folder is none of the named classes, or what it counts cannot be told.
    """
    if not isinstance(source, ImageFolderSource):
        return source
    folders, told = set(source.classes), f"{key} = {source.folder}"
    kept = folders & known.numbers.keys()
    others = sorted(folders - kept)
    if unknown := [one for one in others if one not in named.numbers]:
        raise UsageError(
            f"{told}: its folder {unknown[0]!r} is none of the {len(named.ids)} named classes"
        )
    # "6" is one class of ImageNet's 1000, and another one of ImageNet-A's 200.
    if others and others[0].isdecimal() and len(folders) < len(named.ids):
        raise UsageError(
            f"{told}: its {len(folders)} folders have numbers such as {others[0]}, which is not in "
            "the subset; if they count the subset's own classes, name these as classes, without "
            "subset"
        )
    if not kept:
        raise UsageError(f"{told}: none of its folders is one of the {len(known.ids)} classes")
    return SomeClassesSource(source, kept) if others else source
