"""Data that people already have beside shards, read by number through the same order and cursor.

A source gives a sample's files by extension, whatever it is made of, so decoding, captions, bad
samples and exact resume are the same for all. What a path is, is told from its content:

    a folder with tars                tar shards, whatever else lies there
    a .csv, .tsv, .jsonl, .json file  a manifest: one row a sample, an image's path in it
    .parquet files, or a folder       a Hugging Face data set, saved to disk or in Parquet files
    a .arrow file                     one file of a Hugging Face cache
    a .zip                            images with the captions beside them, as in a folder
    a folder of images                see folder_reading.py: classes, or captions beside the images
    torchvision:NAME/SPLIT:ROOT       a data set of torchvision's on disk
    synthetic:N                       N made-up samples, for tests of speed
    anything else                     tar shards
"""

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

from mmtrain.data.sample_error import IncompleteError, SampleError
from mmtrain.data.shards.patterns import as_typed, expand_patterns
from mmtrain.data.shards.source import OnDamage, ShardSource
from mmtrain.data.sources.arrow import (
    ARROW_SUFFIXES,
    ArrowSource,
    is_saved,
    parquet_of_one_split,
    refuse_wrong_level,
)
from mmtrain.data.sources.folder_listing import list_folder
from mmtrain.data.sources.folder_reading import CAPTIONS, CLASSES, open_as, open_images
from mmtrain.data.sources.image_paths import image_key_option
from mmtrain.data.sources.manifest import ManifestSource
from mmtrain.data.sources.source import IMAGE_KEY, Data, SampleSource
from mmtrain.data.sources.synthetic import SYNTHETIC, SyntheticSource
from mmtrain.data.sources.table import TABLE_SUFFIXES
from mmtrain.data.sources.torchvision_sets import TORCHVISION, TorchvisionSource
from mmtrain.data.sources.zip_archive import ZIP, ZipSource
from mmtrain.data.storage.addresses import base_name, is_remote, local_path, scheme_of
from mmtrain.data.storage.cache import Cache
from mmtrain.data.storage.file import refuse_pipe
from mmtrain.data.storage.hidden_names import tars_in
from mmtrain.errors import UsageError
from mmtrain.settings.numbers import WHOLE
from mmtrain.settings.paths import mask_secrets

_NUM_PROBES = 64
"""Samples that are looked at, evenly spread, before none is found to have `image_key`."""


class MakeTable(Protocol):
    """A source from a table's path."""

    def __call__(self, path: Path, *, key: str) -> SampleSource: ...


class MakeRows(Protocol):
    """A source from a saved data set's folder or files."""

    def __call__(self, data: Path | Sequence[Path], *, key: str) -> SampleSource: ...


class Makers(NamedTuple):
    """What becomes of files of rows."""

    table: MakeTable
    """Of CSV and JSON."""
    rows: MakeRows
    """Of Arrow and Parquet."""

    @classmethod
    def images(cls, image_key: str) -> "Makers":
        """A row is an image, in the column `image_key`."""
        return cls(
            partial(ManifestSource, image_key=image_key), partial(ArrowSource, image_key=image_key)
        )


class Kind(NamedTuple):
    """One kind of data that is none of shards."""

    knows: Callable[[str], bool]
    """Whether a path is of it."""
    open: Callable[[str, Makers, str], SampleSource | None]
    """Path, what becomes of rows, setting -> the source; None: shards after all."""


def _starts(*starts: str) -> Callable[[str], bool]:
    return lambda spec: spec.startswith(starts)


def _ends(*suffixes: str) -> Callable[[str], bool]:
    return lambda spec: spec.lower().endswith(suffixes) and not _path(spec).is_dir()


def _path(spec: str) -> Path:
    return Path(local_path(spec)).expanduser()


def _open_table(spec: str, make: Makers, key: str) -> SampleSource:
    if any(each in spec for each in "*?[{") and not _path(spec).exists():
        raise UsageError(f"{key} = {spec} names several tables; one is read: join them")
    return make.table(_path(spec), key=key)


def _open_parquet(patterns: tuple[str, ...], make: Makers, key: str) -> SampleSource:
    files = [Path(path) for path in expand_patterns(patterns, key=key)]
    return make.rows(files, key=key)


