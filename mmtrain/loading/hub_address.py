"""A model of Hugging Face's hub as it is written: `hf://OWNER/NAME`, `open_clip:NAME/TAG`."""

import re
from dataclasses import dataclass
from pathlib import Path

from mmtrain.errors import UsageError
from mmtrain.interop.open_clip_tags import open_clip_repository
from mmtrain.settings.paths import refuse_secrets

_LIKE_ONE = re.compile(r"\s*(hf|open_clip)\s*:", re.IGNORECASE)
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_REVISION = re.compile(r"[\w.-]+(/[\w.-]+)*", re.ASCII)
_HUBS_PAGE = re.compile(r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+)/?$")
_FORMS = "write hf://OWNER/NAME or hf://OWNER/NAME@REVISION"


@dataclass(frozen=True, kw_only=True)
class HubModel:
    """A repository of the hub, at one of its revisions."""

    repository: str
    """OWNER/NAME."""
    revision: str = "main"
    """A branch, a tag or a commit."""


def parse_address(text: str, *, key: str) -> HubModel | None:
    """What an address stands for; None: it is a path of this machine.

    Args:
        text: as it was written.
        key: the option or key that it came from, for messages.

    Raises:
        UsageError: it is neither, or it is both.
    """
    if not _LIKE_ONE.match(text):
        _refuse_elsewhere(text, key)
        return None
    refuse_secrets(text, key)
    is_here = Path(text).exists()
    if is_here and "://" not in text and not text.startswith("open_clip:"):
        return None  # hf:owner/name, which is no address
    found = _read_open_clip(text, key) if "open_clip" in text.lower() else _read_hub(text, key)
    if is_here:
        raise UsageError(
            f"{key} = {text} is a model of the hub, and {Path(text)} is here too; write "
            f"./{Path(text)} for that"
        )
    return found


def repository_in(text: str, *, key: str) -> str:
    """OWNER/NAME of `hf://OWNER/NAME`, which names no revision.

    Raises:
        UsageError: it has another form.
    """
    refuse_secrets(text, key)
    found = _read_hub(text, key)
    if "@" in text:
        raise UsageError(f"{key} = {text} names a revision; write hf://{found.repository}")
    return found.repository


def _read_hub(text: str, key: str) -> HubModel:
    def refuse(why: str) -> UsageError:
        return UsageError(f"{key} = {text} names no model of the hub: {why}; {_FORMS}")

    if text != text.strip() or " " in text:
        raise refuse("there is a space in it")
    if not text.startswith("hf://"):
        raise refuse("it begins otherwise than hf://")
    name, at, revision = text.removeprefix("hf://").partition("@")
    if at and not revision:
        raise refuse("no revision stands behind the @")
    if name.startswith(("datasets/", "spaces/", "kernels/")):
        raise refuse(f"these are {name.partition('/')[0]}")
    parts = name.split("/")
    if len(parts) == 1:
        raise refuse("it has no owner")
    if name.endswith("/") or revision.endswith("/"):
        raise refuse("there is a slash at its end")
    if len(parts) > 2:
        raise refuse("a model is a whole repository, not a folder or file in it")
    if not all(parts):
        raise refuse("its owner is missing")
    if not _REPOSITORY.fullmatch(name) or (at and not _REVISION.fullmatch(revision)):
        raise refuse("a name has letters, digits, _, - and . alone")
    return HubModel(repository=name, revision=revision or "main")


def _read_open_clip(text: str, key: str) -> HubModel:
    name, slash, tag = text.removeprefix("open_clip:").partition("/")
    is_whole = bool(name and slash and tag) and "/" not in tag and " " not in text
    if not text.startswith("open_clip:") or not is_whole:
        raise UsageError(
            f"{key} = {text} names no weights of open_clip's; write open_clip:NAME/TAG, such as "
            "open_clip:ViT-B-32/laion2b_s34b_b79k"
        )
    try:
        return HubModel(repository=open_clip_repository(name, tag))
    except UsageError as error:
        raise UsageError(f"{key} = {text}: {error}") from error


def _refuse_elsewhere(text: str, key: str) -> None:
    """A model in a store or on a web server would be taken for a folder of that name."""
    if "://" not in text or Path(text).exists():
        return
    refuse_secrets(text, key)
    page = _HUBS_PAGE.match(text)
    remedy = f"write hf://{page[1]}" if page else "copy it to this machine and name its folder"
    raise UsageError(
        f"{key} = {text} is no place that models are read from, which are folders and hf://; "
        f"{remedy}"
    )
