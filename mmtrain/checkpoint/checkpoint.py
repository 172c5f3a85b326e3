"""Sealed checkpoints: folders written completely, then sealed by a manifest, then given their name.

    checkpoints/step-00000020/
        manifest.json               size and SHA-256 of every other file, written last
        state.json                  everything that is not a tensor
        tensors.json                where each tensor lies
        rank-00000.safetensors ...  the tensors, one file for each rank that wrote

A checkpoint is written in a hidden folder, fsynced, sealed and then renamed, so a folder named
step-N is complete unless the disk failed later; that is what the hashes are for (they guard against
accidents, not attackers; against those, nothing is ever unpickled). All functions are collective
over the default process group where there is one: every rank calls them in the same order, shares a
file system with the others, and sees the same outcome and the same error.
"""

import shutil
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

from mmtrain.checkpoint.sealed_folder import STATE_FILE, prepare, prune, seal, steps_in, verify
from mmtrain.checkpoint.tensors import TensorReader, TensorsOnlyPlanner, TensorWriter
from mmtrain.errors import UsageError
from mmtrain.files import parse_json
from mmtrain.ranks import gather, is_alone, num_ranks, on_rank_0, own_rank

Tensors = Mapping[str, "Tensor | Tensors"]
"""Nested dicts of tensors; a tensor's name in the checkpoint joins the keys by dots."""


def save_checkpoint(
    folder: Path,
    *,
    step: int,
    tensors: Tensors,
    state: dict[str, Any],
    keep: int,
    group: dist.ProcessGroup | None = None,
) -> Path:
    """Write and seal `folder/step-N`, then delete the oldest beyond the newest `keep`.

    When this returns, on any rank, the checkpoint survives a kill or a power cut. A sealed and
    undamaged checkpoint of the same step is left as it is.

    Args:
        folder: RUN/checkpoints.
        tensors: plain tensors or DTensors; a plain one that several ranks hold is written once.
        state: what JSON can hold, from rank 0.
        group: of all ranks, for a thread beside the main one; None: the default group.

    Raises:
        UsageError: it could not be written (disk full, no permission); older ones are untouched.
    """
    assert keep >= 1
    final = folder / f"step-{step:08d}"
    temporary = folder / f".tmp-{final.name}"
    try:
        if on_rank_0(lambda: prepare(final, temporary), group=group):
            return final
        files = _write_tensors(temporary, flatten(tensors), group)
        on_rank_0(lambda: seal(final, temporary, files=files, step=step, state=state), group=group)
        on_rank_0(lambda: prune(folder, keep=keep), group=group)
    except OSError as error:
        on_rank_0(lambda: shutil.rmtree(temporary, ignore_errors=True), group=group)
        raise UsageError(
            f"{final}: the checkpoint cannot be written ({error.strerror or error}); "
            "free space or choose another --run-dir, then --resume; older checkpoints are untouched"
        ) from error
    return final


