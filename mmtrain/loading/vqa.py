"""VQA models on disk: our directory form, as loading/models.py has it for a CLIP.

A folder holds config.json (the towers, the heads, the answers, the preprocess, a SHA-256 of the
weights), model.safetensors and the tokenizer.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from mmtrain.data.images.transforms import PreprocessConfig
from mmtrain.data.questions.answers import AnswerVocabulary
from mmtrain.data.text.tokenizer import load_tokenizer
from mmtrain.errors import UsageError
from mmtrain.files import (
    parse_json,
    remove_partials,
    replace_file,
    replacing,
    save_tensors,
    writing,
)
from mmtrain.interop.forms import DECODER as DECODER_FORM
from mmtrain.interop.forms import FORMS, OURS, graphs_of
from mmtrain.interop.hf_decoder_files import DecoderPackage, write_hf_decoder
from mmtrain.interop.model_kind import refuse_other_kind
from mmtrain.interop.package import VqaModel
from mmtrain.models import ClipConfig
from mmtrain.models.vqa import Vqa, VqaConfig
from mmtrain.settings.decode import decode, encode

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
FORMAT = "mmtrain.vqa"
DECODER = "decoder"
"""The folder with the files that the decoder began with, but for the weights."""


@dataclass(frozen=True, kw_only=True)
class SavedVqa:
    """What config.json holds."""

    format: Literal["mmtrain.vqa"] = FORMAT
    """Tells it from a CLIP's."""
    format_version: int = 1
    """Raised when an older reader would misread the folder."""
    clip: ClipConfig
    """The towers."""
    vqa: VqaConfig
    """What stands on them."""
    preprocess: PreprocessConfig
    """What an image goes through before the model."""
    answers: tuple[str, ...] = ()
    """The classifier's, in the order of its logits."""
    answer_length: int
    """Tokens of a written answer at most."""
    sha256: dict[str, str]
    """Of the weights' file."""


def save_vqa(folder: Path, saved: VqaModel) -> None:
    """Write a model that `load_vqa` reads. config.json comes last and names the weights' hash, so
    that a folder that a kill left half written is refused."""
    folder.mkdir(parents=True, exist_ok=True)
    remove_partials(folder, WEIGHTS_FILE)
    state = saved.model.state_dict()
    with replacing(folder / WEIGHTS_FILE) as partial:
        save_tensors(partial, {name: x.detach().cpu().contiguous() for name, x in state.items()})
        digest = _sha256(partial)
    saved.tokenizer.save(folder)
    write_decoder_files(folder, saved.decoder_files)
    config = SavedVqa(
        clip=saved.model.clip,
        vqa=saved.model.config,
        preprocess=saved.preprocess,
        answers=() if saved.vocabulary is None else saved.vocabulary.answers,
        answer_length=saved.answer_length,
        sha256={WEIGHTS_FILE: digest},
    )
    text = json.dumps(encode(config), indent=2, ensure_ascii=False, allow_nan=False)
    replace_file(folder / CONFIG_FILE, text + "\n")


def load_vqa(path: Path, device: str | torch.device = "cpu", *, key: str = "model") -> VqaModel:
    """The VQA model of a run folder (its export/) or of a folder that `save_vqa` wrote.

    Args:
        path: the folder.
        device: where the weights go.
        key: the option or key that the path came from, for messages.

    Raises:
        UsageError: there is none, or a file of it is missing, damaged or of another model.
    """
    refuse_other_kind(path, "vqa", key=key)
    folder = _model_folder(path)
    config = _read_config(folder, key)
    weights = folder / WEIGHTS_FILE
    if not weights.is_file() or _sha256(weights) != config.sha256.get(WEIGHTS_FILE):
        raise UsageError(
            f"{weights} is missing, damaged or of another model than {CONFIG_FILE}; export it again"
        )
    with torch.device("meta"):
        model = Vqa(config.clip, config.vqa)
    try:
        model.load_state_dict(load_file(weights), assign=True)
    except (SafetensorError, RuntimeError) as error:
        raise UsageError(f"{weights} is not of this model ({error}); export it again") from error
    return VqaModel(
        model=model.eval().to(torch.device(device)),
        tokenizer=load_tokenizer(folder),
        preprocess=config.preprocess,
        vocabulary=AnswerVocabulary(answers=config.answers) if config.answers else None,
        answer_length=config.answer_length,
        decoder_files=read_decoder_files(folder),
    )


