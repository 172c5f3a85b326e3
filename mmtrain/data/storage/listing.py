"""What an object store holds of a folder or a glob."""

import fnmatch
import posixpath
import re

from mmtrain.data.storage.addresses import base_name, is_hub, is_web, split_store
from mmtrain.data.storage.hidden_names import is_hidden
from mmtrain.data.storage.hub import names_below, pinned
from mmtrain.data.storage.remote import told
from mmtrain.data.storage.stores import store_of
from mmtrain.errors import UsageError

_MAGIC = re.compile(r"[*?\[]")


def list_remote(path: str, *, key: str) -> list[str]:
    """The files that a remote path, folder (its *.tar) or glob stands for; sorted.

    A path of one file is not looked up: opening it tells what is wrong. Those of a hub's data set
    are of the commit that it is at now.

    Args:
        path: without braces.
        key: the setting that it comes from, for messages.

    Raises:
        OSError: the store cannot be asked, with an errno as a local folder's.
        UsageError: a web server has no listing.
    """
    if is_web(path):
        _refuse_web_listing(path, key)
        return [path]
    if is_hub(path):
        path = pinned(path)
    root, name = split_store(path)
    if _MAGIC.search(name):
        return _glob(root, name)
    if name.lower().endswith(".tar"):
        return [path]
    folder = name.rstrip("/")
    found = [each for each in _in_folder(root, folder) if each.lower().endswith(".tar")]
    # What a bucket holds may have no extension.
    return _named(root, found) or ([] if name.endswith("/") or not name else [path])


def _refuse_web_listing(path: str, key: str) -> None:
    before_query = path.partition("?")[0]
    if "*" in before_query or not base_name(path):
        raise UsageError(
            f"{key} = {path}: a web server has no listing; name the files, or a range such as "
            "https://host/{00000..00099}.tar"
        )


def _glob(root: str, pattern: str) -> list[str]:
    folder = posixpath.dirname(pattern[: _MAGIC.search(pattern + "*").start()])  # pyright: ignore
    is_flat = posixpath.dirname(pattern) == folder and "**" not in pattern
    names = _in_folder(root, folder) if is_flat else _below(root, folder)
    wanted = pattern.split("/")
    return _named(root, [name for name in names if _fits(name.split("/"), wanted)], below=folder)


def _fits(parts: list[str], wanted: list[str]) -> bool:
    """Whether a name's parts match a glob's, of which `**` stands for any number."""
    if not wanted:
        return not parts
    if wanted[0] == "**":
        return any(_fits(parts[i:], wanted[1:]) for i in range(len(parts) + 1))
    fits = bool(parts) and fnmatch.fnmatchcase(parts[0], wanted[0])
    return fits and _fits(parts[1:], wanted[1:])


def _in_folder(root: str, folder: str) -> list[str]:
    if is_hub(root):
        return names_below(root, folder, deep=False)
    import obstore

    store, _ = store_of(f"{root}/")
    listed = told(root, lambda: obstore.list_with_delimiter(store, folder or None))
    return [each["path"] for each in listed["objects"]]


def _below(root: str, folder: str) -> list[str]:
    if is_hub(root):
        return names_below(root, folder, deep=True)
    import obstore

    store, _ = store_of(f"{root}/")
    pages = told(root, lambda: list(obstore.list(store, folder or None)))
    return [each["path"] for page in pages for each in page]


def _named(root: str, names: list[str], *, below: str = "") -> list[str]:
    return sorted(f"{root}/{name}" for name in names if not is_hidden(name.removeprefix(below)))
