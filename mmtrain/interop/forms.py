"""The forms of others that a model is written in; a line here is all that commands need of one."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from mmtrain.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from mmtrain.data.text.tokenizer import Tokenizer
    from mmtrain.interop.hf_decoder_files import DecoderPackage
    from mmtrain.interop.package import ModelPackage, VqaModel


@dataclass(frozen=True, kw_only=True)
class Form:
    """How a model is written for another library."""

    whose: str
    """What --help calls it."""
    library: str
    """Who reads it, for lines that say what it reads otherwise."""
    writer: str
    """`module:function`, imported when it writes, so that --help does not wait for torch. It takes
    a `ModelPackage` and a folder and returns the tokenizer as the library will have it."""
    weights: tuple[str, ...] = ()
    """Number formats of its weights, the first one unless --weights says another. A form that has
    some is of graphs, whose writer is also given the one chosen and whom to tell how they agree."""
    answering: str = ""
    """The writer of a model that answers, which takes a `VqaModel`; none: the form has no such."""
    decoding: str = ""
    """The writer of a decoder alone, which takes a `DecoderPackage`; none: the form has no such."""

    def write(
        self,
        package: "ModelPackage",
        folder: "Path",
        *,
        weights: str | None,
        say: Callable[[str], None],
    ) -> "Tokenizer":
        """Write the model.

        Raises:
            UsageError: the form cannot say what the model is.
        """
        write: Callable[..., Tokenizer] = _found(self.writer)
        if not self.weights:
            return write(package, folder)
        return write(package, folder, weights=weights or self.weights[0], say=say)

    def write_answering(
        self,
        package: "VqaModel",
        folder: "Path",
        *,
        weights: str | None,
        say: Callable[[str], None],
    ) -> None:
        """Write a model that answers, as `write`."""
        _found(self.answering)(package, folder, weights=weights or self.weights[0], say=say)

    def write_decoding(
        self,
        package: "DecoderPackage",
        folder: "Path",
        *,
        weights: str | None,
        say: Callable[[str], None],
    ) -> None:
        """Write a decoder alone, as `write`."""
        _found(self.decoding)(package, folder, weights=weights or self.weights[0], say=say)


def _found(writer: str) -> Callable[..., Any]:
    module, _, name = writer.partition(":")
    return getattr(import_module(module), name)


FORMS = {
    "open-clip": Form(
        whose="open_clip's",
        library="open_clip",
        writer="mmtrain.interop.open_clip_files:write_open_clip",
    ),
    "hf": Form(
        whose="Hugging Face's",
        library="transformers",
        writer="mmtrain.interop.hf_clip_files:write_hf",
    ),
    "timm": Form(
        whose="(the image tower alone) timm's",
        library="timm",
        writer="mmtrain.interop.timm_files:write_timm",
    ),
    "onnx": Form(
        whose="ONNX's",
        library="onnxruntime",
        writer="mmtrain.interop.onnx_files:write_onnx",
        weights=("fp32", "fp16", "int8"),
        answering="mmtrain.interop.onnx_answers:write_onnx_answers",
        decoding="mmtrain.interop.onnx_decoder:write_onnx_decoder",
    ),
    "torch-export": Form(
        whose="torch.export's",
        library="torch",
        writer="mmtrain.interop.torch_export_files:write_torch_export",
        weights=("fp32",),
    ),
}
"""By the word after --format."""
DECODER = "hf-decoder"
"""The word for Hugging Face's form of the decoder alone, of a model that answers."""
DESCRIPTION = "model.json"
"""The file beside graphs that says how to use them."""
OURS = "mmtrain"
"""The word for our own, which `load` reads best."""


def form_names() -> tuple[str, ...]:
    """Every word that --format takes for a model."""
    return OURS, *FORMS


def graphs_of(what: Literal["answering", "decoding"]) -> str:
    """The forms that write a model that answers, or a decoder alone, for messages."""
    return " or ".join(name for name, form in FORMS.items() if getattr(form, what))


def weight_names() -> tuple[str, ...]:
    """Every word that --weights takes."""
    return tuple(dict.fromkeys(word for form in FORMS.values() for word in form.weights))


def check_weights(form: str, weights: str | None) -> None:
    """Refuse a number format that a form has no weights in.

    Args:
        form: a word of --format.
        weights: a word of --weights. None: the form's own.

    Raises:
        UsageError: naming the forms that have it.
    """
    has = FORMS[form].weights if form in FORMS else ()
    if weights is None or weights in has:
        return
    forms = [name for name, each in FORMS.items() if weights in each.weights]
    where = f"--format {' or '.join(forms)}" if forms else f"{' or '.join(weight_names())} there is"
    raise UsageError(f"weights = {weights} is not for format = {form}; use {where}")


def package_names() -> tuple[str, ...]:
    """The words of forms that a library loads by itself, and not graphs."""
    return OURS, *(name for name, form in FORMS.items() if not form.weights)


def described(names: Collection[str] | None = None) -> str:
    """Forms as --help names them: those of `names`, or all."""
    taken = form_names() if names is None else names
    whose = [
        "ours" if name == OURS else FORMS[name].whose for name in form_names() if name in taken
    ]
    return f"{', '.join(whose[:-1])} or {whose[-1]} form"
