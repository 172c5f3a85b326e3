"""Which file of a folder is the image that a question is about."""

import re
from pathlib import Path, PurePosixPath

from mmtrain.data.images.decode import has_image_name
from mmtrain.errors import UsageError

_COCO = re.compile(r"(?:(?:COCO|abstract_v\d+)_([a-z]+\d{4})_)?(\d{12})")
"""COCO's names of 2014 and 2017, and those of VQA's abstract scenes: the split, the number."""
_NUMBER = re.compile(r"0|[1-9]\d*|\d{12}")
_NUM_SHOWN = 3


class ImageFolder:
    """The images of one folder by the names that questions call them.

    An image is found by its file's exact name (VizWiz), where that is a path (ScienceQA's
    `test/12/image.png`) also by what follows its first folder, else by the name without extension
    (GQA, TextVQA, easy-VQA), else, where it is called by a number, by COCO's twelve digits (VQAv2,
    OK-VQA): `COCO_val2014_000000000009.jpg` or `000000000009.jpg` is image 9. Other digits, such as
    `0009.jpg`, `IMG_9.jpg` or those of another split's file, are no image's number.

    Args:
        folder: the images; those of folders below it are found by a path alone. Hidden files do not
            count.
        split: COCO's name of the split that all questions are of, such as `val2014`; an image of
            another one is not taken.
        key: the setting that the folder came from, for messages.

    Raises:
        UsageError: it cannot be read.
    """

    def __init__(self, folder: Path, *, split: str | None = None, key: str = "data.train") -> None:
        self.folder, self.split, self.key = folder, split, key
        try:
            names = sorted(path.name for path in folder.iterdir())
        except OSError as error:
            raise UsageError(
                f"{key} = {folder}: {error.strerror}; name the images' folder"
            ) from error
        self.names = [name for name in names if _is_image(name) and not name.startswith(".")]
        self._exact = frozenset(self.names)
        self._by_stem: dict[str, list[str]] = {}
        self._by_number: dict[int, list[tuple[str | None, str]]] = {}
        for name in self.names:
            stem = _stem(name)
            self._by_stem.setdefault(stem, []).append(name)
            if coco := _COCO.fullmatch(stem):
                self._by_number.setdefault(int(coco[2]), []).append((coco[1], name))

    def find(self, image_id: str) -> Path | None:
        """The file of an image; None: it is not there.

        Raises:
            UsageError: two files may be it.
        """
        if "/" in image_id:
            return self._below(image_id)
        if image_id in self._exact:
            return self.folder / image_id
        found = self._by_stem.get(_stem(image_id)) or self._numbered(image_id)
        if len(found) > 1:
            raise UsageError(
                f"{self.key} = {self.folder}: image {image_id} may be {found[0]} or {found[1]}; "
                "leave one there, or keep each split's images in a folder of its own"
            )
        return self.folder / found[0] if found else None

    def _below(self, image_id: str) -> Path | None:
        path = PurePosixPath(image_id)
        if path.is_absolute() or ".." in path.parts:
            raise UsageError(
                f"{self.key} = {self.folder}: image {image_id} is no path below it; mend the "
                "questions' file"
            )
        tried = (self.folder / path, self.folder.joinpath(*path.parts[1:]))
        return next((file for file in tried if file.is_file()), None)

    def why_missing(self, image_id: str) -> str:
        """Under which names an image was looked for, and what is there instead."""
        if "/" in image_id:
            return f"looked for as {image_id} and {image_id.partition('/')[2]}"
        stem = _stem(image_id)
        suffix = image_id.removeprefix(stem) or ".jpg"
        looked, others = [stem + suffix], []
        if _NUMBER.fullmatch(stem):
            number = int(stem)
            coco = f"COCO_{self.split or 'SPLIT'}_"
            looked += [f"{before}{number:012d}{suffix}" for before in ("", coco)]
            others = [name for _, name in self._by_number.get(number, [])]
        names = " or ".join(dict.fromkeys(looked))
        if others:
            return f"looked for as {names}; {others[0]} is of another split than {self.split}"
        more = ", ..." if len(self.names) > _NUM_SHOWN else ""
        there = ", ".join(self.names[:_NUM_SHOWN]) or "no image"
        return f"looked for as {names}; the folder has {there}{more}"

    def _numbered(self, image_id: str) -> list[str]:
        stem = _stem(image_id)
        found = self._by_number.get(int(stem), []) if _NUMBER.fullmatch(stem) else []
        return [name for split, name in found if None in (split, self.split) or split == self.split]


def coco_split(subtype: object) -> str | None:
    """The split of images that VQAv2's `data_subtype` names; None: it names none that COCO has.

    Questions of `test-dev2015` are about the images of `test2015`.
    """
    found = re.fullmatch(r"(train|val|test)(?:-dev|-std)?(\d{4})", str(subtype))
    return f"{found[1]}{found[2]}" if found else None


def _is_image(name: str) -> bool:
    return has_image_name(name)


def _stem(name: str) -> str:
    return name.rpartition(".")[0] if _is_image(name) else name
