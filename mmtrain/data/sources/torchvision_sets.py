"""Classification data sets as torchvision keeps them on disk, by number. Nothing is ever fetched.

    torchvision:NAME/SPLIT:ROOT    such as torchvision:cifar10/test:data

ROOT is torchvision's `root`. The pickles of CIFAR are the only ones among these files; torchvision
reads them if their MD5 is the published one.
"""

import hashlib
import importlib.util
import io
import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmtrain.data.order.plan import even_pieces
from mmtrain.data.sample_error import SampleError
from mmtrain.errors import UsageError

TORCHVISION = "torchvision:"

_TRAIN = {"train": {"train": True}, "test": {"train": False}}
_DIGITS = tuple("0123456789")
_NUM_PROBES = 16


def _splits(*names: str) -> dict[str, dict[str, Any]]:
    return {name: {"split": name} for name in names}


@dataclass(frozen=True)
class _Known:
    """A class of torchvision.datasets, its arguments for each split, names where it has none."""

    name: str
    splits: dict[str, dict[str, Any]]
    classes: tuple[str, ...] | None = None


KNOWN = {
    "cifar10": _Known("CIFAR10", _TRAIN),
    "cifar100": _Known("CIFAR100", _TRAIN),
    "country211": _Known("Country211", _splits("train", "valid", "test")),
    "dtd": _Known("DTD", _splits("train", "val", "test")),
    "eurosat": _Known("EuroSAT", {"all": {}}),
    "fashion_mnist": _Known("FashionMNIST", _TRAIN),
    "fgvc_aircraft": _Known("FGVCAircraft", _splits("train", "val", "trainval", "test")),
    "flowers102": _Known("Flowers102", _splits("train", "val", "test")),
    "food101": _Known("Food101", _splits("train", "test")),
    "imagenette": _Known("Imagenette", _splits("train", "val")),
    "mnist": _Known("MNIST", _TRAIN, _DIGITS),
    "oxford_iiit_pet": _Known("OxfordIIITPet", _splits("trainval", "test")),
    "rendered_sst2": _Known("RenderedSST2", _splits("train", "val", "test")),
    "stanford_cars": _Known("StanfordCars", _splits("train", "test")),
    "stl10": _Known("STL10", _splits("train", "test")),
    "sun397": _Known("SUN397", {"all": {}}),
    "svhn": _Known("SVHN", _splits("train", "test"), _DIGITS),
}
"""Those whose classes have names."""


class TorchvisionSource:
    """A data set of torchvision's; `cls` is a sample's class number, `txt` the class's name.

    Images are handed on as PNG, so that they go through everybody's decoder to the same pixels.

    Raises:
        UsageError: the spec is none of those known, torchvision is missing, or the data are.
    """

    def __init__(self, spec: str, *, key: str = "data.train") -> None:
        known, name, split, self._root = _parse(spec, key)
        if importlib.util.find_spec("torchvision") is None:
            raise UsageError(
                f"{key} = {spec} needs the package torchvision; pip install 'mmtrain[torchvision]'"
            )
        from torchvision import datasets  # optional, and slow to import

        try:
            self._set: Any = getattr(datasets, known.name)(self._root, **known.splits[split])
            self.num_samples = len(self._set)
        except Exception as error:  # it raises nearly anything
            told = str(error).split(". You can use download")[0].splitlines() or [repr(error)]
            raise UsageError(
                f"{key} = {spec}: torchvision finds no whole data set in {self._root} ({told[0]}); "
                "put it there, nothing is fetched here"
            ) from error
        self._spec = f"{name}/{split}"
        self.classes = known.classes or tuple(map(_spoken, self._set.classes))
        self.shard_sizes = even_pieces(self.num_samples)

    @property
    def fingerprint(self) -> str:
        """Of its name, its size and a few samples."""
        digest = hashlib.blake2b(f"{self._spec} {self.num_samples}".encode(), digest_size=16)
        for number in np.linspace(0, self.num_samples - 1, min(_NUM_PROBES, self.num_samples)):
            try:
                members = self.read(int(number), {"png", "cls"})
                digest.update(members["cls"] + members["png"])
            except SampleError as error:
                digest.update(str(error).encode())
        return digest.hexdigest()

    def key(self, sample: int) -> str:
        """Its place in the split."""
        return f"{self._spec}/{sample}"

    def place(self, sample: int) -> str:
        """The root folder."""
        return str(self._root)

    def read(self, sample: int, wanted: Collection[str] | None = None) -> dict[str, bytes]:
        """The image as `png`, its class's number as `cls`, the name as `txt` and in the `json`.

        Raises:
            SampleError: the image is missing or cannot be decoded.
        """
        try:
            image, label = self._set[sample]
        except FileNotFoundError as error:
            raise SampleError("image missing") from error
        except (Image.UnidentifiedImageError, Image.DecompressionBombError, SyntaxError) as error:
            raise SampleError("image corrupt") from error
        buffer = io.BytesIO()
        image.save(buffer, "PNG", compress_level=0)  # it is read once, at once
        name = self.classes[label]
        members = {
            "png": buffer.getvalue(),
            "cls": str(label).encode(),
            "txt": name.encode(),
            "json": json.dumps({"class": name}).encode(),
        }
        return {k: v for k, v in members.items() if wanted is None or k in wanted}


def _parse(spec: str, key: str) -> tuple[_Known, str, str, Path]:
    what, _, root = spec.removeprefix(TORCHVISION).partition(":")
    name, _, split = what.partition("/")
    if name not in KNOWN:
        raise UsageError(
            f"{key} = {spec}: {name!r} is unknown; write {TORCHVISION}NAME/SPLIT:ROOT with one of "
            f"{', '.join(KNOWN)}"
        )
    known = KNOWN[name]
    if split not in known.splits:
        raise UsageError(
            f"{key} = {spec}: {name} has no split {split!r}; write {name}/"
            f"{f' or {name}/'.join(known.splits)}"
        )
    if not root:
        raise UsageError(f"{key} = {spec} names no folder; write {TORCHVISION}{what}:ROOT")
    return known, name, split, Path(root).expanduser()


def _spoken(name: str | tuple[str, ...]) -> str:
    """A class's name, the first of several, with spaces."""
    return (name if isinstance(name, str) else name[0]).replace("_", " ")
