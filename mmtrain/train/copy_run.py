"""A run copied to another place and back: which checkpoints, and whether it is this run's."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mmtrain.checkpoint.sealed_folder import CHECKPOINTS, STATE_FILE, steps_in, verify
from mmtrain.data.storage.place import FolderPlace, Place, open_place, read_small
from mmtrain.errors import UsageError
from mmtrain.files import create_file, parse_json, real_path
from mmtrain.train.copy_checkpoints import pull_checkpoint, sealed_in
from mmtrain.train.copy_files import RECORD_FILE, pull_files, recorded
from mmtrain.train.resume import find_changes, show_value
from mmtrain.train.run_folder import RECIPE_FILE
from mmtrain.train.state import Identity

Say = Callable[[str], object]


def open_copy(path: str, run: Path, *, key: str) -> Place:
    """The place of a run's copy.

    Raises:
        UsageError: nothing can be written there, or it is the run's own folder.
    """
    place = open_place(path, key=key)
    if isinstance(place, FolderPlace):
        folder, own = real_path(place.folder), real_path(run)
        if folder == own or own in folder.parents or folder in own.parents:
            raise UsageError(f"{key} = {path} and the run {run} lie in each other; name another")
    return place


def sealed_copies(place: Place) -> dict[int, str]:
    """The sealed checkpoints of a place, by step: their folders there.

    Raises:
        OSError: the place cannot be asked.
    """
    return sealed_in(place.sizes())


def refuse_other_run(
    place: Place, folder: str, *, identity: Identity, recipe: Any, key: str
) -> None:
    """Refuse a place that holds a run of another recipe, seed or data.

    Args:
        place: of the copy.
        folder: a sealed checkpoint there.
        identity: this run's.
        recipe: this run's, resolved.
        key: the setting that the place comes from.

    Raises:
        OSError: the place cannot be read.
        UsageError: naming what differs.
    """
    state = _read_state(place, folder)
    differs = identity.differs(state["identity"])
    if differs is None:
        changes = find_changes(state["recipe"], recipe)
        fixed = next((change for change in changes if change.kind == "fixed"), None)
        differs = None if fixed is None else (fixed.key, fixed.now, fixed.before)
    if differs is not None:
        name, now, before = differs
        raise UsageError(
            f"{key} = {place.named} holds another run: {name} is {show_value(before)} there and "
            f"{show_value(now)} here; name another place"
        )


def pull_newer(
    place: Place, run: Path, *, check: Callable[[str], None], say: Say, key: str
) -> None:
    """Bring the newest sealed checkpoint of a place, with the run's files, if it is of a later step
    than every whole one here; one that is damaged there is passed over aloud.

    Args:
        place: of the copy.
        run: its folder.
        check: gets the folder of the newest one there, and refuses another run's.
        say: gets a line for what came, or not.
        key: the setting that the place comes from.

    Raises:
        OSError: the place cannot be read.
        UsageError: all there are damaged and there is none here.
    """
    there = sealed_copies(place)
    if not there:
        say(f"{key} = {place.named} holds no sealed checkpoint yet")
        return
    check(there[max(there)])
    newest = newest_whole(run)
    damaged = []
    for step in sorted((step for step in there if step > newest), reverse=True):
        try:
            pull_checkpoint(place, there[step], run)
        except (UsageError, FileNotFoundError) as error:
            damaged.append(_reason(error))
            say(f"passed over: {damaged[-1]}")
            continue
        bring_files(place, run, say=say)
        say(f"step {step} came from {key} = {place.named}")
        return
    if damaged and not newest:
        raise UsageError(
            f"{key} = {place.named}: none of its checkpoints can be used, such as {damaged[0]}"
        )


def copied_recipe(path: str, run: Path, *, key: str) -> str | None:
    """The recipe of a run's copy; None: no run is there. Every rank may ask.

    Args:
        path: of the copy.
        run: its folder here.
        key: the setting that the path comes from.

    Raises:
        UsageError: the recipe there is damaged, or the place cannot be read.
    """
    place = open_copy(path, run, key=key)
    try:
        if not sealed_copies(place) or not (may_be := recorded(place, RECIPE_FILE)):
            return None
        content = read_small(place, RECIPE_FILE)
    except OSError as error:
        told = f"{error.filename or place.named}: {error.strerror}"
        raise UsageError(f"{key} = {place.named}: {told}; mend that") from error
    if (len(content), hashlib.sha256(content).hexdigest()) not in may_be:
        raise UsageError(f"{place.address(RECIPE_FILE)} is damaged; name a RECIPE")
    return content.decode()


def bring_recipe(path: str, run: Path, *, key: str) -> None:
    """Bring the recipe of a run's copy into a folder that has nothing of it; arguments as
    `copied_recipe` takes them.

    Raises:
        UsageError: no run is there, or as `copied_recipe`.
    """
    content = copied_recipe(path, run, key=key)
    if content is None:
        raise UsageError(f"{key} = {path} holds no run to go on with; name a RECIPE to begin one")
    run.mkdir(parents=True, exist_ok=True)
    create_file(run / RECIPE_FILE, content)


def bring_files(place: Place, run: Path, *, say: Say) -> int:
    """Bring the run's own files -> the bytes that came; where nobody recorded them, say so."""
    if RECORD_FILE not in place.sizes():
        say(
            f"{place.named} has no {RECORD_FILE}: the run's files beside its checkpoints stay there"
        )
        return 0
    return pull_files(place, run)


def newest_whole(run: Path) -> int:
    """The step of the newest checkpoint here that is whole, by its hashes; 0: there is none."""
    found = sorted(steps_in(run / CHECKPOINTS).items(), reverse=True)
    return next((step for step, path in found if not verify(path)), 0)


def _read_state(place: Place, folder: str) -> Mapping[str, Any]:
    name = f"{folder}/{STATE_FILE}"
    try:
        state = parse_json(read_small(place, name))
        known = isinstance(state["identity"], dict) and isinstance(state["recipe"], dict)
    except (ValueError, KeyError, TypeError):
        known, state = False, {}
    if not known:
        raise UsageError(f"{place.address(name)} is damaged; remove its folder there")
    return state


def _reason(error: Exception) -> str:
    is_missing = isinstance(error, OSError)
    return f"{error.filename}: {error.strerror}" if is_missing else str(error)
