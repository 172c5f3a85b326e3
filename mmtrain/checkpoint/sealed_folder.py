"""Checkpoint folders that are complete or not there: written hidden, sealed, then renamed.

What one process does; `mmtrain.checkpoint.checkpoint` is the way in for a run.
"""

import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from mmtrain.errors import UsageError
from mmtrain.files import parse_json, sha256_of

CHECKPOINTS = "checkpoints"
"""The folder of a run that they are in."""
MANIFEST_FILE = "manifest.json"
STATE_FILE = "state.json"
_FORMAT = {"format": "mmtrain checkpoint", "version": 1}
_STEP_NAME = re.compile(r"step-(\d{8,})")


def write_file(path: Path, content: bytes) -> tuple[int, str]:
    """Write and fsync a new small file -> its size and SHA-256."""
    with path.open("xb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    return len(content), hashlib.sha256(content).hexdigest()


def verify(path: Path, *, share: tuple[int, int] = (0, 1), hashes: bool = True) -> list[str]:
    """Compare a checkpoint with its manifest -> what is wrong; empty if nothing.

    Args:
        path: its folder.
        share: (rank, world size) to look at every world-th file, the others being left to others.
        hashes: False compares sizes alone, which reads no file and sees no changed byte.

    Raises:
        UsageError: a later mmtrain wrote it: it is whole, and must not be taken for damaged.
    """
    try:
        manifest = parse_json((path / MANIFEST_FILE).read_bytes())
    except (OSError, ValueError):
        return [f"{MANIFEST_FILE} is missing or unreadable"]
    named = _STEP_NAME.fullmatch(path.name)
    if not isinstance(manifest, dict):
        return [f"{MANIFEST_FILE} is unreadable"]
    version = manifest.get("version")
    is_ours = manifest.get("format") == _FORMAT["format"]
    if is_ours and isinstance(version, int) and version > _FORMAT["version"]:
        raise UsageError(
            f"{path}: version = {version} is unknown here (we read {_FORMAT['version']}); use the "
            "mmtrain that wrote it"
        )
    files, step = manifest.pop("files", None), manifest.get("step")
    expected = {**_FORMAT, "step": int(named[1]) if named else step}  # a copy may have any name
    if manifest != expected or not isinstance(files, dict) or STATE_FILE not in files:
        return [f"{MANIFEST_FILE} is not that of {path.name}"]
    problems = []
    for name, recorded in sorted(files.items())[share[0] :: share[1]]:
        try:
            size = (path / name).stat().st_size
            if size != recorded["size"]:
                problems.append(f"{name} has {size} bytes, not {recorded['size']}")
            elif hashes and sha256_of(path / name) != recorded["sha256"]:
                problems.append(f"{name} has changed")
        except OSError as error:
            problems.append(f"{name} cannot be read ({error.strerror})")
        except (KeyError, TypeError):
            problems.append(f"{MANIFEST_FILE} is unreadable at {name}")
    return problems


def read_manifest(content: bytes, *, step: int, named: str) -> dict[str, tuple[int, str]]:
    """Size and SHA-256 of every file that a manifest, from wherever it came, says there is.

    Args:
        content: the manifest's file.
        step: that it must be of.
        named: where it is, for messages.

    Raises:
        UsageError: it is not the manifest of a checkpoint of this step.
    """
    try:
        manifest = parse_json(content)
        files = manifest.pop("files")
        recorded = {str(n): (int(one["size"]), str(one["sha256"])) for n, one in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{named} is no checkpoint's manifest; remove it") from error
    is_flat = all(Path(name).name == name for name in recorded)
    if manifest != {**_FORMAT, "step": step} or STATE_FILE not in recorded or not is_flat:
        raise UsageError(f"{named} is not the manifest of step {step}; remove it")
    return recorded


def prepare(final: Path, temporary: Path) -> bool:
    """Make the hidden folder -> whether there is no need, the step being sealed already."""
    if final.exists() and not verify(final):
        return True
    final.parent.mkdir(parents=True, exist_ok=True)
    for leftover in final.parent.glob(".*-step-*"):  # of a killed process
        shutil.rmtree(leftover)
    temporary.mkdir()
    return False


def seal(
    final: Path,
    temporary: Path,
    *,
    files: dict[str, tuple[int, str]],
    step: int,
    state: dict[str, Any],
) -> None:
    """Add state and manifest to what was written, and give the folder its name."""
    content = json.dumps(state, indent=1, allow_nan=False).encode()
    files = {**files, STATE_FILE: write_file(temporary / STATE_FILE, content)}
    recorded = {n: {"size": size, "sha256": sha256} for n, (size, sha256) in sorted(files.items())}
    manifest = {**_FORMAT, "step": step, "files": recorded}
    finish(final, temporary, manifest=json.dumps(manifest, indent=1).encode())


def finish(final: Path, temporary: Path, *, manifest: bytes) -> None:
    """Seal a hidden folder whose other files are written, and give it its name."""
    write_file(temporary / MANIFEST_FILE, manifest)
    _sync_folder(temporary)
    if final.exists():  # damaged, or it would have been left
        remove(final)
    temporary.rename(final)
    _sync_folder(final.parent)
    _sync_folder(final.parent.parent)  # the first time, final.parent is new itself


def prune(folder: Path, *, keep: int) -> None:
    """Delete what is older than the newest `keep` sealed checkpoints."""
    steps = steps_in(folder)
    sealed = sorted(step for step, path in steps.items() if (path / MANIFEST_FILE).exists())
    for step, path in steps.items():
        if len(sealed) >= keep and step < sealed[-keep]:
            remove(path)


def remove(path: Path) -> None:
    """Delete a checkpoint; killed half-way, it leaves no folder that looks like one."""
    hidden = path.with_name(f".old-{path.name}")
    path.rename(hidden)
    shutil.rmtree(hidden)


def steps_in(folder: Path) -> dict[int, Path]:
    """The folders named step-N, by step."""
    found = {}
    for path in folder.glob("step-*"):
        if (step := step_of(path.name)) is not None and path.is_dir():
            found[step] = path
    return found


def step_of(name: str) -> int | None:
    """20 of step-00000020; None where it is no checkpoint's name."""
    match = _STEP_NAME.fullmatch(name)
    return None if match is None else int(match[1])


def _sync_folder(path: Path) -> None:
    """Make the names in a folder durable: fsync of a file does not cover its name."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
