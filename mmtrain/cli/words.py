"""The words of a command line: which belong to a recipe, and what a stray one was meant to be."""

import argparse
import re
from collections.abc import Sequence
from pathlib import PurePath

from mmtrain.cli.parser import typed_name
from mmtrain.errors import UsageError
from mmtrain.settings.decode import key_that_takes
from mmtrain.settings.describe import annotations, key_names, section_in
from mmtrain.settings.nearest import nearest

_DASHES = "‐‑‒–—―−﹘﹣－"
"""What a document makes of `-` and `--`."""
_QUOTES = "“”„‟‘’‚‛«»"
_OVERRIDE = r"--\w[\w-]*\."


def split_overrides(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Take `--section.key value` out: argparse does not know these keys, so it would read their
    values as positional words.

    Raises:
        UsageError: a `=` with spaces round it, a quotation mark out of a document.
    """
    words: list[str] = []
    overrides: list[str] = []
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        if not re.match(_OVERRIDE, word):
            words.append(word)
            continue
        overrides.append(word)
        if "=" not in word and rest and not rest[0].startswith("--"):
            overrides.append(rest.pop(0))
            if overrides[-1] == "=":
                value = rest[0] if rest else "VALUE"
                raise UsageError(f"{word} = {value}: write {word}={value} without spaces round =")
        value = overrides[-1].rpartition("=")[2]
        if value[:1] and value[0] in _QUOTES:
            raise UsageError(
                f"{word.partition('=')[0]} = {value} begins with {value[0]}, which a document made "
                "of a quotation mark; write ' instead"
            )
    return words, overrides


def refuse_document_dashes(argv: Sequence[str], parser: argparse.ArgumentParser) -> None:
    """Refuse `—resume` and `–-train.steps`, as they are pasted from a document.

    Raises:
        UsageError: naming the word and how it is typed.
    """
    known = set(_options(parser))
    for word in argv:
        found = re.match(rf"-*[{_DASHES}][-{_DASHES}]*(\w[\w.-]*)(.*)", word, re.DOTALL)
        if not found:
            continue
        name, rest = f"--{found[1]}", found[2]
        if name in known or (re.match(_OVERRIDE, name) and rest[:1] in ("", "=")):
            raise UsageError(f"{word} begins with a dash out of a document; type {name}{rest}")


def explain(word: str, *, argv: Sequence[str], parser: argparse.ArgumentParser) -> str:
    """What to tell the user of a word that a command does not take.

    Args:
        word: it.
        argv: all words, in order.
        parser: of the command; its `takes_overrides` says whether a recipe's keys are known.
    """
    takes_overrides = getattr(parser, "takes_overrides", False)
    if word.startswith("-"):
        value = next(iter(argv[argv.index(word) + 1 :]), "") if word in argv else ""
        remedy = _meant_option(word, value, parser, takes_overrides)
    else:
        remedy = _stray_value(word, argv, parser)
    return f"{parser.prog} does not take {word}{remedy} (see {parser.prog} --help)"


def in_words_of(arguments: argparse.Namespace, message: str) -> str:
    """A message in the words of a command: `--model = x` for `model = x`, and an option for the
    recipe's key of the same name, which its user has never typed.

    Args:
        arguments: what the command's parser, `arguments.parser`, made of the words.
        message: names settings as functions and recipes do.
    """
    parser = arguments.parser
    for action in parser._actions:
        name, place = action.dest, typed_name(action)
        if parser.takes_overrides:  # its user types the keys, but for those that have an option
            if getattr(arguments, name, None) is not None:
                key = name.replace("_", "[.]")
                message = re.sub(rf"(?<![\w.-]){key}(?= = )", place, message)
            continue
        if action.option_strings:
            message = re.sub(rf"(?<![\w.-])(?:data|train|run)\.{name}\b", place, message)
        message = re.sub(rf"(?<![\w.-]){name}(?= = )|^{name}(?=: )", place, message)
    return message


def _meant_option(
    word: str, following: str, parser: argparse.ArgumentParser, takes_overrides: bool
) -> str:
    name, _, value = word.partition("=")
    if re.match(_OVERRIDE, f"-{word}") and not word.startswith("--"):
        return f"; did you mean -{word}?"
    if near := nearest(name, parser._option_string_actions, cutoff=0.7):
        return f"; did you mean {near}?"
    if re.match(_OVERRIDE, word):
        return "; keys of a recipe are for train, plan and demo"
    if not takes_overrides or not word.startswith("--"):
        return ""
    from mmtrain.recipe import TrainRecipe  # torch: seconds, for those who mistype alone

    key = name.removeprefix("--").replace("-", "_")
    section, is_list = section_in(annotations(TrainRecipe).get(key))
    if section is not None and not is_list:
        member, meant = key_that_takes(section, value or following)
        return f"; did you mean --{key}.{member} {meant}?"
    known = [each for each in key_names(TrainRecipe) if "[]" not in each]
    meant = [each for each in known if each.endswith(f".{key}")]
    if meant:
        return f"; did you mean {' or '.join(f'--{each}' for each in meant[:3])}?"
    return "; keys of a recipe have a section: --section.key value"


def _stray_value(word: str, argv: Sequence[str], parser: argparse.ArgumentParser) -> str:
    """Of what option or place a word is one value too many."""
    place = next((i for i in range(len(argv) - 1, -1, -1) if argv[i] == word), 0)
    before = place
    while before and not argv[before - 1].startswith("-"):
        before -= 1
    option = argv[before - 1].partition("=")[0] if before else ""
    action = parser._option_string_actions.get(option)
    if re.match(_OVERRIDE, option) or (action is not None and action.nargs is None):
        first = argv[before] if before < place else argv[before - 1].partition("=")[2]
        return (
            f": {option} takes one value, which is {first}; if the shell made several of a glob, "
            f"quote it: {option} '*{PurePath(first).suffix}'"
        )
    if action is not None and action.nargs == 0:
        return f": {option} takes no value"
    places = parser._get_positional_actions()
    wanted = [each.metavar for each in places if each.nargs in (None, "?")]
    if wanted:
        return f": it takes one {' and one '.join(map(str, wanted))}; give them one at a time"
    return ""


def _options(parser: argparse.ArgumentParser) -> list[str]:
    """Every option of a parser and the commands below it."""
    found: list[str] = []
    for action in parser._actions:
        found += action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                found += _options(inner)
    return found
