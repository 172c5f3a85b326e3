"""The part of the page that needs the model: RUN/look/, made where it is missing or out of date."""

from pathlib import Path
from typing import Any

import torch

from mmtrain.errors import UsageError
from mmtrain.eval.config import EVALUATORS
from mmtrain.eval.encode import Encoder
from mmtrain.eval.evaluators.evaluator import Texts
from mmtrain.eval.look.files import LOOK_FILE, write_look
from mmtrain.eval.look.look import look_at
from mmtrain.files import parse_json
from mmtrain.loading import CONFIG_FILE, WEIGHTS_FILE, load
from mmtrain.report.look_page import read_look
from mmtrain.report.reading import parse_recipe, read_text
from mmtrain.report.run_folder import LOOK_DIR
from mmtrain.settings.decode import decode
from mmtrain.settings.paths import expand_paths

_FORMAT = 2
"""Raised when a page needs what an older look has not."""


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
        return "The recipe names no data to evaluate on ([[eval.retrieval]] or [[eval.zero_shot]])."
    weights = _weights_hash(run)
    if weights is None:
        return "The run has no export/ yet; it comes when the training ends."
    told = {"format": _FORMAT, "weights": weights, "evaluation": evaluation}
    # One that lacks a picture is made again too.
    if _is_current(run / LOOK_DIR / LOOK_FILE, told) and read_look(run / LOOK_DIR, []):
        return None
    try:
        texts = _open(evaluation)
        encoder = _load_encoder(run) if encoder is None else encoder
        look = look_at(encoder, **texts._asdict())
        write_look(run / LOOK_DIR, look, told=told)
    except (OSError, UsageError) as error:
        return f"{error}."
    return None


def _first_evaluation(recipe: Path) -> dict[str, Any] | None:
    """The recipe's first evaluation with captions, or else the first with class names."""
    kinds = [
        (kind, config)
        for texts in ("captions", "class names")
        for kind, config in EVALUATORS.items()
        if config.texts == texts
    ]
    try:
        sections = _tables(recipe)["eval"]
        for kind, config in kinds:
            for one in sections.get(kind, []):
                one = expand_paths(config, one)
                return {**one, "kind": kind, "name": str(one["name"]), "data": one["data"]}
    except (ValueError, KeyError, TypeError, AttributeError):
        pass  # what a damaged recipe is lacking, the page tells elsewhere
    return None


def _answers_questions(recipe: Path) -> bool:
    """Such a run has its maps among the pictures of its evaluations."""
    return "vqa" in _tables(recipe)


def _tables(recipe: Path) -> dict[str, Any]:
    return parse_recipe(read_text(recipe, []))


def _weights_hash(run: Path) -> str | None:
    try:
        config = parse_json((run / "export" / CONFIG_FILE).read_text(encoding="utf-8"))
        return str(config["sha256"][WEIGHTS_FILE])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _is_current(path: Path, told: dict[str, Any]) -> bool:
    try:
        held = parse_json(path.read_text(encoding="utf-8"))
        return {key: held.get(key) for key in told} == told
    except (OSError, ValueError, AttributeError):
        return False


def _open(evaluation: dict[str, Any]) -> Texts:
    """An evaluation's images and their texts."""
    given = {key: value for key, value in evaluation.items() if key != "kind"}
    config = decode(EVALUATORS[evaluation["kind"]], given, path=f"eval.{evaluation['kind']}")
    return config.read_texts(config.open())


def _load_encoder(run: Path) -> Encoder:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, preprocess, tokenizer = load(run / "export", device)
    return Encoder(model=model, tokenizer=tokenizer, preprocess=preprocess.config, device=device)
