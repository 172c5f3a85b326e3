"""The recipes that travel with mmtrain: in a checkout those of configs/."""

from pathlib import Path

from mmtrain.errors import UsageError
from mmtrain.settings.nearest import nearest

SUITES = "suites"
"""The folder of those that evaluate, beside those that train."""
_PACKAGE = Path(__file__).parents[1]


def shipped_recipes() -> dict[str, Path]:
    """Their files by name, such as `clip_vit_b32`."""
    packaged = _PACKAGE / "configs"
    folder = packaged if packaged.is_dir() else _PACKAGE.parent / "configs"
    recipes = sorted(folder.glob("*.toml"))
    return {path.stem: path for path in [*recipes, *sorted((folder / SUITES).glob("*.toml"))]}


def is_suite(path: Path) -> bool:
    """Whether a shipped file is for `mmtrain eval suite`; else it is for `mmtrain train`."""
    return path.parent.name == SUITES


def shipped_recipe(name: str, *, told: str) -> Path:
    """The file of one.

    Args:
        name: such as `clip_vit_b32`.
        told: what named it, for the message.

    Raises:
        UsageError: there is none of that name.
    """
    known = shipped_recipes()
    if name not in known:
        near = nearest(name, known)
        remedy = f"did you mean {near}?" if near else "`mmtrain recipes` lists them"
        raise UsageError(f"{told} is no recipe that travels with mmtrain; {remedy}")
    return known[name]


def copied_text(path: Path) -> str:
    """A shipped recipe's text as it works from any folder: the data that travel in the package are
    named where they are."""
    text = path.read_text(encoding="utf-8")
    return text.replace('"mmtrain/demo/', f'"{_PACKAGE.as_posix()}/demo/')
