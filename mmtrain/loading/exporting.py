"""A model from disk, written in another form."""

from collections.abc import Callable
from itertools import count
from pathlib import Path

import torch

from mmtrain.data.text.tokenizer import Tokenizer
from mmtrain.errors import UsageError
from mmtrain.files import writing
from mmtrain.interop.forms import DECODER, FORMS, OURS, check_weights, form_names
from mmtrain.interop.hf_decoder_files import read_hf_decoder
from mmtrain.interop.model_kind import kind_of
from mmtrain.interop.package import ModelPackage
from mmtrain.interop.tokenizer_differences import tokenizer_differences
from mmtrain.loading.hub_models import model_folder
from mmtrain.loading.models import read_package, save_model
from mmtrain.loading.vqa import (
    export_answering,
    export_decoder,
    is_vqa_folder,
    refuse_architecture,
)
from mmtrain.models import Clip


def _unsaid(_: str) -> None:
    """Nobody listens."""


def _unseen(_: int, __: int) -> None:
    """Nobody looks."""


def export_model(
    source: Path | str,
    *,
    out: Path,
    form: str,
    architecture: str | None = None,
    weights: str | None = None,
    say: Callable[[str], None] = _unsaid,
    progress: Callable[[int, int], None] = _unseen,
) -> list[str]:
    """Write a loadable model into the folder `out` in another form.

    Args:
        source: what `load` takes.
        out: a new folder.
        form: `mmtrain`, our own, a name of `FORMS`, or `hf-decoder`; with - or _.
        architecture: as `load`.
        weights: fp32, fp16 or int8 where the form has a choice. None: the form's own.
        say: told how near to torch the graphs of `onnx` and `torch-export` are.
        progress: told how many parts of the work are done, of how many.

    Returns:
        Lines that say which texts get other ids there, with an example of each kind.

    Raises:
        UsageError: the source cannot be read, or the form cannot say what the model is.
    """
    form, known = form.replace("_", "-"), (*form_names(), DECODER)
    if form not in known:
        raise UsageError(f'format = "{form}" is unknown; use {" or ".join(known)}')
    check_weights(form, weights)
    if form == DECODER and architecture is not None:
        raise UsageError(f"architecture = {architecture} has no effect on a decoder")
    source = model_folder(source, key="model")
    if form == DECODER or is_vqa_folder(source):
        progress(0, 1)
        if form == DECODER:
            export_decoder(source, out=out)
        else:
            refuse_architecture(source, architecture)
            export_answering(source, out=out, form=form, weights=weights, say=say)
        progress(1, 1)
        return []
    if form != OURS and FORMS[form].decoding and kind_of(source) == "decoder":
        if architecture is not None:
            raise UsageError(f"architecture = {architecture} has no effect on a decoder")
        with writing(out):
            FORMS[form].write_decoding(read_hf_decoder(source), out, weights=weights, say=say)
        return []
    # Read, written (of graphs a tower after the other), held against the reader's tokenizer.
    is_graphs = form != OURS and bool(FORMS[form].weights)
    part, of = count(1), 4 if is_graphs else 3
    progress(0, of)
    package = read_package(source, architecture=architecture)
    progress(next(part), of)

    def tell(line: str) -> None:
        say(line)
        progress(next(part), of)

    with writing(out):
        theirs = write_package(package, out, form=form, weights=weights, say=tell)
    if not is_graphs:
        progress(next(part), of)
    library = form if form == OURS else FORMS[form].library
    differences = tokenizer_differences(package.tokenizer, theirs, library=library)
    progress(next(part), of)
    return differences


def write_package(
    package: ModelPackage,
    folder: Path,
    *,
    form: str,
    weights: str | None = None,
    say: Callable[[str], None] = _unsaid,
) -> Tokenizer:
    """Write a model in a form of `form_names` -> the tokenizer as its reader will have it.

    Raises:
        UsageError: the form cannot say what the model is.
    """
    if form != OURS:
        return FORMS[form].write(package, folder, weights=weights, say=say)
    with torch.device("meta"):
        model = Clip(package.config)
    model.load_state_dict(package.tensors, assign=True)
    save_model(folder, model=model, tokenizer=package.tokenizer, preprocess=package.preprocess)
    return package.tokenizer
