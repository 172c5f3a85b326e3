"""The part of the page that needs the model: RUN/look/, made where it is missing or out of date."""

import json
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mmtrain.data.sources.source import SampleSource
from mmtrain.errors import UsageError
from mmtrain.eval.captions import ReadCaptions
from mmtrain.eval.classify.classification import ReadClass
from mmtrain.eval.classify.layouts import open_labelled
from mmtrain.eval.encode import Encoder
from mmtrain.eval.look.files import LOOK_FILE, write_look
from mmtrain.eval.look.look import look_at
from mmtrain.eval.samples import Members, open_source
from mmtrain.eval.scheduled import RetrievalConfig, ZeroShotConfig
from mmtrain.loading import CONFIG_FILE, WEIGHTS_FILE, load
from mmtrain.report.look_page import read_look
from mmtrain.report.run_folder import LOOK_DIR
from mmtrain.settings.paths import expand_paths

_FORMAT = 1
"""Raised when a page needs what an older look has not."""


@dataclass(frozen=True, kw_only=True)
class ReadName:
    """Sample -> the name of its class."""

    read_class: ReadClass
    names: tuple[str, ...]

    def __call__(self, members: Members) -> str:
        """Raises SampleError when the sample has no class."""
        return self.names[self.read_class(members)]


@dataclass(frozen=True, kw_only=True)
class FirstCaption:
    """Sample -> the first of its captions."""

    read_captions: ReadCaptions

    def __call__(self, members: Members) -> str:
        """Raises SampleError when the sample has no caption."""
        return self.read_captions(members)[0]


def update_look(run: Path, *, encoder: Encoder | None = None) -> str | None:
    """Make RUN/look/ anew if it is of other weights or data -> why the page has none, or None.

    Args:
        run: a run folder.
        encoder: the model that export/ holds, and how to run it on this process alone; None: it is
            loaded where it is needed.
    """
    evaluation = _first_evaluation(run / "recipe.toml")
    if evaluation is None and _answers_questions(run / "recipe.toml"):
        return None
    if evaluation is None:
        return "The recipe names no held-out data ([[eval.retrieval]] or [[eval.zero_shot]])."
    weights = _weights_hash(run)
    if weights is None:
        return "The run has no export/ yet; it comes when the training ends."
    told = {"format": _FORMAT, "weights": weights, "evaluation": evaluation}
    # One that lacks a picture is made again too.
    if _is_current(run / LOOK_DIR / LOOK_FILE, told) and read_look(run / LOOK_DIR, []):
        return None
    try:
        source, read_text, names = _open(evaluation)
        encoder = _load_encoder(run) if encoder is None else encoder
        look = look_at(encoder, source=source, read_text=read_text, names=names)
        write_look(run / LOOK_DIR, look, told=told)
    except (OSError, UsageError) as error:
        return f"{error}."
    return None


def _first_evaluation(recipe: Path) -> dict[str, Any] | None:
    """The recipe's first retrieval, which has captions, or else its first zero-shot evaluation."""
    try:
        sections = tomllib.loads(recipe.read_text(encoding="utf-8"))["eval"]
        for kind, config in (("retrieval", RetrievalConfig), ("zero_shot", ZeroShotConfig)):
            for one in sections.get(kind, []):
                one = expand_paths(config, one)
                return {**one, "kind": kind, "name": str(one["name"]), "data": one["data"]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass  # what a damaged recipe is lacking, the page tells elsewhere
    return None


def _answers_questions(recipe: Path) -> bool:
    """Such a run has its maps among the pictures of its evaluations."""
    try:
        return "vqa" in tomllib.loads(recipe.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False


def _weights_hash(run: Path) -> str | None:
    try:
        config = json.loads((run / "export" / CONFIG_FILE).read_text(encoding="utf-8"))
        return str(config["sha256"][WEIGHTS_FILE])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _is_current(path: Path, told: dict[str, Any]) -> bool:
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        return {key: held.get(key) for key in told} == told
    except (OSError, ValueError, AttributeError):
        return False


def _open(
    evaluation: dict[str, Any],
) -> tuple[SampleSource, ReadName | FirstCaption, tuple[str, ...]]:
    """An evaluation's data, what reads the text of a sample, and the fields that it looks at."""
    data = evaluation["data"]
    data = data if isinstance(data, str) else tuple(data)
    image_key = {name: evaluation[name] for name in ("image_key",) if name in evaluation}
    if evaluation["kind"] == "retrieval":
        fields = tuple(evaluation.get("captions", ("txt",)))
        captions = ReadCaptions(fields=fields, lines=evaluation.get("caption_lines"))
        source = open_source(data, **image_key)
        return source, FirstCaption(read_captions=captions), fields
    inputs = open_labelled(
        {"data": data},
        classes=evaluation.get("classes"),
        label_key=evaluation.get("label_key"),
        **image_key,
    )
    known = inputs.classes
    number = {id: place for place, id in enumerate(known.ids)}
    read_class = ReadClass(label_key=inputs.label_key, number=number)
    read_name = ReadName(read_class=read_class, names=known.names)
    return inputs.sources["data"], read_name, (inputs.label_key,)


def _load_encoder(run: Path) -> Encoder:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, preprocess, tokenizer = load(run / "export", device)
    return Encoder(model=model, tokenizer=tokenizer, preprocess=preprocess.config, device=device)