def _open_arrow(spec: str, make: Makers, key: str) -> SampleSource:
    if any(each in spec for each in "*?[{") and not _path(spec).exists():
        raise UsageError(
            f"{key} = {spec} names several Arrow files; one is read, or the whole folder that "
            "save_to_disk wrote: name that"
        )
    return make.rows([_path(spec)], key=key)


def _open_folder(spec: str, make: Makers, key: str) -> SampleSource | None:
    """What a folder holds; None: shards."""
    folder = _path(spec)
    try:
        if tars_in(folder):
            return None
        if is_saved(folder):
            return make.rows(folder, key=key)
        listing = list_folder(folder)
    except OSError as error:
        raise UsageError(f"{key} = {folder} cannot be read: {error}") from error
    if listing.parquet and listing.images:
        raise UsageError(
            f"{key} = {folder} holds Parquet files ({listing.parquet[0]}) and "
            f"{len(listing.images)} images; write which to read: {folder}/"
            f"{listing.parquet[0]}, {CAPTIONS}{folder} or {CLASSES}{folder}"
        )
    if listing.parquet:
        files = parquet_of_one_split(folder, listing.parquet, key=key)
        return make.rows(files, key=key)
    if not listing.images:
        refuse_wrong_level(folder, listing.of_kinds("arrow", "feather"), key=key)
        return None
    return open_images(listing, key=key)


KINDS = (
    Kind(_starts(SYNTHETIC), lambda spec, _, key: SyntheticSource(spec, key=key)),
    Kind(_starts(TORCHVISION), lambda spec, _, key: TorchvisionSource(spec, key=key)),
    Kind(_starts(CLASSES, CAPTIONS), lambda spec, _, key: open_as(spec, key=key)),
    Kind(_ends(*TABLE_SUFFIXES), _open_table),
    Kind(_ends(".parquet"), lambda spec, make, key: _open_parquet((spec,), make, key)),
    Kind(_ends(*ARROW_SUFFIXES), _open_arrow),
    Kind(_ends(ZIP), lambda spec, _, key: ZipSource(_path(spec), key=key)),
    Kind(lambda spec: _path(spec).is_dir(), _open_folder),
)
"""In this order: the first that knows a path opens it; shards are what none knows."""


def open_unsharded(
    patterns: str | tuple[str, ...],
    *,
    image_key: str,
    key: str = "data.train",
    is_shared: bool = False,
    make: Makers | None = None,
) -> SampleSource | None:
    """The source that a path stands for, if it is none of shards; arguments as `open_source`."""
    source = _open_unsharded(patterns, make or Makers.images(image_key), key)
    if source is not None and not is_shared and not takes_image_key(source, image_key):
        raise UsageError(
            f"{image_key_option(key)} = {image_key} has no effect: {key} = "
            f"{as_typed(patterns)} has no column to choose; leave it out"
        )
    return source


def takes_image_key(source: SampleSource, image_key: str) -> bool:
    """Whether images are where `image_key` says, or it says nothing."""
    if isinstance(source, ManifestSource | ArrowSource):
        return image_key in (IMAGE_KEY, source.image_key)
    return image_key == IMAGE_KEY or isinstance(source, ShardSource)


def _open_unsharded(patterns: str | tuple[str, ...], make: Makers, key: str) -> SampleSource | None:
    listed = (patterns,) if isinstance(patterns, str) else tuple(patterns)
    for each in filter(is_remote, listed):
        _refuse_remote(each, key)
    for each in itertools.filterfalse(is_remote, listed):
        if _path(each).exists():
            refuse_pipe(_path(each).stat(), f"{key} = {each}")
    if len(listed) == 1:
        kind = next((kind for kind in KINDS if kind.knows(listed[0])), None)
        return None if kind is None else kind.open(listed[0], make, key)
    if listed and all(each.lower().endswith(".parquet") for each in listed):
        return _open_parquet(listed, make, key)
    for each in listed:
        if any(kind.knows(each) for kind in KINDS if kind.open is not _open_folder):
            raise UsageError(
                f"{key}: {each} is one of several paths, which may be shards alone, or Parquet "
                "files alone; name it by itself"
            )
    return None


