"""Data that people already have beside shards, read by number through the same order and cursor.

A source gives a sample's files by extension, whatever it is made of, so decoding, captions, bad
samples and exact resume are the same for all. What a path is, is told from its content:

    a .csv, .tsv, .jsonl, .json file  a manifest: one row a sample, an image's path in it
    a folder of folders of images     ImageFolder: a folder a class
    a folder with Arrow or Parquet    a Hugging Face data set saved to disk
    torchvision:NAME/SPLIT:ROOT       a data set of torchvision's on disk
    synthetic:N                       N made-up samples, for tests of speed
    anything else                     tar shards
"""

import glob
import hashlib
import io
import json
from collections.abc import Collection
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from mmtrain.data.arrow import ArrowSource, is_arrow_folder
from mmtrain.data.decode import has_image_name
from mmtrain.data.manifest import ManifestSource
from mmtrain.data.patience import PATIENCE
from mmtrain.data.plan import even_pieces
from mmtrain.data.sample_error import IncompleteError, SampleError
from mmtrain.data.shards import OnDamage, ShardSource
from mmtrain.data.table import TABLE_SUFFIXES
from mmtrain.data.torchvision_sets import TORCHVISION, TorchvisionSource
from mmtrain.errors import UsageError

SYNTHETIC = "synthetic:"


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


def open_source(
    patterns: str | tuple[str, ...],
    *,
    image_key: str,
    index_dir: str | None = None,
    verify: bool = False,
    on_damage: OnDamage = "stop",
    key: str = "data.train",
    retry_seconds: float = PATIENCE,
) -> SampleSource:
    """The source that a path stands for; see the table above.

    Args:
        patterns: one path of any kind, or any number of patterns of shards.
        image_key: column of a manifest or of a saved data set that holds the image.
        index_dir, verify, on_damage: of `ShardSource`; the other kinds have neither indexes nor
            checksums, and refuse `verify`.
        key: the setting that `patterns` came from, for messages.
        retry_seconds: how long a disk's fault is given to pass.

    Raises:
        UsageError: nothing is there, or it is damaged.
    """
    source = open_unsharded(patterns, image_key=image_key, key=key)
    if source is None:
        return ShardSource(
            patterns,
            index_dir=index_dir,
            verify=verify,
            on_damage=on_damage,
            image_key=image_key,
            key=key,
            retry_seconds=retry_seconds,
        )
    if verify:
        raise UsageError(
            f"data.verify = true needs checksums, which {patterns} has not; pack it into shards "
            "(tools/make_shards.py) or set it to false"
        )
    return source


def open_unsharded(
    patterns: str | tuple[str, ...], *, image_key: str, key: str = "data.train"
) -> SampleSource | None:
    """The source that a path stands for, if it is none of shards; arguments as `open_source`."""
    single = patterns if isinstance(patterns, str) else patterns[0] if len(patterns) == 1 else ""
    path = Path(single).expanduser()
    source: SampleSource | None = None
    if single.startswith(SYNTHETIC):
        source = SyntheticSource(single, key=key)
    elif single.startswith(TORCHVISION):
        source = TorchvisionSource(single, key=key)
    elif path.suffix.lower() in TABLE_SUFFIXES and not glob.has_magic(single):
        source = ManifestSource(path, image_key=image_key, key=key)
    elif path.is_dir() and is_arrow_folder(path):
        source = ArrowSource(path, image_key=image_key, key=key)
    elif path.is_dir() and not any(path.glob("*.tar")) and _has_class_folders(path):
        source = ImageFolderSource(path, key=key)
    return source


def explained(error: IncompleteError, source: SampleSource, sample: int) -> SampleError:
    """The same with what the names in a shard have to do with it."""
    is_shards = isinstance(source, ShardSource)
    fault = source.name_fault(sample, error.wanted) if is_shards else ""
    reason = f"{error} ({fault})" if fault else str(error)
    return SampleError(reason, detail=error.detail)


