"""Models of Hugging Face's hub, fetched where a path names one and never otherwise.

A branch or tag is asked for once in a process, and its commit stands in every record. Files go into
the cache that the hub's own tools share; of a repository only what our readers read is fetched, and
no pickle.
"""

import glob
import os
import re
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mmtrain.data.storage.hub_client import COMMIT, ask, hub_api, hub_cache, hub_is_off
from mmtrain.errors import UsageError
from mmtrain.files import replace_file
from mmtrain.loading.hub_address import HubModel, parse_address

PINNED: dict[str, str] = {}
"""What this process reads: `hf://OWNER/NAME@COMMIT` by the address that was written without one."""

_OPEN_CLIP = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors")
_WEIGHTS = "model.safetensors"
_PART = re.compile(r"model-\d+-of-\d+\.safetensors")
_ADAPTER = "adapter_model.safetensors"
_PICKLE = re.compile(r".*\.(bin|pt|pth|ckpt|pkl)")
_TEXTS = re.compile(r"(decoder/)?[^/]+\.(json|jinja|model)|vocab\.txt|merges\.txt")
"""Configs and tokenizers; in decoder/, what a model of ours that answers keeps of its decoder."""
_NO_ANSWER = "the hub cannot be reached"


@dataclass(frozen=True, kw_only=True)
class _File:
    """One of a repository."""

    name: str
    """Its path in it."""
    size: int
    """In bytes."""


def pinned(text: str, *, key: str, known: Mapping[str, str] | None = None) -> str:
    """The address of the commit that an address stands for now; a path of this machine as it is.

    Args:
        text: `hf://OWNER/NAME[@REVISION]`, `open_clip:NAME/TAG` or a path.
        key: the option or key that it came from, for messages.
        known: what a run that goes on was told of its addresses, which stays true for it.

    Raises:
        UsageError: there is no such model, or the hub cannot be asked.
    """
    model = parse_address(text, key=key)
    if model is None:
        return text
    if COMMIT.fullmatch(model.revision):
        return text
    if text not in PINNED:
        was = (known or {}).get(text)
        PINNED[text] = was or f"hf://{model.repository}@{_commit(model, text, key)}"
    return PINNED[text]


def model_folder(path: Path | str, *, key: str, tower: bool = False) -> Path:
    """The folder of a model that a user names by a path or, as a text, by an address of the hub.

    Args:
        path: a path is returned as it is.
        key: the option or key that it came from, for messages.
        tower: timm's image tower is wanted, where a repository holds a CLIP too.

    Raises:
        UsageError: as `pinned`, or the repository holds nothing that we read.
    """
    if isinstance(path, Path):
        return path
    model = parse_address(pinned(path, key=key), key=key)
    return Path(path) if model is None else _fetch(model, path, key=key, tower=tower)


def _commit(model: HubModel, text: str, key: str) -> str:
    repository, revision = model.repository, model.revision
    try:
        found = ask(text, lambda: hub_api().model_info(repository, revision=revision), what="model")
    except (OSError, UsageError) as error:
        ref = _cached(model) / "refs" / revision
        if not _is_unheard(error) or not ref.is_file():
            raise _told(error, model, text, key) from error
        commit = ref.read_text(encoding="utf-8").strip()
        _say(f"{text}: {_NO_ANSWER}; it is read as it was when last fetched, at commit {commit}")
        return commit
    commit = found.sha or revision
    with suppress(OSError):  # of a cache that is only read; its ref is for when there is no hub
        ref = _cached(model) / "refs" / revision
        ref.parent.mkdir(parents=True, exist_ok=True)
        replace_file(ref, commit)
    return commit


