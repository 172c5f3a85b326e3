"""`mmtrain checkpoint push` and `pull`: a run's sealed checkpoints and files in another place."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmtrain.checkpoint.checkpoint import read_state
from mmtrain.checkpoint.inspection import checkpoints_in, run_of
from mmtrain.checkpoint.sealed_folder import CHECKPOINTS, MANIFEST_FILE, step_of, steps_in
from mmtrain.data.storage.place import Place
from mmtrain.errors import UsageError
from mmtrain.recipe import TrainRecipe
from mmtrain.settings.decode import decode
from mmtrain.train.copy_checkpoints import pull_checkpoint, push_checkpoint
from mmtrain.train.copy_files import differing, push_files
from mmtrain.train.copy_run import bring_files, open_copy, refuse_other_run, sealed_copies
from mmtrain.train.run_lock import RunLock
from mmtrain.train.state import Identity


def checkpoint_push_command(*, path: Path, out: str) -> None:
    """`mmtrain checkpoint push`: the sealed checkpoints that a path means, newest first."""
    run = run_of(path)
    found = [each for each in reversed(checkpoints_in(path)) if step_of(each.name) is not None]
    sealed = [each for each in found if (each / MANIFEST_FILE).exists()]
    if not sealed:
        raise UsageError(f"{path}: no sealed checkpoint of a run, .../step-N, is here")
    place = open_copy(out, run, key="DST")
    with _told(place, "DST"):
        newest = _refuse_other(place, sealed[0], key="DST")
        if newest > max(steps_in(run / CHECKPOINTS)):
            print(f"{place.named}: is of step {newest} already; its files stay", flush=True)
        else:
            sent = push_files(run, place)
            print(f"{place.named}: the run's files ({sent:,} bytes sent)", flush=True)
        damaged = [reason for each in sealed if (reason := _push_one(each, place)) is not None]
    if damaged:
        raise UsageError(f"{len(damaged)} of {len(sealed)} checkpoints not sent: {damaged[0]}")


def _push_one(path: Path, place: Place) -> str | None:
    """Send one and tell it -> why it cannot be sent; None: it is there."""
    try:
        sent = push_checkpoint(path, place, replaces=False)
    except UsageError as error:
        print(str(error), flush=True)
        return str(error)
    told = f"{sent:,} bytes sent, sealed" if sent else "is there already"
    print(f"{place.address(f'{CHECKPOINTS}/{path.name}')}: {told}", flush=True)
    return None


def checkpoint_pull_command(*, source: str, out: Path, step: int | None, everything: bool) -> None:
    """`mmtrain checkpoint pull`: a checkpoint, or all, and the run's files, into a run folder.

    What is here and whole stays, and so do the run's files where it has gone on beyond the copy.
    """
    place = open_copy(source, out, key="SRC")
    with _told(place, "SRC"):
        there = sealed_copies(place)
        if not there:
            raise UsageError(f"SRC = {source} holds no sealed checkpoint; was a run pushed there?")
        if step is not None and step not in there:
            steps = ", ".join(map(str, sorted(there)))
            raise UsageError(f"--step = {step} is not in {place.named}, which holds {steps}")
        wanted = sorted(there, reverse=True) if everything else [step or max(there)]
        with RunLock(out, named=f"RUN = {out}", say=_say):
            here = _refuse_other_here(place, out)
            for each in wanted:
                came = pull_checkpoint(place, there[each], out)
                told = "is here already" if came is None else f"{came:,} bytes came, sealed"
                print(f"{out / there[each]}: {told}", flush=True)
            if here > max(there):
                print(f"{out}: has gone on to step {here}; its files stay", flush=True)
            else:
                print(f"{out}: the run's files ({bring_files(place, out, say=_say):,} bytes came)")


def _refuse_other_here(place: Place, run: Path) -> int:
    """Refuse a folder of another run -> the newest step here, 0 for none."""
    steps = steps_in(run / CHECKPOINTS)
    sealed = [step for step, path in steps.items() if (path / MANIFEST_FILE).exists()]
    if sealed:
        _refuse_other(place, steps[max(sealed)], key="SRC")
    elif differ := differing(place, run):
        raise UsageError(
            f"RUN = {run} has no checkpoint, and its {differ[0]} is another than in {place.named}; "
            "name a new folder"
        )
    return max(sealed, default=0)


def _refuse_other(place: Place, here: Path, *, key: str) -> int:
    """Refuse a place that holds another run than that of a checkpoint here -> the newest step
    there, 0 for none."""
    there = sealed_copies(place)
    if not there:
        return 0
    try:
        state: Any = read_state(here)
        identity = Identity(**state["identity"])
        recipe = decode(TrainRecipe, state["recipe"])
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{here} is damaged: its state.json cannot be read; remove it") from error
    refuse_other_run(place, there[max(there)], identity=identity, recipe=recipe, key=key)
    return max(there)


@contextmanager
def _told(place: Place, key: str) -> Iterator[None]:
    """One line for a place that fails, with the remedy: what is done stays done."""
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"{key} = {place.named}: {error.filename or place.named}: {error.strerror}; mend that "
            "and run the same command again: it goes on where it was"
        ) from error


def _say(line: str) -> None:
    print(f"mmtrain: {line}", file=sys.stderr)
