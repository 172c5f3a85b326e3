"""Index files: kept beside their shards or in a folder of their own, checked before they are used.

`X.tar.index` is a zip of plain numpy arrays (`numpy.load` reads it; nothing is unpickled). A
changed shard is told by its size and the hash of three pieces of it, never by a date, which is
another one on another machine.
"""

import errno
import hashlib
import io
import json
import os
import uuid
import zipfile
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from mmtrain.data.shards.index import IndexSummary, ShardIndex, content_hash, hash_crcs
from mmtrain.data.shards.tar_scan import Damage
from mmtrain.data.storage.addresses import base_name, is_remote, is_web
from mmtrain.data.storage.file import File
from mmtrain.data.storage.patience import may_pass
from mmtrain.errors import UsageError
from mmtrain.files import parse_json, read_numpys

SUFFIX = ".index"
CATALOGUE_SUFFIX = ".catalogue"
OWN_SUFFIXES = (SUFFIX, CATALOGUE_SUFFIX)
"""Of what is kept beside shards, and is none."""
_FORMAT = "mmtrain shard index 1"
_READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)


def index_paths(shard_path: str, index_dir: str | None, *, suffix: str = SUFFIX) -> list[Path]:
    """Where the index of a shard may be, the place for a new one first.

    That is `index_dir`, or without one beside the shard and, where that folder cannot be written
    or the shard is not on this machine, the user's cache folder.
    """
    # By strings: of 10,000 shards, paths as objects would take a second.
    if index_dir is None:
        cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        folder = f"{cache}/mmtrain/indexes"
    else:
        folder = index_dir or "."
    if is_remote(shard_path):
        return [_path_in(folder, base_name(shard_path), shard_path.encode(), suffix)]
    whole = os.fsencode(os.path.realpath(shard_path))
    apart = _path_in(folder, os.path.basename(shard_path), whole, suffix)
    beside = Path(shard_path + suffix)
    return [beside, apart] if index_dir is None else [apart, beside]


def _path_in(folder: str, name: str, whole: bytes, suffix: str) -> Path:
    # Shards of one name in several folders, buckets or servers must not share an index.
    digest = hashlib.blake2b(whole, digest_size=8).hexdigest()
    return Path(f"{folder}/{name}.{digest}{suffix}")


def keep_index(index: ShardIndex, shard_path: str, index_dir: str | None) -> Path:
    """Write an index to its place and say which that is.

    Raises:
        UsageError: it can be written nowhere.
    """
    return keep(partial(save_index, index), index_paths(shard_path, index_dir), index_dir)


def keep(write: Callable[[Path], Path], places: list[Path], index_dir: str | None) -> Path:
    """Write a file to the first of its places that can be written.

    Raises:
        UsageError: none can, or the first is one that the user chose.
    """
    first, *others = places
    try:
        return write(first)
    except OSError as error:
        if index_dir is not None or not others or error.errno not in _READ_ONLY:
            raise UsageError(_no_place(first, error)) from error
    second = others[0]
    try:
        return write(second)
    except OSError as error:
        raise UsageError(_no_place(second, error)) from error


def _no_place(path: Path, error: OSError) -> str:
    return (
        f"index {path} cannot be written ({error.strerror}); "
        "set data.index_dir to a folder that can"
    )


def is_fresh(summary: IndexSummary, shard: File) -> bool:
    """Whether an index still is that of this shard.

    An object store's etag tells it without a read; a web server's own may not change with the
    content, so that it tells only what is stale.
    """
    if summary.shard_bytes != shard.size:
        return False
    if None not in (summary.version, shard.version):
        if summary.version != shard.version:
            return False
        if not is_web(shard.path):
            return True
    return summary.content_hash == content_hash(shard)


