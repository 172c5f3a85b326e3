"""A folder of features on disk: pieces of features and keys, a row each, as numpy's files or as
Parquet, and embed.json, which tells of all of them.

What reads a piece raises ValueError where it is damaged, so that each place says it in its words.
"""

import hashlib
import importlib.util
import io
import json
import tokenize
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from mmtrain.errors import UsageError
from mmtrain.files import parse_json, read_numpys, replace_file

DONE_FILE = "embed.json"
PARTIAL_FILE = "embed.partial.json"
PieceFormat = Literal["npy", "parquet"]
"""npy: features-00000.npy, which can be mapped, and keys-00000.json beside it. parquet:
features-00000.parquet with the columns key and features, a list of E numbers."""


def features_file(folder: Path, number: int, form: PieceFormat | str) -> Path:
    """The file that a piece is whole with."""
    return folder / f"features-{number:05d}.{form}"


def keys_file(features: Path) -> Path:
    """Where the keys of a piece are that is no Parquet."""
    return features.with_name(features.name.replace("features", "keys")).with_suffix(".json")


def write_piece(path: Path, features_NE: np.ndarray, keys: Sequence[str]) -> None:
    """Write a piece, the features last.

    Raises:
        OSError: it cannot be written.
    """
    if path.suffix == ".parquet":
        replace_file(path, _parquet(features_NE, keys))
        return
    replace_file(keys_file(path), json.dumps(list(keys), indent=1) + "\n")
    buffer = io.BytesIO()
    np.save(buffer, features_NE, allow_pickle=False)
    replace_file(path, buffer.getvalue())


def read_piece(path: Path, *, dtype: str | None = None) -> tuple[np.ndarray, list[str]]:
    """Features [n, E], mapped where they can be, and the keys of their rows.

    Args:
        path: the features' file.
        dtype: of the features, as the folder tells it. None: any real number's.

    Raises:
        OSError, ValueError: a file is missing, damaged or of another form.
        UsageError: it is Parquet, and the library is missing.
    """
    if path.suffix == ".parquet":
        features_NE, keys = _read_parquet(path)
    else:
        features_NE = read_npy(path)
        keys = read_json(keys_file(path))
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        named = path if path.suffix == ".parquet" else keys_file(path)
        raise ValueError(f"{named.name} is no list of keys")
    if features_NE.ndim != 2 or len(keys) != len(features_NE):
        raise ValueError(f"{path.name} holds no features with a key each")
    if dtype is not None and str(features_NE.dtype) != dtype:
        raise ValueError(f"{path.name} is of {features_NE.dtype}, not {dtype}")
    return features_NE, keys


def read_npy(file: Path | IO[bytes]) -> np.ndarray:
    """An array of real numbers in numpy's file, mapped where it is a path; nothing is unpickled.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no such file, or cut.
    """
    named = file.name if isinstance(file, Path) else "it"
    if isinstance(file, Path) and file.exists() and not file.is_file():  # a pipe is waited for
        raise ValueError(f"{named} is no file")
    try:
        mode = "r" if isinstance(file, Path) else None
        found: Any = read_numpys(lambda: np.load(file, mmap_mode=mode, allow_pickle=False))
    except (ValueError, TypeError, EOFError, OverflowError, *_NO_HEADER) as error:
        raise ValueError(f"{named} is cut or no file of numpy's") from error
    if not isinstance(found, np.ndarray):  # several arrays in one file
        found.close()
        raise ValueError(f"{named} is an archive of numpy's, not one array")
    if found.dtype.kind not in "iuf":
        raise ValueError(f"{named} is of {found.dtype}, not of real numbers")
    return found