def load_checkpoint(
    path: Path, tensors: Tensors, *, verified: bool = False, only: tuple[str, ...] | None = None
) -> dict[str, Any]:
    """Copy a checkpoint into the given tensors, whatever layout it was saved at.

    Args:
        path: a sealed folder.
        tensors: filled in place, and all of them.
        verified: the hashes were just checked (by `find_latest`).
        only: top-level names to read, when the rest of the checkpoint is not wanted.

    Returns:
        The state it was saved with.

    Raises:
        UsageError: damaged, or of another model: a tensor is missing, left over, or differs in
            shape or dtype.
    """
    if not verified and (problems := _verify_together(path)):
        raise UsageError(f"{path}: damaged checkpoint: {problems[0]}; use another one")
    flat = flatten(tensors)
    reader = TensorReader(path)
    _check_same_model(path, flat, reader, only)
    _run_dcp(
        lambda: dcp_load(
            flat, storage_reader=reader, planner=TensorsOnlyPlanner(), no_dist=is_alone()
        )
    )
    return read_state(path)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint, whole and in main memory, by its name there.

    Raises:
        UsageError: it is damaged.
    """
    stored = TensorReader(path).read_metadata().state_dict_metadata
    whole = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in stored.items()
        if isinstance(entry, TensorStorageMetadata)
    }
    load_checkpoint(path, whole)
    return whole


def read_state(path: Path) -> dict[str, Any]:
    """What `save_checkpoint` was given as `state`."""
    return parse_json((path / STATE_FILE).read_bytes())


def find_latest(
    folder: Path,
    *,
    until: int | None = None,
    warn: Callable[[str], None] = lambda line: print(line, file=sys.stderr),
) -> Path | None:
    """The newest checkpoint whose files are what its manifest says; None if there is none at all.

    Args:
        folder: RUN/checkpoints.
        until: of this step or before.
        warn: damaged ones are skipped aloud, with a line for each on rank 0.

    Raises:
        UsageError: there are checkpoints, but every one is damaged.
    """
    found = on_rank_0(lambda: sorted(steps_in(folder).items(), reverse=True))
    candidates = [path for step, path in found if until is None or step <= until]
    damaged = 0
    for path in candidates:
        problems = _verify_together(path)
        if not problems:
            return path
        if on_rank_0(path.exists):  # else a run that goes on has dropped it meanwhile
            damaged += 1
            if own_rank() == 0:
                warn(f"{path}: damaged checkpoint skipped: {'; '.join(problems)}")
    if damaged:
        which = "" if until is None else f" up to step {until}"
        raise UsageError(
            f"{folder}: all {damaged} checkpoints{which} are damaged; "
            "restore one of them, or start a new run in another --run-dir"
        )
    return None


def _write_tensors(
    folder: Path, flat: dict[str, Tensor], group: dist.ProcessGroup | None
) -> dict[str, tuple[int, str]]:
    """Write all ranks' tensors -> on rank 0, size and hash of every file."""
    writer = TensorWriter(folder)
    planner = DefaultSavePlanner(flatten_state_dict=False)
    _run_dcp(
        lambda: dcp_save(
            flat,
            storage_writer=writer,
            planner=planner,
            process_group=group,
            no_dist=is_alone(),
        )
    )
    return writer.files


def flatten(tensors: Tensors, prefix: str = "") -> dict[str, Tensor]:
    """The tensors by their names in a checkpoint."""
    flat: dict[str, Tensor] = {}
    for key, value in tensors.items():
        if isinstance(value, Tensor):
            flat[prefix + key] = value
        else:
            assert isinstance(value, Mapping), f"{prefix}{key} is no tensor; it belongs in `state`"
            flat |= flatten(value, f"{prefix}{key}.")
    return flat


def _check_same_model(
    path: Path, flat: dict[str, Tensor], reader: TensorReader, only: tuple[str, ...] | None
) -> None:
    """Refuse a checkpoint whose tensors are not exactly those asked for, over all ranks."""
    ours: dict[str, tuple[list[int], str]] = {}
    for part in gather({n: (list(t.shape), str(t.dtype)) for n, t in flat.items()}):
        ours |= part
    theirs = {
        name: (list(tensor.size), str(tensor.properties.dtype))
        for name, tensor in reader.read_metadata().state_dict_metadata.items()
        if isinstance(tensor, TensorStorageMetadata)
        and (only is None or name.split(".", 1)[0] in only)
    }
    remedy = (
        "resume with the model, optimizer and precision it was saved with (recipe.toml beside it), "
        "or start a new run in another --run-dir"
    )
    for names, form in (
        (ours.keys() - theirs.keys(), "lacks tensor {} that this run needs"),
        (theirs.keys() - ours.keys(), "has tensor {} that this run does not"),
    ):
        if names:
            more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            raise UsageError(f"{path}: {form.format(min(names) + more)}; {remedy}")
    for name, ((shape, dtype), (saved_shape, saved_dtype)) in sorted(
        (name, (ours[name], theirs[name])) for name in ours
    ):
        if (shape, dtype) != (saved_shape, saved_dtype):
            saved, here = (saved_shape, shape) if shape != saved_shape else (saved_dtype, dtype)
            raise UsageError(f"{path}: tensor {name} is {saved}, but {here} in this run; {remedy}")


def _verify_together(path: Path) -> list[str]:
    """`verify` with the files shared out over the ranks -> all problems, on every rank."""
    parts = gather(verify(path, share=(own_rank(), num_ranks())))
    return list(dict.fromkeys(problem for part in parts for problem in part))


def _run_dcp(action: Callable[[], object]) -> None:
    """Run a DCP call; raise the first rank's own error, on all ranks, instead of DCP's.

    CheckpointException derives from BaseException: no handler for errors would see it.
    """
    # Of a single process, which is just what was asked for. For good: to take a filter back is not
    # safe beside other threads, and one of them may be the one that saves.
    warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
    try:
        action()
    except CheckpointException as error:
        cause = error.failures[min(error.failures)][0]
        raise cause from error
