"""The run folder: who may write into it, and what is known of a run beside its numbers."""

import importlib.metadata
import json
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

import mmtrain
from mmtrain.decode_config import dump_toml
from mmtrain.errors import UsageError
from mmtrain.files import replace_file
from mmtrain.train.ranks import on_rank_0

RECIPE_FILE = "recipe.toml"
FACTS_FILE = "run.json"
_PACKAGES = ("numpy", "pillow", "safetensors", "tokenizers", "webdataset")


def open_run_folder(path: Path, *, resume: bool) -> None:
    """Make the folder, or refuse one that holds a run that this one would overwrite. Collective.

    Raises:
        UsageError: it holds a run and `resume` is off, or it cannot be made.
    """
    on_rank_0(lambda: _open(path, resume))


def _open(path: Path, resume: bool) -> None:
    if (path / RECIPE_FILE).exists() and not resume:
        raise UsageError(
            f"run.dir = {path} already holds a run; add --resume to go on with it, or choose "
            "another --run-dir"
        )
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"run.dir = {path} cannot be made ({error.strerror}); choose another --run-dir"
        ) from error


def write_facts(path: Path, *, recipe: dict[str, Any], facts: dict[str, Any]) -> None:
    """Write recipe.toml (resolved: every key with its value) and run.json."""
    replace_file(path / RECIPE_FILE, dump_toml(recipe))
    content = {**facts, **_provenance()}
    replace_file(path / FACTS_FILE, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _provenance() -> dict[str, Any]:
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {
        "versions": {
            "mmtrain": mmtrain.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            **versions,
        },
        "commit": _commit(),
        "machine": platform.machine(),
    }


def _commit() -> str:
    """The checkout's commit, with a mark where it was changed since; where there is none, so."""
    root = Path(mmtrain.__file__).parent
    try:
        described = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return "not in a git checkout"
    return described.stdout.strip()
