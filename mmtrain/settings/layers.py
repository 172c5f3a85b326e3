"""A recipe that begins from another one: `base = "..."`."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from mmtrain.errors import UsageError
from mmtrain.files import real_path
from mmtrain.settings.describe import join, show
from mmtrain.settings.paths import expand_path
from mmtrain.settings.read_toml import parse_toml, read_toml
from mmtrain.settings.shipped import copied_text, shipped_recipe

BASE = "base"
"""The key, above all sections, that names the recipe to begin from."""
_FILE = ".toml"


def read_layers(path: Path) -> list[dict[str, Any]]:
    """A recipe's dict behind those that it begins from, the farthest first; none has `base`.

    `base` is a file, by its path from the recipe's folder, or the name of a recipe that travels
    with mmtrain.

    Raises:
        UsageError: a file cannot be read, or leads back to itself.
    """
    layers: list[dict[str, Any]] = []
    seen: list[Path] = []
    shipped = False
    while True:
        if real_path(path) in seen:
            raise UsageError(f"recipe {path}: its base leads back to it; leave one of them out")
        seen.append(real_path(path))
        # Its data are told from where the package is: the user's folder need not be a checkout.
        layer = parse_toml(copied_text(path), named=str(path)) if shipped else read_toml(path)
        base = layer.pop(BASE, None)
        layers.insert(0, layer)
        if base is None:
            return layers
        path = _named(base, path)
        shipped = not base.endswith(_FILE)


def laid_over(
    under: dict[str, Any], over: dict[str, Any], *, whole: Collection[str] = (), path: str = ""
) -> dict[str, Any]:
    """Table by table what `over` says, and else what `under` does; a list is replaced as a whole,
    a list of tables too.

    Args:
        under: a recipe's dict.
        over: what lies nearer.
        whole: tables that are replaced as a whole too, by their dotted names.
        path: dotted name of the table.
    """
    both = {
        name: laid_over(under[name], value, whole=whole, path=join(path, name))
        for name, value in over.items()
        if isinstance(value, dict)
        and isinstance(under.get(name), dict)
        and join(path, name) not in whole
    }
    return under | over | both


def _named(base: Any, recipe: Path) -> Path:
    """The file that a recipe's `base` means."""
    told = f"recipe {recipe}: base = {show(base)}"
    if not isinstance(base, str) or not base:
        raise UsageError(f"{told} must be a recipe's file, or the name of one of mmtrain's")
    if not base.endswith(_FILE):
        return shipped_recipe(base, told=told)
    path = recipe.parent / expand_path(base, BASE)
    if not path.is_file():
        raise UsageError(f"{told}: {path} does not exist; the path counts from the recipe's folder")
    return path
