"""`mmtrain serve`: load a model, look at what can be searched, and serve the page of its kind."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from mmtrain.errors import UsageError
from mmtrain.eval.encode import Encoder
from mmtrain.eval.questions.answerer import Answerer
from mmtrain.files import real_path
from mmtrain.interop.model_kind import kind_of
from mmtrain.loading import load
from mmtrain.loading.hub_address import parse_address
from mmtrain.loading.hub_models import model_folder
from mmtrain.loading.vqa import load_vqa, refuse_architecture
from mmtrain.parallel.mesh import pick_device
from mmtrain.serve.server import listen, need_packages, serve_until_interrupted
from mmtrain.settings.counted import counted

if TYPE_CHECKING:
    from starlette.types import ASGIApp

_BATCH_SIZE = 32
"""Not the size that evaluations fill up to: one query is one row."""


def serve_command(
    *,
    model: Path | str,
    index: tuple[str, ...],
    host: str,
    port: int,
    device: str,
    architecture: str | None = None,
) -> None:
    """Serve until interrupted.

    Args:
        model: what `mmtrain.load` takes, or one that answers questions.
        index: a folder that `mmtrain embed` wrote, or shards, embedded now; empty: no search.
        host: a name or address of this machine.
        port: 0 takes one that is free.
        device: cpu, cuda, cuda:1 or auto.
        architecture: of a weights' file of which nothing says it.

    Raises:
        UsageError: the extra is not installed, the port is taken, or the model or the images cannot
            be read.
    """
    need_packages("serve")
    path, name = model_folder(model, key="model"), _name(model)
    answers = kind_of(path) == "vqa"
    if answers:
        _refuse_for_questions(path, index, architecture)
    listener = listen(host, port)  # first: embedding takes minutes, a taken port none
    with listener:
        where = pick_device(device, key="device")
        if answers:
            app, told = _asking(path, where, name=name, host=host), "; ask it about an image"
        else:
            app, told = _searching(
                path, index, where, architecture=architecture, name=name, host=host
            )
        serve_until_interrupted(app, listener, host=host, told=f"{name}{told}")


def _refuse_for_questions(model: Path, index: tuple[str, ...], architecture: str | None) -> None:
    """What only a CLIP has."""
    refuse_architecture(model, architecture)
    if index:
        raise UsageError(
            f"index = {' '.join(index)}: {model} answers questions and has no feature of a text to "
            "search images by; leave --index away"
        )


def _asking(model: Path, device: torch.device, *, name: str, host: str) -> "ASGIApp":
    """The page of a model that answers questions."""
    from mmtrain.serve.questions import Questions
    from mmtrain.serve.questions_app import build_app

    saved = load_vqa(model, device)
    answerer = Answerer(
        model=saved.model,
        tokenizer=saved.tokenizer,
        preprocess=saved.preprocess,
        vocabulary=saved.vocabulary,
        answer_length=saved.answer_length,
        device=device,
    )
    return build_app(Questions(answerer, name=name), host=host)


def _searching(
    model: Path,
    index: tuple[str, ...],
    device: torch.device,
    *,
    architecture: str | None,
    name: str,
    host: str,
) -> "tuple[ASGIApp, str]":
    """The page of a CLIP, and how many images it searches."""
    from mmtrain.serve.answers import Answers
    from mmtrain.serve.app import build_app
    from mmtrain.serve.index import open_index

    clip, preprocess, tokenizer = load(model, device, architecture=architecture)
    encoder = Encoder(
        model=clip,
        tokenizer=tokenizer,
        preprocess=preprocess.config,
        device=next(clip.parameters()).device,
        batch_size=_BATCH_SIZE,
    )
    images = open_index(encoder, index) if index else None
    searched = f"; {counted(images.num_images, 'image')} to search" if images else ""
    app = build_app(Answers(clip, encoder, name=name, index=images), host=host)
    return app, searched


def _name(model: Path | str) -> str:
    """The run's or the folder's own name, or the address of what was fetched."""
    if isinstance(model, str) and parse_address(model, key="model") is not None:
        return model
    path = real_path(Path(model))
    return path.parent.name if path.name == "export" else path.name
