"""A folder of class folders of which some are read: those of the classes that are answers."""

from mmtrain.data.sources.image_folder import ImageFolderSource
from mmtrain.data.sources.source import SampleSource
from mmtrain.errors import UsageError
from mmtrain.eval.chosen import chosen
from mmtrain.eval.classify.classes import ClassList


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
    numbers = range(source.num_samples)
    return chosen(source, [n for n in numbers if source.key(n).split("/")[0] in kept])
