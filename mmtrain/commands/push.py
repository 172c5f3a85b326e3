"""`mmtrain push`: a model with its card, into a repository of Hugging Face's hub."""

import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import mmtrain
from mmtrain.data.storage.hub_client import ask, hub_api, hub_endpoint, hub_is_off, hub_token
from mmtrain.errors import UsageError
from mmtrain.files import replace_file
from mmtrain.interop.forms import OURS
from mmtrain.loading import export_model, read_package
from mmtrain.loading.hub_address import repository_in
from mmtrain.loading.hub_models import model_folder
from mmtrain.loading.vqa import is_vqa_folder, load_vqa
from mmtrain.report.model_card import CardFacts, model_card
from mmtrain.report.run_folder import is_run, read_run
from mmtrain.report.summary import count, summarize
from mmtrain.settings.paths import new_folder

ReturnT = TypeVar("ReturnT")
CARD = "README.md"
_LICENCE = re.compile(r"[a-z0-9][a-z0-9.-]*")
_OF_THE_HUB = {".gitattributes"}
"""What every repository has."""


@dataclass(frozen=True, kw_only=True)
class PushOptions:
    """What is pushed, and where to."""

    model: str
    """What `load` takes."""
    repository: str
    """`hf://OWNER/NAME`."""
    form: str | None
    """Of its files. None: open_clip's, or ours of a model that answers."""
    licence: str | None
    """As the hub names it."""
    private: bool
    """Whether a new repository is for its owner alone."""
    overwrite: bool
    """Whether files of a repository may be replaced."""
    out: Path | None
    """Where the folder is written instead of being uploaded."""
    architecture: str | None
    """As `load`."""


def push_command(options: PushOptions) -> None:
    """Write the model and its card; upload them, unless `out` says where they stay.

    Raises:
        UsageError: a word is wrong, the model cannot be read or written in the form, there is no
            token, or the repository has files already.
    """
    repository = repository_in(options.repository, key="REPOSITORY")
    if options.licence is not None and not _LICENCE.fullmatch(options.licence):
        raise UsageError(
            f"--license = {options.licence} is no name that the hub has of a licence; write it as "
            "apache-2.0, mit, cc-by-4.0 or other"
        )
    if options.out is not None:
        for name in ("private", "overwrite"):
            if getattr(options, name):
                raise UsageError(f"--{name} has no effect with --out, which uploads nothing")
        with new_folder(options.out) as folder:
            _write(options, repository, folder)
        print(f"wrote {options.out}; nothing was uploaded")
        return
    there = _look(options, repository)
    with tempfile.TemporaryDirectory() as folder:
        _write(options, repository, Path(folder) / "model")
        _upload(options, repository, Path(folder) / "model", there=there)


def _write(options: PushOptions, repository: str, folder: Path) -> None:
    """The model in its form, and its card."""
    path = model_folder(options.model, key="model")
    answers = is_vqa_folder(path)
    form = options.form or (OURS if answers else "open-clip")
    for line in export_model(path, out=folder, form=form, architecture=options.architecture):
        print(f"tokenizer: {line}")
    if answers:
        model = load_vqa(path).model
        num_parameters, image_size = count(model), model.clip.vision.image_size
    else:
        config = read_package(path, architecture=options.architecture).config
        num_parameters, image_size = summarize(config).num_parameters, config.vision.image_size
    facts = CardFacts(
        repository=repository,
        form=form,
        answers=answers,
        num_parameters=num_parameters,
        image_size=image_size,
        licence=options.licence,
    )
    run = read_run(path) if is_run(path) else None
    for note in () if run is None else run.notes:
        print(f"results: {note}")
    replace_file(folder / CARD, model_card(facts, run))


def _look(options: PushOptions, repository: str) -> Sequence[str] | None:
    """Before anything is computed: the files that the repository has; None: there is none.

    Raises:
        UsageError: there is no token, or they may not be replaced.
    """
    address = options.repository
    if _asked(address, hub_token) is None:
        raise UsageError(
            f"REPOSITORY = {address}: there is no token to upload with; set HF_TOKEN to one that "
            "may write, or log in by `hf auth login`; --out DIR uploads nothing"
        )
    if not _asked(address, lambda: hub_api().repo_exists(repository)):
        return None
    info = _asked(address, lambda: hub_api().model_info(repository))
    if options.private and not info.private:
        raise UsageError(
            f"--private has no effect on {address}, which is there and public; make it private on "
            "its page, and leave --private out"
        )
    names = {one.rfilename for one in info.siblings or ()} - _OF_THE_HUB
    if names and not options.overwrite:
        raise UsageError(
            f"REPOSITORY = {address} has {len(names)} files already ({', '.join(sorted(names)[:3])}"
            f"{' ...' if len(names) > 3 else ''}); with --overwrite those of the same names are "
            "replaced by a new commit"
        )
    return sorted(names)


def _upload(
    options: PushOptions, repository: str, folder: Path, *, there: Sequence[str] | None
) -> None:
    api, address = hub_api(), options.repository
    ours = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    if there is None:
        _asked(address, lambda: api.create_repo(repository, private=options.private, exist_ok=True))
    message = f"Push a model of mmtrain {mmtrain.__version__}"
    commit = _asked(
        address,
        lambda: api.upload_folder(repo_id=repository, folder_path=folder, commit_message=message),
    )
    if there:
        replaced = [name for name in there if name in ours]
        kept = [name for name in there if name not in ours]
        print(f"replaced: {', '.join(replaced) or 'nothing'}; kept: {', '.join(kept) or 'nothing'}")
    print(f"pushed {hub_endpoint()}/{repository} at commit {commit.oid}")


def _asked(address: str, attempt: Callable[[], ReturnT]) -> ReturnT:
    """What the hub answers.

    Raises:
        UsageError: it refuses, or cannot be reached.
    """
    if hub_is_off():
        raise UsageError(
            f"REPOSITORY = {address}: HF_HUB_OFFLINE is set, so nothing is uploaded; unset it, or "
            "write the folder by --out DIR"
        )
    try:
        return ask(address, attempt, what="model")
    except OSError as error:
        raise UsageError(
            f"REPOSITORY = {address}: {error.strerror}; --out DIR writes the folder and uploads "
            "nothing"
        ) from error