def _has_class_folders(folder: Path) -> bool:
    return any(
        has_image_name(file.name)
        for child in sorted(folder.iterdir())
        if child.is_dir()
        for file in child.iterdir()
    )


class ImageFolderSource:
    """A folder of folders of images, each folder a class: ImageNet's layout.

    The caption (`txt`) is the class's name with spaces for underscores; the `class` field of the
    .json is the folder's name.

    Raises:
        UsageError: there is no image.
    """

    def __init__(self, folder: Path, *, key: str = "data.train") -> None:
        self.folder = folder
        self.classes = sorted(child.name for child in folder.iterdir() if child.is_dir())
        self._files: list[str] = []
        sizes = hashlib.blake2b(digest_size=16)
        for name in self.classes:
            for file in sorted((folder / name).rglob("*")):
                if has_image_name(file.name):
                    relative = file.relative_to(folder).as_posix()
                    self._files.append(relative)
                    sizes.update(f"{relative} {file.stat().st_size}\n".encode())
        if not self._files:
            raise UsageError(f"{key} = {folder}: its folders hold no images; name another one")
        self._fingerprint = sizes.hexdigest()
        self.num_samples = len(self._files)
        self.shard_sizes = even_pieces(self.num_samples)

    @property
    def fingerprint(self) -> str:
        """Of the names and sizes of all images."""
        return self._fingerprint

    def key(self, sample: int) -> str:
        """The image's path below the folder."""
        return self._files[sample]

    def place(self, sample: int) -> str:
        """The folder."""
        return str(self.folder)

    def read(self, sample: int, wanted: Collection[str] | None = None) -> dict[str, bytes]:
        """The image, the class's name as `txt` and the folder's as `class` of the `json`."""
        name = self._files[sample]
        label = name.split("/")[0]
        try:
            image = (self.folder / name).read_bytes()
        except FileNotFoundError as error:
            raise SampleError("image missing") from error
        members = {
            Path(name).suffix.lower().removeprefix("."): image,
            "txt": label.replace("_", " ").encode(),
            "json": json.dumps({"class": label}).encode(),
        }
        return {k: v for k, v in members.items() if wanted is None or k in wanted}


class SyntheticSource:
    """Made-up samples: noise as JPEG and captions of random words, functions of the number.

    For tests of speed: decoding costs what a photograph of that size costs.

    Raises:
        UsageError: the number is none.
    """

    SIDE = 256
    NUM_PICTURES = 16
    WORDS = ("red", "green", "blue", "small", "large", "round", "dog", "cat", "tree", "house")

    def __init__(self, spec: str, *, key: str = "data.train") -> None:
        count = spec.removeprefix(SYNTHETIC)
        if not count.isdecimal() or int(count) < 1:
            raise UsageError(f"{key} = {spec} must be {SYNTHETIC}N with the number of samples N")
        self.num_samples = int(count)
        self.shard_sizes = even_pieces(self.num_samples)
        self._pictures = [self._picture(number) for number in range(self.NUM_PICTURES)]

    def _picture(self, number: int) -> bytes:
        # Smooth noise: white noise would be a JPEG four times the size of a photograph.
        coarse = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((self.SIDE, self.SIDE), Image.Resampling.BICUBIC)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=90)
        return buffer.getvalue()

    @property
    def fingerprint(self) -> str:
        """Of the number of samples."""
        return f"synthetic-{self.num_samples}"

    def key(self, sample: int) -> str:
        """The number."""
        return str(sample)

    def place(self, sample: int) -> str:
        """Nowhere."""
        return "synthetic"

    def read(self, sample: int, wanted: Collection[str] | None = None) -> dict[str, bytes]:
        """A JPEG of 256 x 256 pixels and a caption of 4 to 19 words."""
        generator = np.random.default_rng(sample)
        words = generator.choice(self.WORDS, size=int(generator.integers(4, 20)))
        members = {
            "jpg": self._pictures[sample % self.NUM_PICTURES],
            "txt": " ".join(words).encode(),
            "json": json.dumps({"number": sample}).encode(),
        }
        return {k: v for k, v in members.items() if wanted is None or k in wanted}
