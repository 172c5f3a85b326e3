"""Storage for torch.distributed.checkpoint (DCP) without a pickle: safetensors files, a JSON index.

DCP plans who writes and reads which piece of a tensor at which layout. Its own storage unpickles
`.metadata` and loads other objects with `weights_only=False`; here nothing can be stored but
numbers and text, so there is nothing to run in a forged file. Each rank writes one
`rank-00000.safetensors`; a tensor written whole goes by its own name there, and any safetensors
reader finds it.
"""

import hashlib
import json
import math
import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadItemType,
    LoadPlan,
    LoadPlanner,
    ReadItem,
    SavePlan,
    SavePlanner,
    WriteItem,
)
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from mmtrain.checkpoint.sealed_folder import write_file
from mmtrain.errors import UsageError
from mmtrain.files import parse_json

INDEX_FILE = "tensors.json"
DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Stored:
    """Where one piece of a tensor lies, and what its file must be."""

    file: str
    key: str
    size: int
    sha256: str


class TensorWriter(StorageWriter):
    """Writes each rank's pieces, one tensor in memory at a time, hashed on the way and fsynced.

    After `dcp.save`, `files` on the coordinator holds name -> (size, SHA-256) of all written files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, tuple[int, str]] = {}

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        self.files = {}

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Nothing to set up: the folder exists."""

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        return [replace(plan, storage_data=rank) for rank, plan in enumerate(plans)]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        future: Future[list[WriteResult]] = Future()
        future.set_result(self._write(plan, planner) if plan.items else [])
        return future

    def _write(self, plan: SavePlan, planner: SavePlanner) -> list[WriteResult]:
        file = f"rank-{plan.storage_data:05d}.safetensors"
        items = {_key(item): item for item in plan.items}
        digest, size = hashlib.sha256(), 0
        with (self.folder / file).open("xb") as stream:
            for part in _safetensors(items, planner):
                size += stream.write(part)
                digest.update(part)
            stream.flush()
            os.fsync(stream.fileno())
        sha256 = digest.hexdigest()
        return [
            WriteResult(item.index, _num_bytes(item), Stored(file, key, size, sha256))
            for key, item in items.items()
        ]

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Write the index: `{tensor: {dtype, shape, pieces: [{offsets, sizes, file, key}]}}`."""
        stored = {result.index: result.storage_data for some in results for result in some}
        index = {}
        for name, tensor in metadata.state_dict_metadata.items():
            assert isinstance(tensor, TensorStorageMetadata), f"{name} is no tensor"
            pieces = []
            for chunk in tensor.chunks:
                where: Stored = stored[MetadataIndex(name, chunk.offsets)]
                self.files[where.file] = (where.size, where.sha256)
                bounds = {"offsets": list(chunk.offsets), "sizes": list(chunk.sizes)}
                pieces.append({**bounds, "file": where.file, "key": where.key})
            dtype = _NAMES[tensor.properties.dtype]
            index[name] = {"dtype": dtype, "shape": list(tensor.size), "pieces": pieces}
        # A line a tensor: the C encoder, which takes no indent, is ten times as fast.
        lines = (f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in index.items())
        content = ("{\n" + ",\n".join(lines) + "\n}\n").encode()
        self.files[INDEX_FILE] = write_file(self.folder / INDEX_FILE, content)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return True


def _key(item: WriteItem) -> str:
    """The tensor's name, with the piece's place in it unless the piece is the whole."""
    data = item.tensor_data
    assert data is not None, f"{item.index.fqn} is no tensor; other state belongs in state.json"
    if data.chunk.sizes == data.size:
        return item.index.fqn
    return f"{item.index.fqn}@{','.join(map(str, data.chunk.offsets))}"


def _num_bytes(item: WriteItem) -> int:
    assert item.tensor_data is not None
    return math.prod(item.tensor_data.chunk.sizes) * item.tensor_data.properties.dtype.itemsize


def _safetensors(items: dict[str, WriteItem], planner: SavePlanner) -> Iterator[bytes | memoryview]:
    """The parts of a safetensors file: length and text of the header, then the tensors' bytes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for key, item in items.items():
        data = item.tensor_data
        assert data is not None
        start, end = end, end + _num_bytes(item)
        header[key] = {
            "dtype": _NAMES[data.properties.dtype],
            "shape": list(data.chunk.sizes),
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the tensors start aligned
    yield len(text).to_bytes(8, "little") + text
    for item in items.values():
        tensor = planner.resolve_data(item)
        assert isinstance(tensor, Tensor)
        local = tensor.detach().cpu().contiguous()
        yield local.reshape(-1).view(torch.uint8).numpy().data


class TensorReader(StorageReader):
    """Reads what `TensorWriter` wrote, at any layout.

    Raises:
        UsageError: the index names anything but tensors in safetensors files of this folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stored: dict[MetadataIndex, tuple[str, str]] = {}

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        self._stored = {}

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Every tensor's size, dtype and pieces, from the index."""
        tensors: dict[str, Any] = {}
        stored: dict[MetadataIndex, tuple[str, str]] = {}
        index = parse_json((self.folder / INDEX_FILE).read_bytes())
        for name, entry in index.items():
            chunks = []
            for piece in entry["pieces"]:
                self._check(name, entry["dtype"], piece["file"])
                offsets, sizes = torch.Size(piece["offsets"]), torch.Size(piece["sizes"])
                chunks.append(ChunkStorageMetadata(offsets, sizes))
                stored[MetadataIndex(name, offsets)] = (piece["file"], piece["key"])
            properties = TensorProperties(dtype=DTYPES[entry["dtype"]])
            size = torch.Size(entry["shape"])
            tensors[name] = TensorStorageMetadata(properties, size, chunks)
        return Metadata(tensors, storage_data=stored)

    def _check(self, name: str, dtype: str, file: str) -> None:
        plain = Path(file).name == file and file.endswith(".safetensors")
        if dtype not in DTYPES or not plain:
            raise UsageError(
                f"{self.folder / INDEX_FILE}: entry {name} ({dtype} in {file!r}) is no tensor of "
                "this checkpoint; nothing else is read, restore the file from where it came"
            )

    def set_up_storage_reader(
        self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any
    ) -> None:
        self._stored = metadata.storage_data

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        by_file: dict[str, list[tuple[str, ReadItem]]] = defaultdict(list)
        for item in plan.items:
            assert item.type == LoadItemType.TENSOR
            file, key = self._stored[item.storage_index]
            by_file[file].append((key, item))
        for file, items in by_file.items():
            with safe_open(self.folder / file, framework="pt") as source:
                for key, item in items:
                    target = planner.resolve_tensor(item).detach()
                    target.copy_(_piece(source, key, item))
                    planner.commit_tensor(item, target)
        future: Future[None] = Future()
        future.set_result(None)
        return future

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return True


def _piece(source: Any, key: str, item: ReadItem) -> Tensor:
    """The part of a stored tensor that one read asks for."""
    if len(item.lengths) == 0:
        return source.get_tensor(key)
    bounds = zip(item.storage_offsets, item.lengths, strict=True)
    return source.get_slice(key)[tuple(slice(start, start + length) for start, length in bounds)]


class TensorsOnlyPlanner(DefaultLoadPlanner):
    """A load planner that refuses objects: torch's unpickles them without restriction."""

    def __init__(self) -> None:
        super().__init__(flatten_state_dict=False)

    def load_bytes(self, read_item: ReadItem, value: Any) -> None:
        name = read_item.dest_index.fqn
        raise UsageError(f"checkpoint entry {name} is no tensor; nothing else is read")