def save_index(index: ShardIndex, path: Path) -> Path:
    """Write an index so that a reader meets a whole one or none, however many write it at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    said = vars(index.summary) | {"format": _FORMAT}
    data = {name: value for name, value in said.items() if value is not None}
    left_out = () if index.summary.has_sizes else _SIZES
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        summary=np.frombuffer(json.dumps(data).encode(), dtype=np.uint8),
        **{name: getattr(index, name) for name in _ARRAYS if name not in left_out},
    )
    # The name is each writer's own: another one may be writing the same index.
    partial = path.with_name(f".{path.name}.{os.getpid()}.{uuid.uuid4().hex}.partial")
    try:
        partial.write_bytes(buffer.getbuffer())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return path


_ARRAYS = {
    "keys": np.uint8,
    "key_end_S": np.int64,
    "member_end_S": np.int64,
    "extension_M": np.uint16,
    "offset_M": np.int64,
    "size_M": np.int64,
    "header_crc_M": np.uint32,
    "crc_M": np.uint32,
    "height_S": np.uint32,
    "width_S": np.uint32,
}
_SIZES = ("height_S", "width_S")
_T = TypeVar("_T")
# What a file that is missing, torn, forged or of another version raises.
_UNREADABLE = (
    AttributeError,
    EOFError,
    KeyError,
    NotImplementedError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    zipfile.BadZipFile,
    zlib.error,
)


def whole_or_damaged(load: Callable[[Path], _T | None], path: Path) -> tuple[_T | None, bool]:
    """What `load` makes of a file that others may be writing, and whether one is there that cannot
    be used."""
    found = load(path)
    if found is None and os.path.lexists(path):
        found = load(path)  # its writer may have been done since the first look
        return found, found is None
    return found, False


def load_summary(path: Path) -> IndexSummary | None:
    """The summary of an index file; None if there is none, or none that can be used.

    Raises:
        OSError: it cannot be read just now.
    """
    try:
        return _read(path, _decode_summary)
    except _UNREADABLE as error:
        _raise_passing(error)
        return None


def load_index(path: Path) -> ShardIndex | None:
    """An index file; None if there is none, or none that can be used.

    Raises:
        OSError: it cannot be read just now.
    """
    try:
        index = _read(path, _decode_index)
    except _UNREADABLE as error:
        _raise_passing(error)
        return None
    return index if _is_consistent(index) else None


def _read(path: Path, decode: Callable[[Mapping[str, np.ndarray]], _T]) -> _T:
    def once() -> _T:
        # Opened here: numpy does not close what proves to be no zip.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            return decode(file)

    return read_numpys(once)


def _decode_index(file: Mapping[str, np.ndarray]) -> ShardIndex:
    summary = _decode_summary(file)
    return ShardIndex(summary=summary, **{n: _array(n, file, summary) for n in _ARRAYS})


def _array(name: str, file: Mapping[str, np.ndarray], summary: IndexSummary) -> np.ndarray:
    if name in _SIZES and not summary.has_sizes and name not in file:
        return np.zeros(summary.num_samples, dtype=_ARRAYS[name])
    return file[name]


def _raise_passing(error: Exception) -> None:
    """A disk's hiccup is no damage, for which a whole shard would be indexed anew."""
    # zipfile takes a failed read of its directory for a file that is no zip.
    for fault in (error, error.__context__):
        if may_pass(fault):
            raise fault


def _decode_summary(file: Mapping[str, np.ndarray]) -> IndexSummary:
    data = parse_json(file["summary"].tobytes())
    if data.pop("format") != _FORMAT:
        raise ValueError("an index of another version")
    if data["has_crc"] and not data.get("crc_hash"):
        data["crc_hash"] = hash_crcs(file["crc_M"])  # an index from before there was one
    data.setdefault("crc_hash", None)
    data.setdefault("version", None)
    data.setdefault("has_sizes", False)
    data["extensions"] = tuple(data["extensions"])
    data["damage"] = tuple(Damage(int(offset), str(reason)) for offset, reason in data["damage"])
    return IndexSummary(**data)


def _is_consistent(index: ShardIndex) -> bool:
    """Whether the arrays fit each other, so that no lookup leaves them or the shard."""
    summary = index.summary
    samples, members = summary.num_samples, summary.num_members
    lengths = {
        "keys": int(index.key_end_S[-1]) if index.key_end_S.size else 0,
        "key_end_S": samples,
        "member_end_S": samples,
        "extension_M": members,
        "offset_M": members,
        "size_M": members,
        "header_crc_M": members,
        "crc_M": members if summary.has_crc else 0,
        "height_S": samples,
        "width_S": samples,
    }
    for name, dtype in _ARRAYS.items():
        array = getattr(index, name)
        if array.dtype != dtype or array.shape != (lengths[name],):
            return False
    if not members:
        return samples == 0
    ends_fit = samples > 0 and int(index.member_end_S[-1]) == members
    grows = bool(np.all(np.diff(index.member_end_S, prepend=0) > 0))
    grows = grows and bool(np.all(np.diff(index.key_end_S, prepend=0) > 0))
    inside = bool(np.all(index.offset_M >= 0) and np.all(index.size_M >= 0))
    inside = inside and bool(np.all(index.offset_M + index.size_M <= summary.shard_bytes))
    return ends_fit and grows and inside and int(index.extension_M.max()) < len(summary.extensions)
