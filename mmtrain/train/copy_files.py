"""A run's files beside its checkpoints, copied to another place and back, by size and checksum.

They change while a run goes on, so a record beside them says what each is: before a file is sent it
names the old content and the new one, afterwards the new one alone.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Collection, Iterator
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from mmtrain.checkpoint.sealed_folder import CHECKPOINTS
from mmtrain.data.bad_samples import BAD_SAMPLES_FILE
from mmtrain.data.storage.fetch import Checksum, checksum_of, fetch_file
from mmtrain.data.storage.place import Place, read_small
from mmtrain.data.storage.sent import keep_tags, unlike_sent
from mmtrain.errors import UsageError
from mmtrain.files import parse_json, sha256_of
from mmtrain.train.resume import HISTORY_FILE
from mmtrain.train.run_folder import BAD_BATCHES_FILE

RECORD_FILE = "run-files.json"
_TAGS_FILE = "run-etags.json"
_FORMAT = {"format": "mmtrain run files", "version": 1}
_LEFT_OUT = (CHECKPOINTS, "heartbeats")
_TAKEN_BACK = (BAD_SAMPLES_FILE, BAD_BATCHES_FILE, HISTORY_FILE, "eval/*.failed.json")
"""What a run itself removes when it no longer holds, and then the copy too."""
_SMALL = 64 << 20
_TRIES = 3
Record = dict[str, list[Checksum | None]]
"""File -> what it may be: one content; while it is being sent the old one too, None for no file."""


def push_files(run: Path, place: Place, *, only: Collection[str] | None = None) -> int:
    """Send what has changed of a run's own files -> the bytes that went.

    Args:
        run: its folder; something may be writing into it.
        place: of the run.
        only: these; None: all but checkpoints and what is hidden.

    Raises:
        OSError: a file cannot be read or sent.
    """
    sizes = place.sizes()
    record = _read_record(place) if RECORD_FILE in sizes else {}
    here = set(_files_of(run))
    gone = [
        name
        for name in record
        if only is None and name not in here and any(fnmatch(name, one) for one in _TAKEN_BACK)
    ]
    known: dict[str, Checksum] = {}
    changed: dict[str, tuple[Checksum, Path | bytes]] = {}
    for name, checksum, content in _contents(run, here if only is None else here & set(only)):
        if record.get(name) == [checksum]:
            known[name] = checksum
        else:
            changed[name] = checksum, content
    unlike = unlike_sent(place, _TAGS_FILE, known)
    changed |= {name: (checksum, content) for name, checksum, content in _contents(run, unlike)}
    if changed or gone:
        coming: Record = {n: [*record.get(n, [None]), c] for n, (c, _) in changed.items()}
        _write_record(place, record, coming | {name: [*record[name], None] for name in gone})
        for name, (_, content) in changed.items():
            place.put(name, content)
        place.delete(gone)
        kept = {name: old for name, old in record.items() if name not in gone}
        _write_record(place, kept, {name: [c] for name, (c, _) in changed.items()})
        keep_tags(place, _TAGS_FILE, kept.keys() | changed.keys(), sent=changed)
    return sum(size for (size, _), _ in changed.values())


def pull_files(place: Place, run: Path) -> int:
    """Bring a run's own files into its folder, in the place of older ones -> the bytes that came.

    Raises:
        OSError: one cannot be read, or written.
        UsageError: one is missing or damaged there.
    """
    for _ in range(_TRIES - 1):
        try:
            return _pull_files(place, run)
        except (UsageError, FileNotFoundError):  # a run that goes on may just have sent it anew
            continue
    return _pull_files(place, run)


def recorded(place: Place, name: str) -> list[Checksum]:
    """What one of a run's files may be there; nothing: it is not there.

    Raises:
        OSError: the place cannot be read.
    """
    record = _read_record(place) if RECORD_FILE in place.sizes() else {}
    return [one for one in record.get(name, []) if one is not None]


def differing(place: Place, run: Path) -> list[str]:
    """The files that are here and, there, another."""
    record = _read_record(place) if RECORD_FILE in place.sizes() else {}
    known = {name: [one for one in wanted if one is not None] for name, wanted in record.items()}
    return [
        name
        for name, wanted in sorted(known.items())
        if (run / name).is_file() and checksum_of(run / name, wanted) not in wanted
    ]


def _pull_files(place: Place, run: Path) -> int:
    came, sizes = 0, place.sizes()
    record = _read_record(place) if RECORD_FILE in sizes else {}
    for name, may_be in record.items():
        wanted, path = [one for one in may_be if one is not None], run / name
        if name not in sizes and len(wanted) < len(may_be):
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        came += fetch_file(place.address(name), path, wanted=wanted)
    return came


def _files_of(run: Path) -> Iterator[str]:
    # Unlike rglob before Python 3.13, walk lets a folder go that the run removes meanwhile.
    for folder, inner, names in os.walk(run):
        left_out = _LEFT_OUT if Path(folder) == run else ()
        inner[:] = [each for each in inner if not each.startswith(".") and each not in left_out]
        for path in (Path(folder, name) for name in names if not name.startswith(".")):
            if path.suffix not in (".tmp", ".partial") and path.is_file():
                yield path.relative_to(run).as_posix()


def _contents(run: Path, names: Collection[str]) -> Iterator[tuple[str, Checksum, Path | bytes]]:
    """Files as `_read` has them; what the run has removed meanwhile is for the next push."""
    for name in sorted(names):
        with contextlib.suppress(FileNotFoundError):
            yield name, *_read(run / name)


def _read(path: Path) -> tuple[Checksum, Path | bytes]:
    """What a file is, and what to send: the bytes that were hashed where it may be growing."""
    size = path.stat().st_size
    if size > _SMALL:
        return (size, sha256_of(path)), path
    content = path.read_bytes()
    return (len(content), hashlib.sha256(content).hexdigest()), content


def _read_record(place: Place) -> Record:
    named = place.address(RECORD_FILE)
    try:
        content = parse_json(read_small(place, RECORD_FILE))
        files = content.pop("files")
        record = {
            name: [None if one is None else (int(one[0]), str(one[1])) for one in each]
            for name, each in files.items()
        }
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise UsageError(f"{named} is no record of a run's files; remove it") from error
    inside = (not PurePosixPath(n).is_absolute() and ".." not in n.split("/") for n in record)
    if content != _FORMAT or not all(inside):
        raise UsageError(f"{named} is no record of a run's files; remove it")
    return record


def _write_record(place: Place, old: Record, new: Record) -> None:
    files = dict(sorted({**old, **new}.items()))
    place.put(RECORD_FILE, json.dumps({**_FORMAT, "files": files}, indent=1).encode())
