"""The forms of others that a model is written in; a line here is all that commands need of one."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from mmtrain.data.text.tokenizer import Tokenizer
    from mmtrain.interop.package import ModelPackage


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

    def write(self, package: "ModelPackage", folder: "Path") -> "Tokenizer":
        """Write the model.

        Raises:
            UsageError: the form cannot say what the model is.
        """
        module, _, name = self.writer.partition(":")
        write: Callable[[ModelPackage, Path], Tokenizer] = getattr(import_module(module), name)
        return write(package, folder)


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
}
"""By the word after --format."""
DECODER = "hf-decoder"
"""The word for Hugging Face's form of the decoder alone, of a model that answers."""
OURS = "mmtrain"
"""The word for our own, which `load` reads best."""


def form_names() -> tuple[str, ...]:
    """Every word that --format takes for a model."""
    return OURS, *FORMS


def described() -> str:
    """The forms as --help names them."""
    *others, last = ("ours", *(form.whose for form in FORMS.values()))
    return f"{', '.join(others)} or {last} form"
