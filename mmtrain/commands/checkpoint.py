"""`mmtrain checkpoint`: list, verify, prune and convert what a run has saved."""

import shutil
import sys
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from mmtrain.build.package import checkpoint_package
from mmtrain.checkpoint.checkpoint import read_state, read_tensors
from mmtrain.checkpoint.inspection import (
    checkpoints_in,
    describe_checkpoint,
    problems_of,
    prune_verified,
    run_of,
)
from mmtrain.checkpoint.sealed_folder import STATE_FILE
from mmtrain.errors import UsageError
from mmtrain.files import save_tensors
from mmtrain.interop.forms import check_weights
from mmtrain.loading import write_package
from mmtrain.settings.paths import new_folder
from mmtrain.train.run_lock import RunLock
from mmtrain.train.state import as_fp32


def checkpoint_ls_command(*, path: Path) -> None:
    """`mmtrain checkpoint ls`: a line for each; files are counted, not hashed."""
    table = Table("step", "size", "saved", "state", "layout", "loss", box=None, pad_edge=False)
    for each in checkpoints_in(path):
        facts = describe_checkpoint(each)
        if facts is None:
            continue
        state = "sealed" if not facts.problems else f"torn: {facts.problems[0]}"
        saved = "" if facts.saved is None else facts.saved.isoformat(" ", "seconds")
        loss = "" if facts.loss is None else f"{facts.loss:.4f}"
        size = f"{facts.size / 2**20:,.1f} MiB"
        table.add_row(str(facts.step), size, saved, escape(state), facts.layout, loss)
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def checkpoint_verify_command(*, path: Path) -> None:
    """`mmtrain checkpoint verify`: hash every file again; status 2 where one has changed."""
    damaged = 0
    paths = checkpoints_in(path)
    for each in paths:
        problems = problems_of(each)
        damaged += bool(problems)
        told = "dropped by its run meanwhile" if problems is None else "; ".join(problems)
        print(f"{each}: {told or 'whole'}", flush=True)
    if damaged:
        raise UsageError(
            f"{damaged} of {len(paths)} checkpoints of {path} are damaged; a resume passes them "
            "over and takes the newest whole one"
        )


def checkpoint_prune_command(*, path: Path, keep: int) -> None:
    """`mmtrain checkpoint prune`: delete what is older than the newest `keep` whole ones."""
    checkpoints_in(path)  # refuses a folder that has none, before anything is written into it
    with RunLock(run_of(path), named=str(path), say=lambda line: print(line, file=sys.stderr)):
        removed = prune_verified(path, keep=keep)
    for each in removed:
        print(f"deleted {each}")
    print(f"{len(removed)} deleted; the newest {keep} that verify are kept")


def checkpoint_convert_command(
    *, path: Path, out: Path, form: str, weights_form: str | None = None
) -> None:
    """`mmtrain checkpoint convert`: one checkpoint (a run's newest) without its layout.

    `safetensors` writes every tensor whole: model, averages, optimizer; the other forms write the
    model alone, with averaged weights where there are any, as a finished run's export/ holds it.
    """
    check_weights(form, weights_form)
    source = _newest(path)
    with new_folder(out) as folder:
        _convert(source, folder, form=form, weights_form=weights_form)
    print(f"wrote {out} ({form}) from {source}")


def _convert(source: Path, folder: Path, *, form: str, weights_form: str | None) -> None:
    groups: dict[str, dict[str, Tensor]] = {}
    for name, tensor in read_tensors(source).items():
        group, _, rest = name.partition(".")
        groups.setdefault(group, {})[rest] = tensor
    if form == "safetensors":
        for group, tensors in groups.items():
            save_tensors(folder / f"{group}.safetensors", tensors)
        shutil.copy(source / STATE_FILE, folder)
        return
    weights = as_fp32({**groups["model"], **groups.get("ema", {})})
    package = checkpoint_package(read_state(source)["recipe"], weights, source=source)
    write_package(package, folder, form=form, weights=weights_form, say=print)


def _newest(path: Path) -> Path:
    paths = checkpoints_in(path)
    while paths:
        each = paths.pop()
        problems = problems_of(each)
        if problems is None:  # the run has dropped it for a newer one
            paths = checkpoints_in(path)
        elif problems:
            print(f"mmtrain: {each}: {'; '.join(problems)}; passed over", file=sys.stderr)
        else:
            return each
    raise UsageError(f"{path}: no whole checkpoint is here; `mmtrain checkpoint verify` says why")
