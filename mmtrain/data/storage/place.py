"""Where whole files are put, listed and removed: a folder of this machine or of an object store."""

import contextlib
import os
import re
import shutil
import stat
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from mmtrain.data.storage.addresses import (
    is_hub,
    is_remote,
    is_web,
    local_path,
    scheme_of,
    split_store,
)
from mmtrain.data.storage.fetch import Checksum, checksum_of
from mmtrain.data.storage.open import open_file
from mmtrain.data.storage.patience import patience, patiently
from mmtrain.data.storage.remote import told
from mmtrain.data.storage.stores import store_to_write
from mmtrain.errors import UsageError
from mmtrain.files import remove_partials, replacing, writing

_PART, _MOST_PARTS = 8 << 20, 9000
_AT_ONCE = 8
_PARTIAL = ".partial"
ReturnT = TypeVar("ReturnT")


class Place(Protocol):
    """A folder that files are copied to. A file is there whole or not at all."""

    named: str
    """As the user wrote it, without a slash at its end."""

    def address(self, name: str) -> str:
        """What `open_file` opens of a file there."""
        ...

    def sizes(self) -> dict[str, int]:
        """Bytes of every file, by its name in the folder, `a/b.json`; empty without a folder.

        Raises:
            OSError: it cannot be asked, with an errno as a local folder's.
        """
        ...

    def tags(self) -> dict[str, str]:
        """What a store tells files' contents apart by, their etags; empty of a folder.

        Raises:
            OSError: it cannot be asked.
        """
        ...

    def unlike(self, wanted: Mapping[str, Checksum], *, tags: Mapping[str, str]) -> set[str]:
        """Those files that are not, or no longer, there with these contents.

        Args:
            wanted: size and hash of each.
            tags: their etags when they were sent; a store's file without one counts by its size.

        Raises:
            OSError: it cannot be asked, or a file cannot be read.
        """
        ...

    def put(self, name: str, content: Path | bytes) -> None:
        """Write a file, or replace it.

        Raises:
            OSError: it cannot be written, or `content` cannot be read.
        """
        ...

    def delete(self, names: Sequence[str]) -> None:
        """Remove files; those that are gone do no harm.

        Raises:
            OSError: they cannot be removed.
        """
        ...


_ONE_SLASH = re.compile(r"(s3|gs|az|https?|hf|file):/?(?!/)")
"""Else a folder of that name would be made here, and nothing sent anywhere."""


def open_place(path: str, *, key: str) -> Place:
    """The place that an address or a path names; nothing is looked up.

    Args:
        path: s3://, gs:// or az://, file:// or a path of this machine.
        key: the setting that it comes from, for messages.

    Raises:
        UsageError: nothing can be written there, whatever the rights.
    """
    if typo := _ONE_SLASH.match(path):
        raise UsageError(f"{key} = {path}: an address has two slashes, {typo[1]}://")
    if is_web(path):
        raise UsageError(
            f"{key} = {path}: a web server takes no files and has no listing; name a folder of "
            "s3://, gs:// or az://, or of this machine"
        )
    if is_hub(path):
        raise UsageError(
            f"{key} = {path}: nothing is written to the hub; name a folder of s3://, gs:// or "
            "az://, or of this machine"
        )
    if is_remote(path):
        return StorePlace(path)
    if scheme_of(path):
        raise UsageError(
            f"{key} = {path}: {scheme_of(path)} is no place to write to; name a folder of "
            "s3://, gs:// or az://, or of this machine"
        )
    return FolderPlace(path)


def read_small(place: Place, name: str) -> bytes:
    """All of a file that fits into memory.

    Raises:
        OSError: it cannot be read.
    """

    def attempt() -> bytes:
        with open_file(place.address(name)) as file:
            return file.read(0, file.size)

    return patiently(attempt, seconds=patience())


