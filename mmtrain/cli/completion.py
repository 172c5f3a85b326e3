"""`mmtrain completion`: what a shell offers behind TAB.

The scripts hold the words themselves, read off the parser, so that TAB starts no Python. (shtab
makes such scripts, but not for fish; argcomplete starts the program at every TAB.)
"""

import argparse
from collections.abc import Iterator
from typing import Any

from mmtrain.cli.parser import add_command

SHELLS = ("bash", "zsh", "fish")
_HEAD = {
    "bash": '# In ~/.bashrc: eval "$(mmtrain completion bash)"',
    "zsh": '# In ~/.zshrc, behind compinit: eval "$(mmtrain completion zsh)"',
    "fish": "# In ~/.config/fish/config.fish: mmtrain completion fish | source",
}
Words = dict[str, list[tuple[str, str]]]
"""What may follow words, with what each is for: `eval` -> zero-shot, retrieval ..."""


def add_completion(commands: Any) -> None:
    """The command that prints a script for a shell."""
    completion = add_command(
        commands,
        "completion",
        "print what makes a shell complete mmtrain's words: in ~/.bashrc, "
        'eval "$(mmtrain completion bash)"',
        _completion,
    )
    completion.add_argument(
        "shell", choices=SHELLS, metavar="SHELL", help=f"{', '.join(SHELLS[:-1])} or {SHELLS[-1]}"
    )


def completion_command(*, shell: str) -> None:
    """Print the script of one shell."""
    from mmtrain.cli.program import build_parser  # which has this command among its own

    write = {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell]
    print("\n".join([_HEAD[shell], *write(dict(following(build_parser(), "mmtrain")))]))


def following(parser: argparse.ArgumentParser, path: str) -> Iterator[tuple[str, Any]]:
    """Each command's path, such as `mmtrain eval knn`, with the words that may follow; behind the
    path an option that takes one of few values, with these."""
    words: list[tuple[str, str]] = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            # A group's own help names its commands; the private class has it here.
            told = {one.dest: one.help or "" for one in action._choices_actions}
            for name, command in action.choices.items():
                words.append((name, told.get(name, "")))
                yield from following(command, f"{path} {name}")
            continue
        names = [name for name in action.option_strings if name.startswith("--")]
        words += [(name, _told(action)) for name in names]
        if action.choices is not None:
            values = [(str(value), "") for value in action.choices]
            if not names:
                words += values
            for name in names:
                yield f"{path} {name}", values
    yield path, words


def _completion(arguments: argparse.Namespace) -> None:
    completion_command(shell=arguments.shell)


def _told(action: argparse.Action) -> str:
    """An option's help, of which the first part does for a list."""
    return (action.help or "").partition(";")[0].partition(" (%")[0]


def _walk(words: Words) -> str:
    """Paths as the patterns of a shell's `case`."""
    return " | ".join(f'"{path}"' for path in words if path != "mmtrain")


def _bash(words: Words) -> Iterator[str]:
    yield "_mmtrain() {"
    yield '  local word at=mmtrain cur="${COMP_WORDS[COMP_CWORD]}" offered=""'
    yield '  for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do'
    yield from _bash_step(words)
    yield "  done"
    yield '  case "$at" in'
    for path, offered in words.items():
        yield f'    "{path}") offered="{" ".join(word for word, _ in offered)}" ;;'
    yield "  esac"
    yield '  COMPREPLY=($(compgen -W "$offered" -- "$cur"))'
    yield "}"
    # Where no word fits, files.
    yield "complete -o bashdefault -o default -F _mmtrain mmtrain"


def _bash_step(words: Words) -> Iterator[str]:
    """One word further: into a command, to an option's values, or back behind them."""
    yield '    at="${at%% --*}"'
    yield f'    case "$at $word" in {_walk(words)}) at="$at $word" ;; esac'


def _zsh(words: Words) -> Iterator[str]:
    yield "_mmtrain() {"
    yield "  local word at=mmtrain; local -a offered"
    yield '  for word in "${words[@]:1:$((CURRENT-2))}"; do'
    yield from _bash_step(words)
    yield "  done"
    yield '  case "$at" in'
    for path, offered in words.items():
        # A colon ends the word, but for one behind a backslash.
        words_told = ((word.replace(":", "\\:"), text) for word, text in offered)
        told = " ".join(f"'{word}:{_plain(text)}'" for word, text in words_told)
        yield f'    "{path}") offered=({told}) ;;'
    yield "  esac"
    yield "  _describe mmtrain offered"
    yield '  [[ "$PREFIX" == -* ]] || _files'
    yield "}"
    yield "compdef _mmtrain mmtrain"


def _fish(words: Words) -> Iterator[str]:
    yield "function __mmtrain_at"
    yield "  set -l at mmtrain"
    yield "  for word in (commandline -opc)[2..-1]"
    yield "    set at (string replace -r ' --.*' '' -- $at)"
    paths = " ".join(f"'{path}'" for path in words if path != "mmtrain")
    yield f'    contains -- "$at $word" {paths}; and set at "$at $word"'
    yield "  end"
    yield '  test "$at" = "$argv"'
    yield "end"
    for path, offered in words.items():
        for word, text in offered:
            yield (
                f"complete -c mmtrain -n \"__mmtrain_at '{path}'\" -a '{word}' -d '{_plain(text)}'"
            )


def _plain(text: str) -> str:
    """A description as it may stand in a shell's quotes."""
    return text.replace("\\", "").replace("'", "’")
