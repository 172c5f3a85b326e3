"""What the documentation site has beside docs/: mkdocs calls these hooks (mkdocs.yml).

Pages that are made of the code when the site is built: every key of a recipe, every command, the
Python API. And what docs/ links to outside of itself (README, recipes, tools, tables of results),
which become part of the site, so that a link leads somewhere, here and in a clone.
"""

import argparse
import importlib
import os
import posixpath
import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
PAGES = {
    "README.md": "overview.md",
    "CONTRIBUTING.md": "contributing.md",
    "THIRD_PARTY.md": "third_party.md",
}
"""Files at the top of a clone that are pages of the site."""
MADE = {"every key of a recipe": "recipe", "every command": "commands"}
"""Words of the first page that lead to pages which are made."""
_LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#\s]+)")
_ROOM = re.compile(r"^\| `(mmtrain[\w.]*)` \| (.*) \|$", re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made and the files that are linked."""
    made = {
        "reference/recipe.md": recipe_page(),
        "reference/commands.md": commands_page(),
        "python/reference.md": api_page(),
    }
    for name, content in made.items():
        files.append(File.generated(config, name, content=content))
    for name, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / name)))
    texts = [*(file.content_string for file in files.documentation_pages())]
    sources = [file.src_uri for file in files.documentation_pages()]
    for source, text in zip(sources, texts, strict=True):
        for target in _LINK.findall(text):
            path = _in_clone(source, target)
            uri = _in_site(path)
            if files.get_file_from_path(uri) is None and (ROOT / path).is_file():
                files.append(File.generated(config, uri, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links as they are in the site."""
    source = page.file.src_uri
    if source == "index.md":  # in a clone there is nothing to link to
        for words, name in MADE.items():
            assert words in markdown, words
            markdown = markdown.replace(words, f"[{words}](reference/{name}.md)")

    def moved(link: re.Match[str]) -> str:
        uri = _in_site(_in_clone(source, link[1]))
        return posixpath.relpath(uri, posixpath.dirname(source) or ".")

    return _LINK.sub(moved, markdown)


def _in_clone(source: str, target: str) -> str:
    """Where a link of a page leads, from the top of a clone."""
    own = {page: name for name, page in PAGES.items()}
    if source.startswith("source/"):
        folder = posixpath.dirname(source.removeprefix("source/"))
    else:
        folder = posixpath.dirname(own.get(source, f"docs/{source}"))
    return posixpath.normpath(posixpath.join(folder, target))


def _in_site(path: str) -> str:
    if path in PAGES:
        return PAGES[path]
    return path.removeprefix("docs/") if path.startswith("docs/") else f"source/{path}"


def recipe_page() -> str:
    """Every key of a recipe, of the dataclasses that read it."""
    from mmtrain.recipe import TrainRecipe
    from mmtrain.settings.describe import describe

    lines = [
        "# Every key of a recipe",
        "",
        "Made of the dataclasses that read it; `mmtrain train --help SECTION` says the same. Any",
        "key may stand on a command line too: `--optim.lr 1e-3`. One with `[]` is of a list of",
        "tables, such as `[[eval.zero_shot]]`; `none` writes None. Recipes that run:",
        "",
        *_recipes(),
        "",
    ]
    for section, keys in groupby(describe(TrainRecipe), lambda key: key.name.split(".")[0]):
        lines += [
            f"## {section}",
            "",
            "| key | takes | default | what it does |",
            "|---|---|---|---|",
        ]
        for key in keys:
            name = f"**`{key.name}`**" if key.type == "table" else f"`{key.name}`"
            takes = " or ".join(f"`{arm}`" for arm in key.type.split(" | "))
            default = f"`{key.default}`".replace("|", "or") if key.default else ""
            lines.append(
                f"| {name} | {takes} | {default} | {key.doc.replace('|', chr(92) + '|')} |"
            )
        lines.append("")
    return "\n".join(lines)


def _recipes() -> Iterator[str]:
    for path in sorted((ROOT / "configs").glob("*.toml")):
        comment = path.read_text("utf-8").split("\n\n")[0].splitlines()
        first = " ".join(
            line.removeprefix("#").strip() for line in comment if line.startswith("# ")
        )
        sentence = re.split(r"(?<! al)\. ", first)[0].rstrip(".")
        yield f"- [{path.stem}](../../configs/{path.name}): {sentence}"


def commands_page() -> str:
    """The help of every command, as it is printed."""
    os.environ["COLUMNS"] = "100"
    from mmtrain.cli import build_parser

    lines = ["# Every command", "", "What `--help` prints.", ""]
    for name, parser in _commands(build_parser()):
        lines += [f"## {name}", "", "```text", parser.format_help().rstrip(), "```", ""]
    return "\n".join(lines)


def _commands(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    below = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    if not below or parser.prog == "mmtrain":
        yield parser.prog, parser
    for action in below:
        for child in action.choices.values():
            yield from _commands(child)


def api_page() -> str:
    """A directive of mkdocstrings for every name that python/index.md lists."""
    index = (ROOT / "docs/python/index.md").read_text("utf-8")
    lines = ["# Every public name", ""]
    for room, names in _ROOM.findall(index):
        document: Any = importlib.import_module(room).__doc__
        lines += [f"## {room}", "", document.strip().split("\n\n")[0], ""]
        for name in re.findall(r"`(\w+)`", names):
            lines += [f"::: {room}.{name}", ""]
    return "\n".join(lines)