_NO_HEADER = (SyntaxError, tokenize.TokenError, RecursionError, MemoryError, zipfile.BadZipFile)
"""What numpy lets out of a header that is spoilt."""


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is none.
    """
    if path.exists() and not path.is_file():
        raise ValueError(f"{path.name} is no file")
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path.name} is no JSON: {error}") from error


def piece_digest(features_NE: np.ndarray, keys: Sequence[str]) -> str:
    """Tells one piece from another by its keys, shape and a few rows: all may be terabytes."""
    digest = hashlib.blake2b(probe_rows(features_NE), digest_size=8)
    digest.update("\n".join(keys).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def probe_rows(features_NE: np.ndarray) -> bytes:
    """The shape and the first, the middle and the last row."""
    rows = (0, len(features_NE) // 2, len(features_NE) - 1)
    told = f"{features_NE.shape} {features_NE.dtype}".encode()
    return told + b"".join(features_NE[row : row + 1].tobytes() for row in rows)


def read_pieces(folder: Path, job: dict[str, Any]) -> Iterator[tuple[Path, np.ndarray, list[str]]]:
    """The pieces of a finished folder, in order: file, features [n, E], keys.

    Args:
        folder: where they are.
        job: what embed.json tells.

    Raises:
        OSError, ValueError: embed.json or a piece is damaged, one is missing, left over or not the
            one that embed.json was written of.
        UsageError: as `read_piece`.
    """
    count, form, dtype, num_rows = (
        _told(job, name, kind)
        for name, kind in (("num_pieces", int), ("format", str), ("dtype", str), ("num_rows", int))
    )
    digests = job.get("digests")  # which older ones lack
    if digests is not None and not (isinstance(digests, list) and len(digests) == count):
        raise ValueError(f"digests of {DONE_FILE} are not those of {count} pieces")
    width, found = None, 0
    for number in range(count):
        path = features_file(folder, number, form)
        features_NE, keys = read_piece(path, dtype=dtype)
        width = features_NE.shape[1] if width is None else width
        if features_NE.shape[1] != width:
            raise ValueError(f"{path.name} is {features_NE.shape[1]} wide, others are {width}")
        if digests is not None and piece_digest(features_NE, keys) != digests[number]:
            raise ValueError(f"{path.name} and its keys are not the piece that was written")
        found += len(keys)
        yield path, features_NE, keys
    if found != num_rows:
        raise ValueError(f"{found} rows, and {DONE_FILE} tells of {num_rows}")
    for path in sorted(folder.glob(f"features-*.{form}")):
        if path not in {features_file(folder, number, form) for number in range(count)}:
            raise ValueError(f"{path.name} is none of its {count} pieces")


def _told(job: dict[str, Any], name: str, kind: type) -> Any:
    value = job.get(name)
    if type(value) is not kind or (isinstance(value, int) and value < 0):
        raise ValueError(f"{DONE_FILE} has no {name}")
    return value


def is_finished(folder: Path) -> bool | None:
    """Whether all of a folder's features are there; None: it is no folder of features."""
    # Asked first: who finishes a folder writes the one file, then removes the other.
    is_begun = (folder / PARTIAL_FILE).is_file()
    if (folder / DONE_FILE).is_file():
        return True
    return False if is_begun else None


def read_job(folder: Path) -> dict[str, Any] | None:
    """What embed.json of a folder tells; None: there is none.

    Raises:
        OSError, ValueError: it is damaged, or embedding is not finished.
    """
    finished = is_finished(folder)
    if finished is None:
        return None
    if not finished:
        raise ValueError("it is not finished")
    job = read_json(folder / DONE_FILE)
    if not isinstance(job, dict):
        raise ValueError(f"{DONE_FILE} is no table")
    return job


def require_parquet(key: str) -> None:
    """Make sure of the library.

    Args:
        key: what asks for it, for the message.

    Raises:
        UsageError: it is missing.
    """
    if importlib.util.find_spec("pyarrow") is None:
        raise UsageError(f"{key} needs the package pyarrow; pip install 'mmtrain[parquet]'")


def _parquet(features_NE: np.ndarray, keys: Sequence[str]) -> bytes:
    import pyarrow as pa  # optional
    from pyarrow import parquet

    rows = pa.FixedSizeListArray.from_arrays(
        pa.array(np.ascontiguousarray(features_NE).reshape(-1)), features_NE.shape[1]
    )
    table = pa.table({"key": pa.array(list(keys), pa.string()), "features": rows})
    sink = pa.BufferOutputStream()
    # Features are noise to a compressor, and to a dictionary.
    parquet.write_table(table, sink, compression="none", use_dictionary=False)
    return sink.getvalue().to_pybytes()


def _read_parquet(path: Path) -> tuple[np.ndarray, list[str]]:
    require_parquet(str(path))
    import pyarrow as pa
    from pyarrow import parquet

    try:
        table: Any = parquet.read_table(path, columns=["key", "features"])
        rows = table["features"].combine_chunks()
        size = rows.type.list_size
        features_NE = rows.flatten().to_numpy(zero_copy_only=False).reshape(-1, size)
    except (pa.ArrowException, AttributeError) as error:
        raise ValueError(f"{path.name}: {str(error).splitlines()[0]}") from error
    return features_NE, table["key"].to_pylist()
