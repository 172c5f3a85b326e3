"""Write README's table of results: every figure is a cell of a table in benchmarks/results/.

    python tools/write_results.py --out README.md

{FILE | COLUMN | ROW ...} below is that cell of benchmarks/results/FILE.md: of the row that begins
with these cells, in the table that has the column. Bold, code and what follows in brackets count
nowhere.
"""

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from mmtrain.cli.endings import end_well
from mmtrain.cli.parser import Parser
from mmtrain.errors import UsageError
from mmtrain.files import replace_file

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
BEGIN = "<!-- written by tools/write_results.py -->"
END = "<!-- to here -->"
_EMOJI = (
    "**{emoji_pairs | SET | mmtrain, patch 8, Muon, mean} %**; "
    "patch 16 {emoji_pairs | SET | mmtrain, Muon, mean} %; "
    "and AdamW {emoji_pairs | SET | mmtrain, AdamW, mean} %",
    "{emoji_pairs | SET | open_clip 3.3, AdamW 5e-4, seed 0} %; "
    "with Muon put in {emoji_pairs | SET | open_clip 3.3 with Muon put in, one seed} %",
)
ROWS = (
    ("what", "mmtrain", "open_clip 3.3"),
    ("---", "---", "---"),
    (
        "emoji of a designer never trained on (Twemoji), by name, top-1 / top-5",
        *(cell.replace("SET", "Twemoji") for cell in _EMOJI),
    ),
    (
        "another one, black outlines (OpenMoji)",
        *(cell.replace("SET", "OpenMoji") for cell in _EMOJI),
    ),
    ("125 concepts never trained on", *(cell.replace("SET", "new concepts") for cell in _EMOJI)),
    (
        "softmax loss at batch 32,768, forward and backward, peak memory",
        "**{loss_memory_cpu | peak MiB | 32,768 | mmtrain} MiB**, "
        "{loss_memory_cpu | seconds | 32,768 | mmtrain} s",
        "its formula: {loss_memory_cpu | peak MiB | 32,768 | open_clip's formula} MiB, "
        "{loss_memory_cpu | seconds | 32,768 | open_clip's formula} s",
    ),
    (
        "easy-VQA, test, a random tower, answers chosen / written",
        "**{easy_vqa | accuracy | configs/vqa_easy.toml} / "
        "{easy_vqa | accuracy | written by the decoder}**",
        "",
    ),
    (
        "training step, bf16 / fp32, with AMX: ViT-B/32; ViT-B/16",
        "**{train_step_cpu | ratio | ViT-B-32 | bf16} / {train_step_cpu | ratio | ViT-B-32 | fp32}"
        "**; {train_step_cpu | ratio | ViT-B-16 | bf16} / "
        "{train_step_cpu | ratio | ViT-B-16 | fp32}",
        "1x",
    ),
    (
        "the same without AMX (AMD, AVX-512)",
        "**{train_step_cpu | ratio | ViT-B-32 | 32 | bf16} / "
        "{train_step_cpu | ratio | ViT-B-32 | 32 | fp32}**; "
        "{train_step_cpu | ratio | ViT-B-16 | 16 | bf16} / "
        "{train_step_cpu | ratio | ViT-B-16 | 16 | fp32}",
        "1x",
    ),
    (
        "images to features (AMD), ViT-B/32, bf16 / fp32",
        "**{encode_cpu | ours / open_clip | ViT-B-32 | bf16 | encode_image} / "
        "{encode_cpu | ours / open_clip | ViT-B-32 | fp32 | encode_image}**",
        "1x",
    ),
    (
        "writing text (AMD), 135 M parameters, 1 / 8 rows",
        "**{decode_cpu | ours / transformers | smollm2, 135 M | 1} / "
        "{decode_cpu | ours / transformers | smollm2, 135 M | 8}**",
        "transformers: 1x",
    ),
    (
        "from tar to batch, processor time an image, photos of 256 px / 512 px / 1.5 megapixels",
        "**{data_pipeline_cpu | open_clip / ours | 256 | 25 | exact} / "
        "{data_pipeline_cpu | open_clip / ours | 512 | 82 | exact} / "
        "{data_pipeline_cpu | open_clip / ours | 1.5MP | 482 | exact}**",
        "1x",
    ),
    (
        "SIGKILL of a job of 2 ranks, resumed; of one rank under torchrun",
        "{chaos | was seen | SIGKILL of a whole job of 2 ranks (FSDP), then --resume}; "
        "{chaos | was seen | SIGKILL of one rank of 2 under torchrun --max-restarts}",
        "",
    ),
)


def table(results: Path) -> str:
    """The table, its figures looked up.

    Raises:
        UsageError: a file has not the cell, or has it twice.
    """

    def look_up(found: re.Match[str]) -> str:
        file, column, *row = map(str.strip, found[1].split("|"))
        return cell(results / f"{file}.md", column, [_bare(each) for each in row])

    lines = ("| " + " | ".join(cells) + " |" for cells in ROWS)
    return "\n".join(re.sub(r"\{([^{}]+)\}", look_up, line) for line in lines)


def cell(path: Path, column: str, row: list[str]) -> str:
    """A cell of the tables of a page.

    Raises:
        UsageError: none is there, or several.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    found = [
        cells[heads.index(column)]
        for heads, cells in _rows(text)
        if column in heads and cells[: len(row)] == row
    ]
    if len(found) != 1:
        raise UsageError(
            f'{path} has {len(found) or "no"} cell{"s" * (len(found) > 1)} "{column}" of the row '
            f'"{" | ".join(row)}"; correct it, or ROWS in tools/write_results.py'
        )
    return found[0]


def _rows(text: str) -> Iterator[tuple[list[str], list[str]]]:
    """Each row of each table, with the table's headings."""
    heads: list[str] | None = None
    for line in text.splitlines():
        if not line.startswith("|"):
            heads = None
        elif heads is None:
            heads = _cells(line)
        elif not line.startswith("|---"):
            yield heads, _cells(line)


def _cells(line: str) -> list[str]:
    return [_bare(part) for part in line.strip().strip("|").split("|")]


def _bare(text: str) -> str:
    return re.sub(r" \(.*?\)", "", re.sub(r"[*`]", "", text)).strip()


def filled_in(page: str, results: Path, *, named: str) -> str:
    """A page whose table between the two marks is that of now.

    Raises:
        UsageError: as `table`, or the marks are not there, each once and in order.
    """
    before, begun, rest = page.partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not begun or not ended or BEGIN in rest or END in before + after:
        raise UsageError(
            f"{named} must have the lines {BEGIN} and {END} once each, around the table"
        )
    return f"{before}{BEGIN}\n\n{table(results)}\n\n{END}{after}"


def run(arguments: argparse.Namespace) -> None:
    """Write the table into the page."""
    named = f"--out = {arguments.out}"
    try:
        page = arguments.out.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{named} cannot be read: {error}; name a page") from error
    replace_file(arguments.out, filled_in(page, arguments.results, named=named))


def _parser() -> Parser:
    parser = Parser(prog="write_results", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="README.md")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 2, after one line on stderr, for a user's mistake."""
    return end_well(lambda: run(_parser().parse_args(arguments)), name="write_results")


if __name__ == "__main__":
    sys.exit(main())
