"""What a class name becomes before the text tower: templates by name, and their mean embedding."""

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from mmtrain.errors import UsageError
from mmtrain.eval.encode import Encoder, encode_texts
from mmtrain.files import text_lines
from mmtrain.nn import unit_norm
from mmtrain.settings.nearest import nearest

# OpenAI's prompts for ImageNet, Radford et al. 2021, arXiv:2103.00020, Sec. 3.1.4, and the seven of
# them that it recommends for a quick look. Their order is the published one.
_IMAGENET = (
    "a bad photo of a {name}.",
    "a photo of many {name}.",
    "a sculpture of a {name}.",
    "a photo of the hard to see {name}.",
    "a low resolution photo of the {name}.",
    "a rendering of a {name}.",
    "graffiti of a {name}.",
    "a bad photo of the {name}.",
    "a cropped photo of the {name}.",
    "a tattoo of a {name}.",
    "the embroidered {name}.",
    "a photo of a hard to see {name}.",
    "a bright photo of a {name}.",
    "a photo of a clean {name}.",
    "a photo of a dirty {name}.",
    "a dark photo of the {name}.",
    "a drawing of a {name}.",
    "a photo of my {name}.",
    "the plastic {name}.",
    "a photo of the cool {name}.",
    "a close-up photo of a {name}.",
    "a black and white photo of the {name}.",
    "a painting of the {name}.",
    "a painting of a {name}.",
    "a pixelated photo of the {name}.",
    "a sculpture of the {name}.",
    "a bright photo of the {name}.",
    "a cropped photo of a {name}.",
    "a plastic {name}.",
    "a photo of the dirty {name}.",
    "a jpeg corrupted photo of a {name}.",
    "a blurry photo of the {name}.",
    "a photo of the {name}.",
    "a good photo of the {name}.",
    "a rendering of the {name}.",
    "a {name} in a video game.",
    "a photo of one {name}.",
    "a doodle of a {name}.",
    "a close-up photo of the {name}.",
    "a photo of a {name}.",
    "the origami {name}.",
    "the {name} in a video game.",
    "a sketch of a {name}.",
    "a doodle of the {name}.",
    "a origami {name}.",
    "a low resolution photo of a {name}.",
    "the toy {name}.",
    "a rendition of the {name}.",
    "a photo of the clean {name}.",
    "a photo of a large {name}.",
    "a rendition of a {name}.",
    "a photo of a nice {name}.",
    "a photo of a weird {name}.",
    "a blurry photo of a {name}.",
    "a cartoon {name}.",
    "art of a {name}.",
    "a sketch of the {name}.",
    "a embroidered {name}.",
    "a pixelated photo of a {name}.",
    "itap of the {name}.",
    "a jpeg corrupted photo of the {name}.",
    "a good photo of a {name}.",
    "a plushie {name}.",
    "a photo of the nice {name}.",
    "a photo of the small {name}.",
    "a photo of the weird {name}.",
    "the cartoon {name}.",
    "art of the {name}.",
    "a drawing of the {name}.",
    "a photo of the large {name}.",
    "a black and white photo of a {name}.",
    "the plushie {name}.",
    "a dark photo of a {name}.",
    "itap of a {name}.",
    "graffiti of the {name}.",
    "a toy {name}.",
    "itap of my {name}.",
    "a photo of a cool {name}.",
    "a photo of a small {name}.",
    "a tattoo of the {name}.",
)
_SIMPLE = (
    "itap of a {name}.",
    "a bad photo of the {name}.",
    "a origami {name}.",
    "a photo of the large {name}.",
    "a {name} in a video game.",
    "art of the {name}.",
    "a photo of the small {name}.",
)

MAX_PROMPTS = 2**16
"""Prompts whose features are held at once."""

TEMPLATES: dict[str, tuple[str, ...]] = {
    "name": ("{name}",),
    "simple": _SIMPLE,
    "imagenet": _IMAGENET,
}
"""Prompt templates by name; `{name}` stands for the class."""
DEFAULT_TEMPLATES = "name"
"""Where neither the user nor the data name any."""


def load_templates(templates: str | Sequence[str]) -> tuple[str, ...]:
    """Prompts by name, those of a file, one a line, or as they are.

    `{name}` stands for the class; so do `{}` and, as in CLIP benchmark's files, `{c}`.

    Raises:
        UsageError: neither a name nor a file, or a prompt without a place for the class.
    """
    if not isinstance(templates, str):
        return _with_place(templates, "templates")
    if templates in TEMPLATES:
        return TEMPLATES[templates]
    path = Path(templates)
    try:
        lines = text_lines(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        near = nearest(path.name, TEMPLATES)
        hint = f"; did you mean {near}?" if near and not path.exists() else ""
        raise UsageError(
            f"templates = {templates}: neither one of {', '.join(TEMPLATES)} nor a file that can "
            f"be read ({error}){hint}"
        ) from error
    return _with_place(lines, str(path))


_PYTHON = re.compile(r"""lambda\b.*:|f?(['"]).*\1,$""")
"""How CLIP's and open_clip's lists of prompts look, whose lines are programs."""


def _with_place(lines: Sequence[str], origin: str) -> tuple[str, ...]:
    """The prompts without blank lines, `{name}` in each."""
    prompts: list[str] = []
    for number, line in enumerate(lines, 1):
        prompt = line.strip().replace("{}", "{name}").replace("{c}", "{name}")
        if _PYTHON.match(prompt):
            raise UsageError(
                f"{origin}:{number}: {line.strip()!r} is a program's; write the prompt alone, such "
                "as a photo of a {}."
            )
        if prompt and "{name}" not in prompt:
            raise UsageError(
                f"{origin}:{number}: {line.strip()!r} has no place for the class; put {{}} in it"
            )
        if prompt:
            prompts.append(prompt)
    if not prompts:
        raise UsageError(f"{origin} has no prompts; write one a line, with {{}} for the class")
    return tuple(prompts)


def class_embeddings(encoder: Encoder, names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """One unit-norm embedding per class, float32 [M, E] on the encoder's device, on every rank.

    Each prompt is encoded and normalised, a class's prompts are averaged, and the mean is
    normalised (arXiv:2103.00020, Sec. 3.1.4).
    """
    # Not all at once: 80 prompts for each of ImageNet's 21,000 classes would be gigabytes.
    step = max(1, MAX_PROMPTS // len(templates))
    rows: list[Tensor] = []
    for start in range(0, len(names), step):
        some = names[start : start + step]
        prompts = [template.replace("{name}", name) for name in some for template in templates]
        features = encode_texts(encoder, prompts)
        rows.append(unit_norm(features.unflatten(0, (len(some), -1)).mean(1)))
    return torch.cat(rows)
