"""Rows by the key of a sample: of a table, of Parquet files, of `mmtrain embed`'s folders, of
shards."""

import hashlib
import importlib.util
import io
import os
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from mmtrain.data.feature_files import probe_rows, read_job, read_npy, read_piece, read_pieces
from mmtrain.data.images.decode import IMAGE_EXTENSIONS
from mmtrain.data.joins.key_index import Index, PackedTexts
from mmtrain.data.sample_error import SampleError
from mmtrain.data.shards.patterns import expand_patterns
from mmtrain.data.shards.source import ShardSource
from mmtrain.data.sources.table import TABLE_SUFFIXES, Table
from mmtrain.data.storage.cache import Cache
from mmtrain.errors import UsageError
from mmtrain.files import parse_json

_FEATURES = "features.npy"
_AGAIN = "mmtrain embed makes what is missing of a folder, and names what it cannot use"
_ROWS_AT_ONCE = 1 << 18
"""Of an unpacked table: few pieces, so that a row is found fast."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """What is joined to a sample."""

    fields: Mapping[str, Any] = field(default_factory=dict)
    """Of the .json."""
    files: Mapping[str, bytes] = field(default_factory=dict)
    """By extension."""


class Keyed(Protocol):
    """Rows by number, each with a key."""

    path: str
    """For messages."""

    @property
    def fingerprint(self) -> str:
        """Of what is joined."""
        ...

    def row(self, number: int) -> tuple[str, Row]:
        """A row and its key.

        Raises:
            SampleError: it is malformed.
        """
        ...


class KeyedTable:
    """A .csv, .tsv, .jsonl or .json with a column of keys."""

    def __init__(self, path: Path, *, key_column: str, told: str) -> None:
        self.path, self._key = str(path), key_column
        self._table = Table(path, column=key_column, option="data.join_key", key="data.join")
        self.fingerprint = self._table.fingerprint
        numbers = range(self._table.num_rows)
        self.index = Index(map(self._key_of, numbers), key_of=self._key_of, told=told)

    def _key_of(self, number: int) -> str:
        place = self._table.place(number)
        try:
            key = self._table.row(number).get(self._key)
        except SampleError as error:
            raise UsageError(f"data.join: {place}: {error.told}; mend it") from error
        return _named(key, place, self._key)

    def row(self, number: int) -> tuple[str, Row]:
        """The columns as fields."""
        columns = dict(self._table.row(number))
        return str(columns.pop(self._key)), Row(fields=columns)


class KeyedParquet:
    """Parquet files with a column of keys; lists of numbers become .npy files.

    They are unpacked once into a file without a name, which is mapped: the processes of a machine
    share its pages, and it goes with the last of them.
    """

    def __init__(self, files: Sequence[Path], *, key_column: str, told: str) -> None:
        if importlib.util.find_spec("pyarrow") is None:
            raise UsageError(f"{told} needs the package pyarrow; pip install 'mmtrain[parquet]'")
        import pyarrow as pa  # optional
        from pyarrow import parquet

        self.path, self._key = str(files[0]), key_column
        try:
            table: Any = pa.concat_tables([parquet.read_table(file) for file in files])
        except (pa.ArrowException, OSError) as error:
            raise UsageError(f"{told} cannot be read: {str(error).splitlines()[0]}") from error
        if key_column not in table.column_names:
            names = ", ".join(table.column_names)
            raise UsageError(f"data.join_key = {key_column} is no column of {told} ({names})")
        digest = hashlib.blake2b(str(table.schema).encode(), digest_size=16)
        for column in table.columns:
            for chunk in column.chunks:
                digest.update(str(len(chunk)).encode())
                for buffer in filter(None, chunk.buffers()):
                    digest.update(buffer)
        self.fingerprint = digest.hexdigest()
        values = enumerate(table[key_column].to_pylist(), start=1)
        keys = [_named(key, f"row {number} of {files[0]}", key_column) for number, key in values]
        self.index = Index(keys, key_of=keys.__getitem__, told=told)
        try:
            self._file = _unpacked(table)
        except OSError as error:
            raise UsageError(
                f"{told} cannot be unpacked into {tempfile.gettempdir()} "
                f"({error.strerror or error}); free space there, or set TMPDIR to another folder"
            ) from error
        weakref.finalize(self, self._file.close)
        # Elsewhere than on Linux, of this process and those that it forks.
        folder = f"/proc/{os.getpid()}/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"
        self._place = f"{folder}/{self._file.fileno()}"
        self._rows = _mapped(self._place)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_rows": None, "_file": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._rows = _mapped(self._place)  # the process that unpacked it is there as long

    def row(self, number: int) -> tuple[str, Row]:
        """Numbers and texts as fields, lists of floats as files."""
        fields: dict[str, Any] = {}
        files: dict[str, bytes] = {}
        (columns,) = self._rows.slice(number, 1).to_pylist()
        for name, value in columns.items():
            if isinstance(value, list) and value and all(isinstance(x, float) for x in value):
                kind = self._rows.schema.field(name).type.value_type.to_pandas_dtype()
                files[f"{name}.npy"] = _npy(np.array(value, dtype=kind))
            elif name != self._key:
                fields[name] = value
        return str(columns[self._key]), Row(fields=fields, files=files)


def _named(key: object, place: str, column: str) -> str:
    """A row's key; one without would be passed over, or taken for that of a sample called None.

    Raises:
        UsageError: it has none.
    """
    if key is None or key == "":
        raise UsageError(f"data.join: {place} has no {column}; leave the row out, or give it one")
    return str(key)


def _unpacked(table: Any) -> IO[bytes]:
    """A file without a name that holds a table as it is in memory."""
    import pyarrow as pa  # optional

    file = tempfile.TemporaryFile()  # noqa: SIM115  (closed with what maps it)
    try:
        with pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=_ROWS_AT_ONCE)
        file.flush()
    except OSError:
        file.close()
        raise
    return file


def _mapped(place: str) -> Any:
    import pyarrow as pa  # optional

    return pa.ipc.open_file(pa.memory_map(place)).read_all()


class KeyedFeatures:
    """A folder of features-00000.npy with keys-00000.json, as `mmtrain embed` writes them."""

    def __init__(self, folder: Path, *, job: dict[str, Any] | None, told: str) -> None:
        self.path, self._files = str(folder), []
        digest = hashlib.blake2b(digest_size=16)
        self._pieces = []
        pieces = _any_pieces(folder) if job is None else read_pieces(folder, job)
        try:
            self._keys = PackedTexts(self._kept(*piece, digest) for piece in pieces)
        except (OSError, ValueError) as error:
            raise UsageError(f"{told} cannot be read ({error}); {_AGAIN}") from error
        self._end_P = np.cumsum([len(piece) for piece in self._pieces])
        digest.update(self._keys.all_bytes.data)
        self.fingerprint = digest.hexdigest()
        self.index = Index(self._keys, key_of=self._keys.__getitem__, told=told)

    def _kept(self, file: Path, features_NE: np.ndarray, keys: list[str], digest: Any) -> list[str]:
        digest.update(probe_rows(features_NE))
        self._files.append(file)
        self._pieces.append(features_NE)
        return keys

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_pieces": []}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state  # a map is pickled as all that is in it
        self._pieces = [read_npy(file) for file in self._files]

    def row(self, number: int) -> tuple[str, Row]:
        """The features as the file features.npy."""
        piece = int(np.searchsorted(self._end_P, number, side="right"))
        inside = number - int(self._end_P[piece])  # from its end
        content = _npy(np.array(self._pieces[piece][inside]))
        return self._keys[number], Row(files={_FEATURES: content})


class KeyedShards:
    """Shards of other files of the same samples; their images are left where they are."""

    def __init__(self, path: str, *, index_dir: str | None, cache: Cache | None, told: str) -> None:
        self._source = ShardSource(path, index_dir=index_dir, key="data.join", cache=cache)
        self.path, self.fingerprint = path, self._source.fingerprint
        numbers = range(self._source.num_samples)
        key_of = self._source.key
        self.index = Index(map(key_of, numbers), key_of=key_of, told=told)

    def row(self, number: int) -> tuple[str, Row]:
        """Its files; its .json as fields."""
        files = self._source.read(number)
        files = {k: v for k, v in files.items() if k not in IMAGE_EXTENSIONS}
        try:
            fields = parse_json(files.pop("json", b"{}"))
        except ValueError as error:
            raise SampleError("joined json invalid") from error
        if not isinstance(fields, dict):
            raise SampleError("joined json invalid")
        return self._source.key(number), Row(fields=fields, files=files)


AnyKeyed = KeyedTable | KeyedParquet | KeyedFeatures | KeyedShards


def open_keyed(
    path: str, *, key_column: str, index_dir: str | None, cache: Cache | None = None
) -> AnyKeyed:
    """What lies at a path, by key.

    Raises:
        UsageError: nothing that can be joined.
    """
    told, place = f"data.join = {path}", Path(path).expanduser()
    if place.is_dir():
        job = _job(place, told=told)
        files = sorted(place.glob("*.parquet"))
        if any(place.glob("features-*.npy")) or (job is not None and not files):
            return KeyedFeatures(place, job=job, told=told)
        if files:
            return KeyedParquet(files, key_column=key_column, told=told)
    elif place.suffix.lower() in TABLE_SUFFIXES:
        if _names_several(place):
            raise UsageError(f"{told} names several tables, and one is read; write them as one")
        return KeyedTable(place, key_column=key_column, told=told)
    elif place.suffix.lower() == ".parquet":
        several = expand_patterns(path, key="data.join") if _names_several(place) else [place]
        files = [Path(file) for file in several]
        return KeyedParquet(files, key_column=key_column, told=told)
    return KeyedShards(path, index_dir=index_dir, cache=cache, told=told)


def _names_several(place: Path) -> bool:
    """Whether it is a glob, or has ranges or lists in braces."""
    return any(each in str(place) for each in "*?[{") and not place.exists()


def _job(folder: Path, *, told: str) -> dict[str, Any] | None:
    """What embed.json tells, of pieces that are all there; None: there is no such file."""
    try:
        job = read_job(folder)
        if job is not None and job.get("format") == "parquet":
            for _ in read_pieces(folder, job):
                pass
    except (OSError, ValueError) as error:
        raise UsageError(f"{told} cannot be read ({error}); {_AGAIN}") from error
    return job


def _any_pieces(folder: Path) -> Iterator[tuple[Path, np.ndarray, list[str]]]:
    """Files of features that somebody else wrote."""
    width = None
    for path in sorted(folder.glob("features-*.npy")):
        features_NE, keys = read_piece(path)
        width = features_NE.shape[1] if width is None else width
        if features_NE.shape[1] != width:
            raise ValueError(f"{path.name} is {features_NE.shape[1]} wide, others are {width}")
        yield path, features_NE, keys


def _npy(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=False)
    return buffer.getvalue()
