"""The run folder: whether it is free for a new run, and what is known of one beside its numbers."""

import importlib.metadata
import json
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

import mmtrain
from mmtrain.checkpoint.sealed_folder import CHECKPOINTS, steps_in
from mmtrain.data.bad_samples import BAD_SAMPLES_FILE
from mmtrain.errors import UsageError
from mmtrain.files import parse_json, replace_file
from mmtrain.ranks import on_rank_0, own_rank
from mmtrain.settings.decode import dump_toml
from mmtrain.train.metrics import METRICS_FILE, read_metrics
from mmtrain.train.resume import HISTORY_FILE

RECIPE_FILE = "recipe.toml"
TOKENIZER = "tokenizer"
"""The folder of a run that the tokenizer of its start is kept in."""
FACTS_FILE = "run.json"
BAD_BATCHES_FILE = "bad_batches.jsonl"
_OF_STEPS = (BAD_SAMPLES_FILE, BAD_BATCHES_FILE, HISTORY_FILE)
_OWN = {TOKENIZER, CHECKPOINTS, *_OF_STEPS, "eval", "export"}
"""What a start may have left that came to nothing."""
_LOGS = {".log", ".out", ".err"}
"""What launchers write into a run's folder before it is one."""
_MOST_NAMED = 3
_PACKAGES = ("numpy", "pillow", "safetensors", "tokenizers", "webdataset")


def refuse_held(path: Path) -> None:
    """Refuse a folder with a run that a new one would overwrite. Collective.

    What a start left that failed before it got anywhere is no run: a recipe, bad samples.

    Raises:
        UsageError: it holds a checkpoint, logged steps or an exported model.
    """
    on_rank_0(lambda: _refuse_held(path))


def _refuse_held(path: Path) -> None:
    steps = logged_steps(path)
    last = max([*steps, *steps_in(path / CHECKPOINTS)], default=0)
    if last or (path / "export").exists():
        done = f" of {last} steps" if last else ""
        raise UsageError(
            f"run.dir = {path} already holds a run{done}; add --resume to go on with it, or choose "
            "another --run-dir"
        )


def refuse_foreign(path: Path, *, resumes: bool) -> None:
    """Refuse a folder that holds other things and no run: among them a run's files would stand, and
    in the place of those of the same name. Collective.

    Args:
        path: the folder.
        resumes: a recipe there may be what a run's copy brought; otherwise it is a user's own.

    Raises:
        UsageError: naming some of them.
    """
    on_rank_0(lambda: _refuse_foreign(path, {*_OWN, RECIPE_FILE} if resumes else _OWN))


def _refuse_foreign(path: Path, own: set[str]) -> None:
    is_run = (path / FACTS_FILE).is_file() or (path / METRICS_FILE).is_file()
    if is_run or steps_in(path / CHECKPOINTS):
        return
    others = sorted(
        each.name + "/" * each.is_dir()
        for each in path.iterdir()
        if each.name not in own and not each.name.startswith(".") and each.suffix not in _LOGS
    )
    if others:
        more = f" and {len(others) - _MOST_NAMED} more" if len(others) > _MOST_NAMED else ""
        raise UsageError(
            f"run.dir = {path} holds no run, but other things ({', '.join(others[:_MOST_NAMED])}"
            f"{more}); name a new or an empty folder by --run-dir"
        )


@contextmanager
def undone_on_failure(path: Path) -> Iterator[None]:
    """Within the context what comes into a folder goes again where the block fails: what a start
    brought that failed is in the way of none."""
    before = set(path.rglob("*"))
    try:
        yield
    except Exception:
        if own_rank() == 0:
            for new in sorted({*path.rglob("*")} - before, reverse=True):  # what is inside first
                with suppress(OSError):
                    new.rmdir() if new.is_dir() and not new.is_symlink() else new.unlink()
        raise


def has_begun(path: Path) -> bool:
    """Whether a run has a checkpoint, so that it needs nothing more of what it started from."""
    return (path / RECIPE_FILE).is_file() and bool(steps_in(path / CHECKPOINTS))


def logged_steps(path: Path) -> list[int]:
    """The steps that a run's metrics.jsonl has a line of."""
    file = path / METRICS_FILE
    return [record["step"] for record in read_metrics(file)] if file.exists() else []


def drop_leftovers(path: Path) -> None:
    """Remove what an earlier try wrote of steps that now come again from the first on. Collective.

    metrics.jsonl is not among it: the log sees to that itself.
    """
    on_rank_0(lambda: [(path / name).unlink(missing_ok=True) for name in _OF_STEPS])


def write_facts(path: Path, *, recipe: dict[str, Any], facts: dict[str, Any]) -> None:
    """Write recipe.toml (resolved: every key with its value) and run.json.

    Raises:
        UsageError: they cannot be written.
    """
    content = {**facts, **_beginning(path), **_provenance()}
    try:
        # First, so that a recipe without it is a user's own, which no run may replace.
        replace_file(path / FACTS_FILE, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
        replace_file(path / RECIPE_FILE, dump_toml(recipe))
    except OSError as error:
        raise UsageError(
            f"run.dir = {path} cannot be written ({error.strerror}); free space, or choose another "
            "--run-dir"
        ) from error


def fetched_models(path: Path) -> dict[str, str]:
    """What a run that has begun fetched from Hugging Face's hub: by each address as it was written,
    the one with the commit. Empty where run.json says nothing of it."""
    try:
        facts: Any = parse_json((path / FACTS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # then the hub is asked again, and a change refused by the recipe
        return {}
    found = facts.get("models") if isinstance(facts, dict) else None
    return dict(found) if isinstance(found, dict) else {}


def _beginning(path: Path) -> dict[str, Any]:
    """When the run began, which a resume leaves as it was, and the command that it goes on by; a
    program of somebody's own that calls us is none."""
    now = datetime.now().astimezone().isoformat(" ", "minutes")
    try:
        before: Any = parse_json((path / FACTS_FILE).read_text(encoding="utf-8"))
        now = before.get("begun", now)
    except (OSError, ValueError, AttributeError):
        pass  # the run begins, or nobody can say when it did
    program = Path(sys.argv[0]).parts
    if program[-1:] != ("mmtrain",) and program[-2:] != ("mmtrain", "__main__.py"):
        return {"begun": now}
    return {"begun": now, "command": shlex.join(["mmtrain", *sys.argv[1:]])}


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
