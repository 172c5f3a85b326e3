"""Data sets on Hugging Face's hub: `hf://datasets/OWNER/NAME[@REVISION]/PATH`.

The hub is asked by huggingface_hub, and only where a path is written so: what a data set holds, and
which commit a branch is at now. Files are then read of that commit by ranges, as from any web
server. HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE mean what they do for the hub's own tools.
"""

import re
from urllib.parse import quote, unquote

from mmtrain.data.storage.addresses import split_store
from mmtrain.data.storage.hub_client import COMMIT, ask, hub_api, hub_endpoint, hub_token
from mmtrain.errors import UsageError

_FORM = re.compile(r"hf://datasets/([^/@]+/[^/@]+)(?:@([^/]+))?")
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

    def names() -> list[str]:
        found = hub_api().list_repo_tree(
            repo, folder or None, recursive=deep, revision=revision, repo_type="dataset"
        )
        return [each.path for each in found if hasattr(each, "size")]

    return ask(root, names, what="data set")


def web_address(path: str) -> tuple[str, str | None]:
    """Where a file is fetched from, and the token that opens it."""
    root, name = split_store(path)
    repo, revision = _repo_of(root)
    where = f"{hub_endpoint()}/datasets/{repo}/resolve/{quote(revision, safe='')}/{quote(name)}"
    return where, hub_token()


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
        is_commit = COMMIT.fullmatch(revision) is not None
        COMMITS[root] = revision if is_commit else _ask_commit(root, repo, revision)
    return COMMITS[root]


def _ask_commit(root: str, repo: str, revision: str) -> str:
    told = ask(root, lambda: hub_api().dataset_info(repo, revision=revision), what="data set")
    return told.sha or revision
