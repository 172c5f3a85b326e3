"""A piece of embeddings on disk: features and keys, a row each, as numpy's files or as Parquet."""

import importlib.util
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mmtrain.errors import UsageError
from mmtrain.files import replace_file

PieceFormat = Literal["npy", "parquet"]
"""npy: features-00000.npy, which can be mapped, and keys-00000.json beside it. parquet:
features-00000.parquet with the columns key and features, a list of E numbers."""


def features_file(folder: Path, number: int, form: PieceFormat) -> Path:
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


def read_piece(path: Path, *, dtype: str) -> tuple[np.ndarray, list[str]]:
    """Features [n, E], mapped where they can be, and the keys of their rows.

    Args:
        path: the features' file.
        dtype: of the features, as the folder tells it.

    Raises:
        OSError, ValueError: a file is missing, damaged or of another form.
        UsageError: it is Parquet, and the library is missing.
    """
    if path.suffix == ".parquet":
        features_NE, keys = _read_parquet(path)
    else:
        features_NE = _read_npy(path)
        keys = _read_keys(keys_file(path))
    if features_NE.ndim != 2 or len(keys) != len(features_NE):
        raise ValueError(f"{path.name} holds no features with a key each")
    if str(features_NE.dtype) != dtype:
        raise ValueError(f"{path.name} is of {features_NE.dtype}, not {dtype}")
    return features_NE, keys


def _read_npy(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (EOFError, ValueError) as error:
        raise ValueError(f"{path.name} is cut or no file of numpy's") from error


def _read_keys(path: Path) -> list[str]:
    try:
        keys: Any = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path.name} is no JSON: {error}") from error
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise ValueError(f"{path.name} is no list of keys")
    return keys


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
