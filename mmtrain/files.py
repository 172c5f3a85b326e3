"""Files that are there whole or not at all, and whose names are in the error where they are not."""

import errno
import hashlib
import json
import os
import re
import shutil
import socket
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError

_T = TypeVar("_T")
_HOST = re.sub(r"[^\w-]", "-", socket.gethostname())
_LEFT = re.compile(rf"\.(.+)\.{_HOST}\.([0-9]{{1,9}})\.(?:[0-9a-f]+\.)?partial")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Name `path` in the error of a write: a full disk tells Python no name, and safetensors wraps
    the system's number into its own error.

    Raises:
        OSError: as it came, with a file's name.
    """
    try:
        yield
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error


def parse_json(text: str | bytes) -> Any:
    """`json.loads`, whose one error is a ValueError, however deep the text nests."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it nests too deep") from error


def read_numpys(read: Callable[[], _T]) -> _T:
    """What `read` makes of a file of numpy's, whose header Python's own compiler parses.

    That may end in a SystemError where threads use it at once, seen once with CPython 3.11.7
    (https://github.com/python/cpython/issues/106905): then it is read again.
    """
    for _ in range(4):
        try:
            return read()
        except SystemError:
            continue
    return read()


def text_lines(text: str) -> list[str]:
    """The lines of a text, which end at line feeds alone (a Windows one's carriage return goes);
    what follows the last one is none."""
    text = text.rstrip()
    return [line.removesuffix("\r") for line in text.split("\n")] if text else []


def real_path(path: Path | str) -> Path:
    """`Path.resolve`, which before Python 3.13 lets a RuntimeError out of links in a circle."""
    return Path(os.path.realpath(path))


def sha256_of(path: Path) -> str:
    """The hash of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def replace_file(path: Path, content: str | bytes) -> None:
    """Write `content` to `path` so that a reader, or a kill, meets the old file or the new one.

    What is no file, such as /dev/null or a pipe, is written into: root would replace it for all.
    A text from a .json may hold half a character, which UTF-8 cannot write: it becomes a "?".
    """
    data = content.encode("utf-8", "replace") if isinstance(content, str) else content
    if path.is_char_device() or path.is_fifo() or path.is_socket():
        with writing(path):
            path.write_bytes(data)
        return
    with replacing(path) as partial:
        partial.write_bytes(data)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Within the context a file beside `path` is written, which then takes its place, or is gone.

    Its name is each writer's own: another process may be writing the same file, and of two that
    share one, one would find it gone, or both be in it.

    Raises:
        OSError: as of a write to `path`.
    """
    partial = _partial(path)
    with writing(path):
        try:
            yield partial
            os.replace(partial, path)
        except BaseException as error:
            partial.unlink(missing_ok=True)
            if isinstance(error, OSError) and str(error.filename) == str(partial):
                raise OSError(error.errno, error.strerror, str(path)) from error
            raise


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Within the context a hidden folder is written, which then is `path`, or is gone.

    A new folder gets its name at once. In one that is there, files of the same names are replaced
    one by one, those that are no .json first: configs come last.

    Raises:
        FileExistsError: naming `path`, which was not there, or empty: another process has filled it
            meanwhile.
        OSError: as of a write to `path`.
    """
    is_there, is_filled = path.exists(), path.is_dir() and any(path.iterdir())
    # A folder that is there may be a disk's own, and no other's can be renamed into it.
    place = next(each for each in (path, *path.absolute().parents) if each.exists())
    name = path.absolute().name  # of "." too
    partial = _partial(place / name)
    with writing(path):
        try:
            remove_partials(place, name)
            partial.mkdir()
            yield partial
            if is_there:
                _replace_files(partial, path, fills=not is_filled)
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                _name_folder(partial, path)
        except OSError as error:
            if error.filename is None or not str(error.filename).startswith(str(partial)):
                raise
            raise OSError(error.errno, error.strerror, str(path)) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _name_folder(partial: Path, path: Path) -> None:
    try:
        os.rename(partial, path)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from error


def _replace_files(partial: Path, path: Path, *, fills: bool) -> None:
    if fills and any(each.name != partial.name for each in path.iterdir()):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    files = [each for each in partial.rglob("*") if each.is_file()]
    for each in sorted(files, key=lambda file: (file.suffix == ".json", file)):
        target = path / each.relative_to(partial)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(each, target)


def _partial(path: Path) -> Path:
    """A hidden name beside `path`, which says who writes it."""
    own = f"{_HOST}.{os.getpid()}.{uuid.uuid4().hex[:12]}"
    return path.with_name(f".{path.name}.{own}.partial")


def remove_partials(folder: Path, name: str | None = None) -> None:
    """Remove what processes of this machine that were killed left in a folder of what they wrote
    as `name`; None: as anything. A look for every small file would cost more than what they leave.
    """
    for path in folder.glob(f".*.{_HOST}.*.partial"):
        left = _LEFT.fullmatch(path.name)
        if left and name in (None, left[1]) and not _is_alive(int(left[2])):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def create_file(path: Path, content: str) -> None:
    """Write `path` whole, unless it is there: of processes that do so at once, one does.

    Raises:
        OSError: it cannot be written.
    """
    partial = _partial(path)
    with writing(path):
        try:
            partial.write_text(content, encoding="utf-8")
            try:
                os.link(partial, path)
            except FileExistsError:
                pass
            except OSError:  # a disk that has no links
                if not path.exists():
                    os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


def other_files(folder: Path, begun: str) -> set[str]:
    """The names in a folder, without what another process is about to make `begun` of."""
    names = (path.name for path in folder.iterdir())
    return {name for name in names if not name.startswith(f".{begun}.")}


def save_tensors(path: Path, tensors: Mapping[str, Any]) -> None:
    """Write a safetensors file, marked as PyTorch's."""
    # torch, which those who write a text only need not wait for
    from safetensors.torch import save_file

    with writing(path):
        save_file(dict(tensors), path, metadata={"format": "pt"})