def write_decoder_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Into a folder in `folder`; nothing where there are none."""
    for name, content in files.items():
        (folder / DECODER).mkdir(parents=True, exist_ok=True)
        replace_file(folder / DECODER / name, content)


def read_decoder_files(folder: Path) -> dict[str, bytes]:
    """What `write_decoder_files` wrote."""
    return {path.name: path.read_bytes() for path in sorted((folder / DECODER).glob("*"))}


def export_decoder(source: Path, *, out: Path) -> None:
    """Write the decoder of a model that answers as a folder in Hugging Face's form.

    Args:
        source: a run's folder or its export.
        out: a new folder.

    Raises:
        UsageError: the model writes no answers, or its decoder is none of theirs.
    """
    saved = load_vqa(source)
    if saved.model.generate is None:
        raise UsageError(f"model = {source} chooses its answers and has no decoder to write")
    decoder, files = saved.model.generate.decoder, saved.decoder_files
    began_as = parse_json(files[CONFIG_FILE])["model_type"] if CONFIG_FILE in files else None
    package = DecoderPackage(
        config=decoder.config,
        tensors=decoder.state_dict(),
        tokenizer=None,
        end_ids=(),
        family=began_as,
        files=dict(files),
    )
    try:
        with writing(out):
            write_hf_decoder(package, out)
    except UsageError as error:
        raise UsageError(
            f"the decoder of {source}: {error}; one that vqa.generate.init began can be written"
        ) from error


def export_answering(
    source: Path, *, out: Path, form: str, weights: str | None, say: Callable[[str], None]
) -> None:
    """Write a model that answers in a form that holds all of it: ours, or graphs.

    Args:
        source: a run's folder or its export.
        out: a new folder.
        form: ours, or what was asked for.
        weights: as `export_model`.
        say: told how near to torch graphs are.

    Raises:
        UsageError: another form, or the model cannot be read or be a graph.
    """
    saved = load_vqa(source)
    if form != OURS and not FORMS[form].answering:
        decoder = "" if saved.model.generate is None else f", or {DECODER_FORM}, its decoder alone"
        raise UsageError(
            f"format = {form} holds towers with their heads, and {source} answers questions: its "
            "towers end before the last norm and the projection, so that no image has a feature "
            f"beside a text's; use {OURS}, the whole model, {graphs_of('answering')}, what "
            f"computes its answers{decoder}"
        )
    with writing(out):
        if form == OURS:
            save_vqa(out, saved)
        else:
            FORMS[form].write_answering(saved, out, weights=weights, say=say)


def refuse_architecture(path: Path, architecture: str | None) -> None:
    """Of a model that says itself what it is.

    Raises:
        UsageError: one was given.
    """
    if architecture is not None:
        raise UsageError(
            f"architecture = {architecture} is for a CLIP's weights; {path} answers questions"
        )


def is_vqa_folder(path: Path) -> bool:
    """Whether a folder, or a run's export/, says that it holds a model that answers."""
    config = _model_folder(path) / CONFIG_FILE
    try:
        found = parse_json(config.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # whoever reads it says what is wrong with it
        return False
    return isinstance(found, dict) and found.get("format") == FORMAT


def _model_folder(path: Path) -> Path:
    return path / "export" if (path / "export" / CONFIG_FILE).is_file() else path


def _read_config(folder: Path, key: str) -> SavedVqa:
    path = folder / CONFIG_FILE
    if not path.is_file():
        unfinished = (folder / "recipe.toml").is_file()
        why = "has no export/ yet; a run writes it when it ends" if unfinished else "holds no model"
        raise UsageError(f"{key} = {folder} {why}; name a run with questions or its export/")
    try:
        data: Any = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {error}; export the model again") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise UsageError(
            f"{key} = {folder} answers no questions (its config.json has no format = "
            f'"{FORMAT}"); train one with a recipe that has a [vqa] section'
        )
    try:
        return decode(SavedVqa, data)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
