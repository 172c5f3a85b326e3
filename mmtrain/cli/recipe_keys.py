"""What `mmtrain train --help` says of a recipe: its sections, and the keys of one."""

import shutil
import textwrap
from collections.abc import Iterable
from pathlib import Path

from mmtrain.errors import UsageError
from mmtrain.settings.describe import Key, describe, written_docs
from mmtrain.settings.nearest import nearest

_HEAD = """\
recipe keys, in the file or as --section.key value; in paths ~ and $NAME are as they are
in a shell, and $$ is a dollar sign:
"""
_ALL = "all"
_RECIPE = Path(__file__).parents[1] / "recipe.py"


def sections_help() -> str:
    """The sections of a recipe, a line each; torch is not imported for them."""
    sections = written_docs(_RECIPE, "TrainRecipe")
    indent = 4 + max(map(len, sections))
    lines = [
        "sections of a recipe, whose keys can be overridden as --section.key value "
        f"(--help SECTION lists\nthem, such as --help model.vision; --help {_ALL} those of all):"
    ]
    for name, doc in sections.items():
        lines += _wrapped(f"  {name:<{indent - 2}}{doc}", indent)
    return "\n".join(lines) + "\n"


def keys_help(section: str) -> str:
    """Every key of a section and of those in it, with type, default and doc.

    Args:
        section: dotted, such as `model.vision`, as in a file, `[model.vision]`, or `all`.

    Raises:
        UsageError: there is none of that name.
    """
    from mmtrain.recipe import TrainRecipe  # torch: seconds

    name = section.strip("[]-")

    def is_told(path: str) -> bool:
        """Whether a section is in the one that is asked for, or above it, where its doc stands."""
        told, asked = (f"{each}.".replace("[]", "") for each in (path, name))
        return name == _ALL or not path or told.startswith(asked) or asked.startswith(told)

    sections = _sections(describe(TrainRecipe, reads_docs=is_told))
    if name == _ALL:
        return _HEAD + "\n".join(line for lines in sections.values() for line in lines) + "\n"
    found = [
        line
        for path, lines in sections.items()
        if f"{path}.".startswith((f"{name}.", f"{name}[]."))
        for line in lines
    ]
    if not found:
        near = nearest(name, [path.replace("[]", "") for path in sections])
        remedy = f"did you mean {near}?" if near else "mmtrain train --help lists them"
        raise UsageError(f"--help {section}: a recipe has no such section; {remedy}")
    return "\n".join(found).lstrip("\n") + "\n"


def _sections(keys: Iterable[Key]) -> dict[str, list[str]]:
    """The lines of each section; a section's own keys stand before those of the sections in it, as
    TOML wants them."""
    sections: dict[str, list[str]] = {}
    for key in keys:
        if key.type in ("table", "table | none"):
            sections[key.name] = ["", *_wrapped(f"[{key.name}]  {key.doc}", 2)]
            continue
        if key.type.startswith("list of table"):
            sections[f"{key.name}[]"] = ["", *_wrapped(f"[[{key.name}]]  {key.doc}", 2)]
            continue
        known = [name for name in sections if key.name.startswith(f"{name}.")]
        section = sections[max(known, key=len)]
        section.append(f"  {key.name} = {key.type}  ({key.default})")
        section += _wrapped(" " * 6 + key.doc, 6)
    return sections


def _wrapped(text: str, indent: int) -> list[str]:
    # Wider than a pipe's usual 80, since nothing there wraps or cuts lines.
    width = min(shutil.get_terminal_size(fallback=(100, 24)).columns, 100)
    return textwrap.wrap(text, width, subsequent_indent=" " * indent)
