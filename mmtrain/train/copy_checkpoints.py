"""Sealed checkpoints copied to another place and back: whole there, or not taken for one.

A copy stands in the place as it does in the run, checkpoints/step-N/..., and its manifest comes
last. Until then the manifest is there under another name, so that what an interrupted copy has sent
counts for the same checkpoint and for no other.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from mmtrain.checkpoint.sealed_folder import (
    CHECKPOINTS,
    MANIFEST_FILE,
    finish,
    read_manifest,
    step_of,
    verify,
)
from mmtrain.data.storage.fetch import Checksum, fetch_file
from mmtrain.data.storage.place import Place, read_small
from mmtrain.data.storage.sent import keep_tags, unlike_sent
from mmtrain.errors import UsageError

_UNSEALED = f"{MANIFEST_FILE}.unsealed"
_TAGS = "etags.json"


def sealed_in(sizes: Mapping[str, int]) -> dict[int, str]:
    """The sealed checkpoints of a place, by step: their folders there.

    Args:
        sizes: what is in the place, from `Place.sizes`.
    """
    return {step: f for step, f in _folders_in(sizes).items() if f"{f}/{MANIFEST_FILE}" in sizes}


def push_checkpoint(path: Path, place: Place, *, replaces: bool) -> int:
    """Send a sealed checkpoint, unless it is there -> the bytes that went.

    Args:
        path: its folder in the run, or a copy of it by other links.
        place: of the run.
        replaces: another one of the same step goes; else it is refused.

    Raises:
        OSError: it cannot be read or sent.
        UsageError: it is damaged, or another one of its step is there.
    """
    content = (path / MANIFEST_FILE).read_bytes()
    if problems := verify(path):
        raise UsageError(f"{path}: damaged checkpoint: {problems[0]}; it is not sent")
    step = step_of(path.name)
    assert step is not None, "of a run's checkpoints/"
    files = read_manifest(content, step=step, named=str(path / MANIFEST_FILE))
    folder = f"{CHECKPOINTS}/{path.name}"
    there = _below(folder, place.sizes())
    kept = _kept(place, folder, content, there, replaces=replaces)
    missing = _missing(place, folder, files, kept)
    if MANIFEST_FILE in kept and not missing:
        return 0
    _unseal(place, folder, content, there=there, kept=kept)
    for name in missing:
        place.put(f"{folder}/{name}", path / name)
    arrived = _below(folder, place.sizes())
    for name, (size, _) in files.items():
        if arrived.get(name) != size:
            raise UsageError(
                f"{place.address(f'{folder}/{name}')} has {arrived.get(name, 'no')} bytes, not "
                f"{size}, though it was just sent; does another job write there?"
            )
    every, sent = ([f"{folder}/{name}" for name in names] for names in (files, missing))
    keep_tags(place, f"{folder}/{_TAGS}", every, sent=sent)
    place.put(f"{folder}/{MANIFEST_FILE}", content)
    place.delete([f"{folder}/{_UNSEALED}"])
    return sum(missing.values())


def _missing(
    place: Place, folder: str, files: Mapping[str, Checksum], kept: Mapping[str, int]
) -> dict[str, int]:
    """What must be sent, by size: also what has changed there since it was sent."""
    wanted = {f"{folder}/{name}": checksum for name, checksum in files.items() if name in kept}
    unlike = unlike_sent(place, f"{folder}/{_TAGS}", wanted)
    return {
        name: size
        for name, (size, _) in files.items()
        if name not in kept or f"{folder}/{name}" in unlike
    }


def _kept(
    place: Place, folder: str, content: bytes, there: Mapping[str, int], *, replaces: bool
) -> dict[str, int]:
    """What of a folder's files counts for the checkpoint that is sent."""
    for name in (MANIFEST_FILE, _UNSEALED):
        if name in there and read_small(place, f"{folder}/{name}") == content:
            return dict(there)
    if MANIFEST_FILE in there and not replaces:
        raise UsageError(
            f"{place.address(folder)} is another checkpoint of the same step, saved at another "
            "time; remove it there, or name another place"
        )
    return {}


def _unseal(
    place: Place,
    folder: str,
    content: bytes,
    *,
    there: Mapping[str, int],
    kept: Mapping[str, int],
) -> None:
    """Take the seal off, drop what does not count, and say what is coming."""
    if kept:
        place.put(f"{folder}/{_UNSEALED}", content)
        place.delete([f"{folder}/{MANIFEST_FILE}"] if MANIFEST_FILE in there else [])
        return
    forget_checkpoint(place, folder, there)
    place.put(f"{folder}/{_UNSEALED}", content)


def forget_checkpoint(place: Place, folder: str, names: Sequence[str] | Mapping[str, int]) -> None:
    """Remove a checkpoint's files, its seal first."""
    place.delete([f"{folder}/{name}" for name in names if name == MANIFEST_FILE])
    place.delete([f"{folder}/{name}" for name in names if name != MANIFEST_FILE])


def prune_copies(place: Place, *, keep: int) -> None:
    """Remove what is older than the newest `keep` sealed ones, as `train.keep_checkpoints` does."""
    sizes = place.sizes()
    sealed = sorted(sealed_in(sizes))
    for step, folder in sorted(_folders_in(sizes).items()):
        if len(sealed) >= keep and step < sealed[-keep]:
            forget_checkpoint(place, folder, _below(folder, sizes))


def pull_checkpoint(place: Place, folder: str, run: Path) -> int | None:
    """Bring a sealed checkpoint into a run's folder -> the bytes that came; None: it is there.

    One of the same step that is whole here stays; a damaged one is replaced.

    Raises:
        OSError: it cannot be read, or written.
        UsageError: a file of it is missing or damaged there, in one line.
    """
    final = run / folder
    if final.exists() and not verify(final):
        return None
    step = step_of(final.name)
    assert step is not None, "from `sealed_in`"
    content = read_small(place, f"{folder}/{MANIFEST_FILE}")
    named = place.address(f"{folder}/{MANIFEST_FILE}")
    files = read_manifest(content, step=step, named=named)
    hidden = final.with_name(f".pull-{final.name}")
    hidden.mkdir(parents=True, exist_ok=True)
    (hidden / MANIFEST_FILE).unlink(missing_ok=True)
    came = 0
    for name, checksum in files.items():
        came += fetch_file(place.address(f"{folder}/{name}"), hidden / name, wanted=[checksum])
    for stray in {each.name for each in hidden.iterdir()} - files.keys():
        (hidden / stray).unlink()
    finish(final, hidden, manifest=content)
    return came


def _folders_in(sizes: Mapping[str, int]) -> dict[int, str]:
    """Every checkpoint's folder, sealed or not, by step."""
    found = {}
    for name in sizes:
        parts = name.split("/")
        is_one = len(parts) == 3 and parts[0] == CHECKPOINTS
        if is_one and (step := step_of(parts[1])) is not None:
            found[step] = f"{CHECKPOINTS}/{parts[1]}"
    return found


def _below(folder: str, sizes: Mapping[str, int]) -> dict[str, int]:
    """What a folder of the place holds, by the names in it."""
    skip = len(folder) + 1
    return {name[skip:]: size for name, size in sizes.items() if name.startswith(f"{folder}/")}