class FolderPlace:
    """A folder of this machine; made when something is put."""

    def __init__(self, path: str) -> None:
        self.named = path.rstrip("/") or "/"
        self.folder = Path(local_path(path))

    def address(self, name: str) -> str:
        """See `Place.address`."""
        return str(self.folder / name)

    def sizes(self) -> dict[str, int]:
        """See `Place.sizes`. A run that goes on drops checkpoints meanwhile: they are not there."""
        found: dict[str, int] = {}
        for folder, _, names in os.walk(self.folder, onerror=_refuse_all_but_gone):
            for path in (Path(folder, name) for name in names if not name.endswith(_PARTIAL)):
                with contextlib.suppress(FileNotFoundError):
                    told = path.stat()
                    if stat.S_ISREG(told.st_mode):
                        found[path.relative_to(self.folder).as_posix()] = told.st_size
        return found

    def tags(self) -> dict[str, str]:
        """See `Place.tags`."""
        return {}

    def unlike(self, wanted: Mapping[str, Checksum], *, tags: Mapping[str, str]) -> set[str]:
        """See `Place.unlike`: they are read."""
        paths = {name: self.folder / name for name in wanted}
        return {
            name
            for name, path in paths.items()
            if not path.is_file() or checksum_of(path, [wanted[name]]) != wanted[name]
        }

    def put(self, name: str, content: Path | bytes) -> None:
        """See `Place.put`."""
        path = self.folder / name
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        remove_partials(path.parent, path.name)
        with replacing(path) as partial:
            if isinstance(content, bytes):
                partial.write_bytes(content)
            else:
                shutil.copyfile(content, partial)
            with partial.open("rb+") as stream:
                os.fsync(stream.fileno())

    def delete(self, names: Sequence[str]) -> None:
        """See `Place.delete`; a folder that is empty then goes too."""
        for name in names:
            (self.folder / name).unlink(missing_ok=True)
        for parent in {(self.folder / name).parent for name in names} - {self.folder}:
            if parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()


class StorePlace:
    """A folder of an object store. Large files go in parts, several at a time."""

    def __init__(self, path: str) -> None:
        root, prefix = split_store(path)
        self._prefix = prefix.strip("/")
        self.named = f"{root}/{self._prefix}".rstrip("/")
        self._store = store_to_write(root)

    def address(self, name: str) -> str:
        """See `Place.address`."""
        return f"{self.named}/{name}"

    def _key(self, name: str) -> str:
        return f"{self._prefix}/{name}" if self._prefix else name

    def sizes(self) -> dict[str, int]:
        """See `Place.sizes`."""
        return {name: told["size"] for name, told in self._listed().items()}

    def tags(self) -> dict[str, str]:
        """See `Place.tags`."""
        tags = {name: told["e_tag"] for name, told in self._listed().items()}
        return {name: tag for name, tag in tags.items() if tag is not None}

    def unlike(self, wanted: Mapping[str, Checksum], *, tags: Mapping[str, str]) -> set[str]:
        """See `Place.unlike`."""
        there = self._listed()
        return {
            name
            for name, (size, _) in wanted.items()
            if name not in there
            or there[name]["size"] != size
            or there[name]["e_tag"] != tags.get(name, there[name]["e_tag"])
        }

    def _listed(self) -> dict[str, Any]:
        import obstore

        pages = self._patiently(lambda: list(obstore.list(self._store, self._prefix or None)))
        skip = len(self._key(""))
        return {each["path"][skip:]: each for page in pages for each in page}

    def put(self, name: str, content: Path | bytes) -> None:
        """See `Place.put`."""
        import obstore

        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        part = max(_PART, -(-size // _MOST_PARTS))
        key = self._key(name)
        self._patiently(
            lambda: obstore.put(
                self._store, key, content, chunk_size=part, max_concurrency=_AT_ONCE
            )
        )

    def delete(self, names: Sequence[str]) -> None:
        """See `Place.delete`."""
        import obstore

        if not names:
            return

        def attempt() -> None:
            try:
                obstore.delete(self._store, [self._key(name) for name in names])
            except FileNotFoundError:  # some stores say so of what is gone; what is there goes
                for name in names:
                    self._delete_one(name)

        self._patiently(attempt)

    def _delete_one(self, name: str) -> None:
        import obstore

        try:
            obstore.delete(self._store, self._key(name))
        except FileNotFoundError:
            return

    def _patiently(self, attempt: Callable[[], ReturnT]) -> ReturnT:
        return patiently(lambda: told(self.named, attempt), seconds=patience())


def _refuse_all_but_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error
