"""Data sets on Hugging Face's hub: `hf://datasets/OWNER/NAME[@REVISION]/PATH`.

The hub is asked by huggingface_hub, and only where a path is written so: what a data set holds, and
which commit a branch is at now. Files are then read of that commit by ranges, as from any web
server. HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE mean what they do for the hub's own tools.
"""

import errno
import os
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import quote, unquote

from mmtrain.data.storage.addresses import split_store
from mmtrain.errors import UsageError

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_FORM = re.compile(r"hf://datasets/([^/@]+/[^/@]+)(?:@([^/]+))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
ReturnT = TypeVar("ReturnT")
COMMITS: dict[str, str] = {}
"""What this process reads: the commit of each data set, by its address as it was given."""


def pinned(path: str) -> str:
    """The path with the commit in place of a branch, a tag or nothing, which is `main`.

    Every process asks once for each data set, so that what a run reads does not change under it.

    Raises:
        OSError: the hub cannot be asked, with an errno as a local folder's.
        UsageError: the path has another form, or fetching is off.
    """
    root, name = split_store(path)
    repo, revision = _repo_of(root)
    return f"hf://datasets/{repo}@{_commit(root, repo, revision)}/{name}"


def names_below(root: str, folder: str, *, deep: bool) -> list[str]:
    """Paths in the data set of the files of a folder, or of all folders in it.

    Args:
        root: the data set, `hf://datasets/owner/name@revision`.
        folder: in it; empty for its top.
        deep: whether those of its folders count.

    Raises:
        OSError, UsageError: see `pinned`.
    """
    repo, revision = _repo_of(root)

    def ask() -> list[str]:
        found = _api().list_repo_tree(
            repo, folder or None, recursive=deep, revision=revision, repo_type="dataset"
        )
        return [each.path for each in found if hasattr(each, "size")]

    return _told(root, ask)


def web_address(path: str) -> tuple[str, str | None]:
    """Where a file is fetched from, and the token that opens it."""
    root, name = split_store(path)
    repo, revision = _repo_of(root)
    where = f"{_endpoint()}/datasets/{repo}/resolve/{quote(revision, safe='')}/{quote(name)}"
    return where, _token()


def _repo_of(root: str) -> tuple[str, str]:
    match = _FORM.fullmatch(root)
    if match is None:
        raise UsageError(
            f"{root} names no data set of the hub; write hf://datasets/OWNER/NAME/PATH, or "
            "hf://datasets/OWNER/NAME@REVISION/PATH"
        )
    return match[1], unquote(match[2] or "main")


def _commit(root: str, repo: str, revision: str) -> str:
    if root not in COMMITS:
        is_commit = _COMMIT.fullmatch(revision) is not None
        COMMITS[root] = revision if is_commit else _ask_commit(root, repo, revision)
    return COMMITS[root]


def _ask_commit(root: str, repo: str, revision: str) -> str:
    told = _told(root, lambda: _api().dataset_info(repo, revision=revision))
    return told.sha or revision


def _api() -> "HfApi":
    from huggingface_hub import HfApi

    return HfApi(endpoint=_endpoint(), token=_token() or False)


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def _token() -> str | None:
    from huggingface_hub import get_token

    return get_token()


def _told(root: str, attempt: Callable[[], ReturnT]) -> ReturnT:
    """What `attempt` returns; what the hub says as the OSError that a local folder would raise."""
    try:
        from huggingface_hub import errors
    except ImportError as error:
        raise UsageError(
            f'{root}: hf:// needs huggingface_hub; run: pip install "mmtrain[remote]"'
        ) from error
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise UsageError(
            f"{root}: HF_HUB_OFFLINE is set, so nothing is fetched; unset it, or copy the files "
            "here and name their folder"
        )
    # What its client raises where nobody answers.
    no_answer = errors.HTTPError  # pyright: ignore[reportPrivateImportUsage]
    try:
        return attempt()
    except (OSError, no_answer, errors.HFValidationError) as error:
        number, reason = _reason(error)
        raise OSError(number, reason, root) from error


def _reason(error: Exception) -> tuple[int, str]:
    """An errno and why, in words; never the library's own, which hold addresses and headers."""
    kind = type(error).__name__
    status = getattr(getattr(error, "response", None), "status_code", None)
    if kind == "HFValidationError":
        return errno.EINVAL, "that is no name of a data set"
    if kind == "GatedRepoError":
        return errno.EACCES, "it is gated; ask for access on its page, then set HF_TOKEN"
    if kind == "RevisionNotFoundError":
        return errno.ENOENT, "it has no such revision"
    if kind == "RepositoryNotFoundError":
        return errno.ENOENT, "there is no such data set, or it is private: then set HF_TOKEN"
    if status in (401, 403):
        return errno.EACCES, f"the hub denies it ({status}); check HF_TOKEN"
    if status == 404:
        return errno.ENOENT, "it has no such folder"
    if status in (429, 503):
        return errno.EBUSY, f"the hub is busy ({status})"
    if status is not None:
        return errno.EIO, f"the hub answers {status}"
    return errno.ECONNREFUSED, "the hub cannot be reached"
