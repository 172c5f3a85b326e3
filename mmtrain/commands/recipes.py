"""`mmtrain recipes`: the recipes that travel with mmtrain, and how one becomes the user's own."""

import re
import shutil
import textwrap
from pathlib import Path

from mmtrain.commands.outputs import refuse_out
from mmtrain.errors import UsageError
from mmtrain.files import replace_file
from mmtrain.settings.shipped import copied_text, is_suite, shipped_recipe, shipped_recipes


def recipes_command(*, name: str | None, out: Path | None) -> None:
    """List the recipes, or copy one.

    Raises:
        UsageError: there is none of that name, or the file cannot be written or is there.
    """
    if name is None:
        if out is not None:
            raise UsageError("--out has no effect without NAME, the recipe to copy")
        _list()
        return
    path = shipped_recipe(name.removesuffix(".toml"), told=f"NAME = {name}")
    out = Path(path.name) if out is None else out
    refuse_out(out, "--out", ".toml")
    if out.exists():
        raise UsageError(f"{out} exists already; name another file by --out")
    replace_file(out, copied_text(path).encode())
    told = f"eval suite {out} --models ..." if is_suite(path) else f"train {out}"
    print(f"wrote {out}; {'run' if is_suite(path) else 'train'} it by: mmtrain {told}")


def _list() -> None:
    recipes = shipped_recipes()
    indent = 2 + max(map(len, recipes))
    width = shutil.get_terminal_size(fallback=(100, 24)).columns
    for name, path in recipes.items():
        told = f"{name:<{indent}}{about(path)}"
        print(textwrap.fill(told, width, subsequent_indent=" " * indent))
    print(
        "\nmmtrain recipes NAME copies one; a recipe of yours may begin from one, "
        '`base = "NAME"`, and say what differs'
    )


def about(path: Path) -> str:
    """The first sentence of the comment that a recipe begins with."""
    lines: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#") or line.startswith("#  "):
            break
        lines.append(line.removeprefix("#").strip())
    return re.split(r"(?<=[\w)])[.;](?=\s+[A-Z]|$)", " ".join(lines))[0]
