"""Hugging Face's hub, or another that HF_ENDPOINT names, asked through huggingface_hub.

HF_ENDPOINT, HF_TOKEN, HF_HOME and HF_HUB_OFFLINE mean what they do for the hub's own tools. They
are read when they are needed: huggingface_hub itself reads them once, where it is imported.
"""

import errno
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from mmtrain.errors import UsageError

if TYPE_CHECKING:
    from huggingface_hub import HfApi

COMMIT = re.compile(r"[0-9a-f]{40}")
"""A commit, as the hub writes it."""
ReturnT = TypeVar("ReturnT")


def hub_api() -> "HfApi":
    """The hub's client, which tells the token to nobody else."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    return HfApi(endpoint=hub_endpoint(), token=hub_token() or False)


def hub_endpoint() -> str:
    """The hub's address."""
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def hub_token() -> str | None:
    """What opens private repositories; None: nobody has logged in."""
    from huggingface_hub import get_token

    return get_token()


def hub_is_off() -> bool:
    """Whether HF_HUB_OFFLINE forbids to fetch."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def hub_cache() -> Path:
    """Where the hub's tools keep what they fetched."""
    if given := os.environ.get("HF_HUB_CACHE"):
        return Path(given).expanduser()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return Path(os.environ.get("HF_HOME") or cache / "huggingface").expanduser() / "hub"


def ask(root: str, attempt: Callable[[], ReturnT], *, what: str) -> ReturnT:
    """What `attempt` returns; what the hub says instead as the OSError of a local folder.

    Args:
        root: the address, for messages.
        attempt: asks the hub.
        what: the repository is, for messages.

    Raises:
        OSError: the hub refuses or cannot be reached, with an errno as a local folder's.
        UsageError: fetching is off, or the hub's client is not installed.
    """
    try:
        from huggingface_hub import errors
    except ImportError as error:
        raise UsageError(
            f'{root}: hf:// needs huggingface_hub; run: pip install "mmtrain[remote]"'
        ) from error
    if hub_is_off():
        raise UsageError(
            f"{root}: HF_HUB_OFFLINE is set, so nothing is fetched; unset it, or copy the files "
            "here and name their folder"
        )
    # What its client raises where nobody answers.
    no_answer = errors.HTTPError  # pyright: ignore[reportPrivateImportUsage]
    try:
        return attempt()
    except (OSError, no_answer, errors.HFValidationError) as error:
        number, reason = _reason(error, what)
        raise OSError(number, reason, root) from error


def _reason(error: Exception, what: str) -> tuple[int, str]:
    """An errno and why, in words; never the library's own, which hold addresses and headers."""
    kind = type(error).__name__
    status = getattr(getattr(error, "response", None), "status_code", None)
    if kind == "HFValidationError":
        return errno.EINVAL, f"that is no name of a {what}"
    if kind == "GatedRepoError":
        return errno.EACCES, "it is gated; ask for access on its page, then set HF_TOKEN"
    if kind == "RevisionNotFoundError":
        return errno.ENOENT, "it has no such revision"
    if kind == "RepositoryNotFoundError":
        return errno.ENOENT, f"there is no such {what}, or it is private: then set HF_TOKEN"
    if status in (401, 403):
        return errno.EACCES, f"the hub denies it ({status}); check HF_TOKEN"
    if status == 404:
        return errno.ENOENT, "it has no such folder"
    if status in (429, 503):
        return errno.EBUSY, f"the hub is busy ({status})"
    if status is not None:
        return errno.EIO, f"the hub answers {status}"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EROFS, errno.EDQUOT):
        return error.errno, os.strerror(error.errno)
    return errno.ECONNREFUSED, "the hub cannot be reached"