def _fetch(model: HubModel, text: str, *, key: str, tower: bool) -> Path:
    folder = _cached(model) / "snapshots" / model.revision
    if (folder, tower) in _FETCHED:
        return folder
    try:
        files = ask(text, lambda: _list(model), what="model")
        wanted = _choose(files, f"{key} = {text}", tower=tower)
        size = sum(file.size for file in wanted) / 1e6
        told = f"{text.partition('@')[0]} is read at commit {model.revision}"
        _say(f"{told} ({size:,.1f} MB, kept in {folder})")
        ask(text, lambda: _download(model, wanted), what="model")
    except OSError as error:
        if not _is_unheard(error) or not folder.is_dir():
            raise _told(error, model, text, key) from error
    except UsageError as error:
        if not hub_is_off():
            raise
        if not folder.is_dir():
            raise _told(error, model, text, key) from error
    _FETCHED.add((folder, tower))
    return folder


_FETCHED: set[tuple[Path, bool]] = set()


def _list(model: HubModel) -> list[_File]:
    # One question, which is not asked again and again where nobody answers.
    found = hub_api().model_info(model.repository, revision=model.revision, files_metadata=True)
    return [_File(name=one.rfilename, size=one.size or 0) for one in found.siblings or ()]


def _choose(files: Iterable[_File], told: str, *, tower: bool) -> list[_File]:
    """What our readers read of a repository.

    Raises:
        UsageError: nothing, or it has its weights as a pickle alone.
    """
    by_name = {file.name: file for file in files}
    parts = [name for name in by_name if _PART.fullmatch(name)]
    own = [name for name in _OPEN_CLIP if name in by_name][:1]
    texts = [name for name in by_name if _TEXTS.fullmatch(name)]
    weights = [_WEIGHTS] if _WEIGHTS in by_name else parts
    if tower:
        texts = [name for name in texts if name == "config.json"]
    elif "open_clip_config.json" in by_name and (own or "config.json" not in by_name):
        weights = own or weights
    else:  # in transformers' form, or ours
        texts = [name for name in texts if name != "open_clip_config.json"]
        weights = weights or [name for name in (_ADAPTER,) if name in by_name]
    if texts and weights:
        return [by_name[name] for name in (*texts, *weights)]
    if pickle := next((name for name in by_name if _PICKLE.fullmatch(name)), None):
        raise UsageError(
            f"{told} has its weights in {pickle} alone, a pickle, which is not fetched; download "
            "it yourself into a folder with the other files and name that"
        )
    raise UsageError(
        f"{told} holds no model that is read (a config.json or open_clip_config.json, and weights "
        "in .safetensors)"
    )


def _download(model: HubModel, wanted: Iterable[_File]) -> None:
    hub_api().snapshot_download(
        model.repository,
        revision=model.revision,
        cache_dir=hub_cache(),
        allow_patterns=[glob.escape(file.name) for file in wanted],
    )


def _cached(model: HubModel) -> Path:
    """Where the hub's tools keep a repository."""
    return hub_cache() / f"models--{model.repository.replace('/', '--')}"


def _is_unheard(error: Exception) -> bool:
    """Whether nobody was asked or nobody answered, so that what was fetched before may be taken."""
    return hub_is_off() or (isinstance(error, OSError) and str(error.strerror) == _NO_ANSWER)


def _told(error: Exception, model: HubModel, text: str, key: str) -> UsageError:
    """The one line of a model that cannot be had, with the folder to put it in."""
    if isinstance(error, UsageError) and not hub_is_off():
        return UsageError(f"{key} = {error}")
    reason = error.strerror if isinstance(error, OSError) else "HF_HUB_OFFLINE is set"
    name = model.repository.rpartition("/")[2]
    remedy = f"put its files into a folder, such as ./{name}, and name that"
    if _is_unheard(error):
        remedy = f"copy {_cached(model)} from a machine that has fetched it, or {remedy}"
    return UsageError(f"{key} = {text}: {reason}; {remedy}")


def _say(line: str) -> None:
    if os.environ.get("RANK", "0") == "0":  # before there is a process group
        print(f"mmtrain: {line}", file=sys.stderr)