def _refuse_remote(spec: str, key: str) -> None:
    """Of what is not on this machine, shards alone are read."""
    suffix = Path(base_name(spec)).suffix.lower()
    if suffix in (*TABLE_SUFFIXES, *ARROW_SUFFIXES, ".parquet", ZIP):
        raise UsageError(
            f"{key} = {mask_secrets(spec)}: of {scheme_of(spec)}:// tar shards are read, {suffix} "
            "files are not; copy it to a disk of this machine"
        )


def open_source(
    data: Data,
    *,
    image_key: str = IMAGE_KEY,
    index_dir: str | None = None,
    verify: bool = False,
    on_damage: OnDamage = "stop",
    key: str = "data.train",
    retry_seconds: float | None = None,
    cache: Cache | None = None,
    is_shared: bool = False,
    is_mixed: bool = False,
    part: tuple[int, int] = WHOLE,
    make: Makers | None = None,
) -> SampleSource:
    """The source that a path stands for; see the table above.

    Args:
        data: one path of any kind, or any number of patterns of shards; a source is given back.
        image_key: column of a manifest or of a saved data set that holds the image; in shards the
            extension of the images.
        index_dir, verify, on_damage: of `ShardSource`; the other kinds have neither indexes nor
            checksums, and refuse `verify`.
        key: the setting that `data` came from, for messages.
        retry_seconds: how long a disk's fault is given to pass; None: see `waiting`.
        cache: keeps what is read of remote shards.
        is_shared: whether other data have the same `image_key`, so that it need not matter here.
        is_mixed: whether other data, mixed or joined, have the same `index_dir`.
        part: number and count of equal parts of the shards, of which one is opened; of data that
            are none, all is.
        make: what becomes of files of rows; None: a row is an image.

    Raises:
        UsageError: nothing is there, it is damaged, or `image_key` is nowhere in it.
    """
    if not isinstance(data, str | Sequence):
        if index_dir is not None:
            raise UsageError(
                f"index_dir = {index_dir} has no effect: {key} is a source that is open, with its "
                "indexes; leave it out"
            )
        return data
    patterns = data if isinstance(data, str) else tuple(data)
    source = open_unsharded(patterns, image_key=image_key, key=key, is_shared=is_shared, make=make)
    if source is None:
        source = ShardSource(
            patterns,
            index_dir=index_dir,
            verify=verify,
            on_damage=on_damage,
            image_key=image_key,
            key=key,
            retry_seconds=retry_seconds,
            cache=cache,
            part=part,
        )
        _refuse_unknown_image_key(source, image_key, key)
        return source
    if index_dir is not None and not is_mixed:
        option = "data.index_dir" if key == "data.train" else "index_dir"
        raise UsageError(
            f"{option} = {index_dir} has no effect: {key} = {as_typed(patterns)} has no index, "
            "which only shards have; leave it out"
        )
    if verify:
        raise UsageError(
            f"data.verify = true needs checksums, which {as_typed(patterns)} has not; pack it into "
            "shards (mmtrain data make) or set it to false"
        )
    return source


def _refuse_unknown_image_key(source: ShardSource, image_key: str, key: str) -> None:
    """An extension that no sample has would be passed over for the images that are there."""
    if image_key == IMAGE_KEY:
        return
    last = source.num_samples - 1
    probes = {last * i // (_NUM_PROBES - 1) for i in range(_NUM_PROBES)}
    try:
        found = [source.extensions(number) for number in sorted(probes)]
    except OSError as error:
        raise UsageError(f"{key}: {error}") from error
    if not any(image_key in extensions for extensions in found):
        raise UsageError(
            f"{image_key_option(key)} = {image_key}: none of {len(found)} samples has it; the "
            f"first, {source.key(0)}, has {', '.join(f'.{each}' for each in found[0])}; name one "
            "that holds images, or leave it out"
        )


def explained(error: IncompleteError, source: SampleSource, sample: int) -> SampleError:
    """The same with what the names in a shard have to do with it."""
    is_shards = isinstance(source, ShardSource)
    fault = source.name_fault(sample, error.wanted) if is_shards else ""
    reason = f"{error} ({fault})" if fault else str(error)
    return SampleError(reason, detail=error.detail)
