"""What a shell offers behind TAB: each command and option, asked of the shell itself."""

import shutil
import subprocess

import pytest

from mmtrain.cli import main
from mmtrain.cli.completion import SHELLS, following
from mmtrain.cli.program import build_parser

# The words typed, what is offered behind the last of them among others, and what is not.
TYPED = (
    ("ev", "eval", "train"),
    ("eval zero", "zero-shot", "knn"),
    ("train recipe.toml --res", "--resume-with-changes", "--run-dir"),
    ("export run --format on", "onnx", "timm"),
    ("export run --format onnx --we", "--weights", "--format"),
    ("completion f", "fish", "bash"),
)
ASK = {
    "bash": "source {script}; for line in {lines}; do COMP_WORDS=(mmtrain $line); "
    'COMP_CWORD=$((${{#COMP_WORDS[@]}}-1)); _mmtrain; echo "${{COMPREPLY[*]}}"; done',
    "fish": "source {script}; for line in {lines}; "
    'complete -C "mmtrain $line" | string replace -r "\\t.*" "" | string join " "; end; true',
    "zsh": "autoload -U compinit; compinit -u -D; source {script}; _files() {{}}; "
    "_describe() {{ print -r -- ${{${{(M)offered:#$PREFIX*}}%%:*}} }}; "
    "for line in {lines}; do words=(mmtrain ${{=line}}); "
    "CURRENT=${{#words}}; PREFIX=$words[-1]; _mmtrain; done",
}


@pytest.mark.parametrize("shell", SHELLS)
def test_the_shell_offers_what_fits(
    shell: str, tmp_path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["completion", shell]) == 0
    script = tmp_path / "script"
    script.write_text(capsys.readouterr().out)
    for path, words in following(build_parser(), "mmtrain"):
        assert path in script.read_text()
        assert all(word in script.read_text() for word, _ in words)
    if (program := shutil.which(shell)) is None:
        pytest.skip(f"no {shell} here; its script was made")
    lines = " ".join(f"'{typed}'" for typed, _, _ in TYPED)
    plain = {"bash": "--norc", "zsh": "-f", "fish": "--no-config"}[shell]
    asked = ASK[shell].format(script=script, lines=lines)
    done = subprocess.run([program, plain, "-c", asked], capture_output=True, text=True, check=True)
    for (typed, offered, other), line in zip(TYPED, done.stdout.splitlines(), strict=True):
        assert offered in line.split() and other not in line.split(), (typed, line)
