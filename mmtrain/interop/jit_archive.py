"""Tensors of a TorchScript archive, the form of OpenAI's own CLIP files, read without running it:
neither its code nor, beyond the few calls that rebuild tensors, its pickle.
"""

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmtrain.errors import UsageError
from mmtrain.interop.tensor_links import Tensors

STORAGES = {
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "BoolStorage": torch.bool,
}


class _Module:
    """A module of the archive: its attributes, and none of its code."""

    def __init__(self) -> None:
        self.attributes: dict[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        self.attributes = state if isinstance(state, dict) else {}


class _TensorUnpickler(pickle.Unpickler):
    """Builds modules' attributes and tensors; every other name is refused."""

    def __init__(self, file: Any, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(file)
        self._archive, self._root = archive, root

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if module_name.split(".")[0] == "__torch__":
            return _Module
        if (module_name, global_name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if (module_name, global_name) == ("collections", "OrderedDict"):
            return dict
        if module_name == "torch" and global_name in STORAGES:
            return STORAGES[global_name]
        if module_name == "torch.jit._pickle":
            return _first
        raise pickle.UnpicklingError(f"GLOBAL {module_name}.{global_name}")

    def persistent_load(self, pid: Any) -> Tensor:
        kind, dtype, key, _, num_elements = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype) or "/" in str(key):
            raise pickle.UnpicklingError("a storage of another kind")
        content = bytearray(self._archive.read(f"{self._root}/data/{key}"))
        storage = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
        if storage.numel() != num_elements:
            raise pickle.UnpicklingError(f"a storage of {num_elements} numbers is cut")
        return storage


def _rebuild_tensor(storage: Tensor, offset: int, size: Any, stride: Any, *_: Any) -> Tensor:
    return storage.as_strided(tuple(size), tuple(stride), int(offset)).clone()


def _first(value: Any, *_: Any) -> Any:
    return value


def is_jit_archive(path: Path) -> bool:
    """Whether the file is a TorchScript archive."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def read_jit_archive(path: Path) -> Tensors:
    """Every tensor among the modules' attributes, by its dotted name.

    Raises:
        UsageError: the file is damaged, or asks for anything but tensors.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            data = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            root = data.removesuffix("/data.pkl")
            if f"{root}/byteorder" in archive.namelist():
                order = archive.read(f"{root}/byteorder")
                if order != b"little":
                    raise UsageError(f"{path}: its byte order is {order.decode()}, not little")
            with archive.open(data) as file:
                module = _TensorUnpickler(file, archive, root).load()
    except pickle.UnpicklingError as error:
        raise UsageError(
            f"{path} asks for more than tensors ({error}), and nothing of it was run"
        ) from error
    except UsageError:
        raise
    except Exception as error:  # whatever a damaged pickle makes its reader stumble over
        raise UsageError(f"{path} is no readable TorchScript archive: {error}") from error
    return _tensors_of(module, "")


def _tensors_of(module: Any, prefix: str) -> Tensors:
    tensors: Tensors = {}
    attributes = module.attributes if isinstance(module, _Module) else {}
    for name, value in attributes.items():
        if isinstance(value, Tensor):
            tensors[prefix + name] = value
        elif isinstance(value, _Module):
            tensors |= _tensors_of(value, f"{prefix}{name}.")
    return tensors
