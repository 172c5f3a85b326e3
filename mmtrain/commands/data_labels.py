"""`mmtrain data labels`: which tokens of a run's first batches are learnt."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from mmtrain.build.data import open_data, read_recipe
from mmtrain.build.tasks import task_sections
from mmtrain.commands.outputs import refuse_out
from mmtrain.data.labels import LabelledBatch, LabelledRow, Stretch, label_batch
from mmtrain.data.numbered import NumberedData
from mmtrain.data.questions.batches import VqaData
from mmtrain.errors import UsageError
from mmtrain.report.labels_page import PageBatch, write_labels_page
from mmtrain.settings.counted import counted
from mmtrain.train.config import total_steps

_STYLES = {"trained": "bold green", "context": "", "image": "cyan", "cut": "red strike"}
_MARKS = {"trained": ("{+", "+}"), "context": ("", ""), "image": ("", ""), "cut": ("[-", "-]")}
_LEGEND = {
    "trained": "what is trained",
    "image": "[image pieces x tokens of each]",
    "cut": "what is cut off",
}


def data_labels_command(
    *, recipe: Path, overrides: list[str], batches: int, rows: int, out: Path | None
) -> None:
    """`mmtrain data labels`: print the tokens of the first batches, those that are learnt marked.

    Raises:
        UsageError: the run has fewer batches, its data cannot be read, or it would not train.
    """
    if out is not None:
        refuse_out(out, "--out", ".html")
    read = read_recipe(recipe, overrides)
    data = open_data(read, begun=recipe.is_dir())
    steps = total_steps(read.train, data)
    if batches > steps:
        raise UsageError(f"--batches {batches}: the run has {steps:,} steps; ask for no more")
    console = Console(highlight=False, soft_wrap=True, markup=False)
    is_drawn = console.is_terminal
    console.print(_legend(is_drawn))
    pages = []
    for number in range(batches):
        batch = data.batch(number)
        labelled = label_batch(
            batch,
            data.tokenizer,
            image_tokens=task_sections(read).image_tokens,
            answers=_answers(data),
        )
        _tell(labelled, console, rows=rows, title=f"step {number + 1}", is_drawn=is_drawn)
        for bad in batch.bad:
            console.print(f"# replaced, position {bad.position}: {bad}: {bad.reason}")
        pages.append(
            PageBatch(
                title=f"Step {number + 1}",
                labelled=labelled,
                images_NCHW=batch.images_BCHW,
                bad=tuple(f"{bad}: {bad.reason}" for bad in batch.bad),
            )
        )
    if out is not None:
        write_labels_page(out, pages, title=f"What {recipe} trains", num_rows=rows)
        console.print(f"# wrote {out}")


def _answers(data: NumberedData[Any]) -> Sequence[str]:
    return data.answers if isinstance(data, VqaData) else ()


def _legend(is_drawn: bool) -> Text:
    line = Text("# ")
    for number, (kind, told) in enumerate(_LEGEND.items()):
        line.append(", " if number else "")
        line.append_text(_marked(kind, told, is_drawn))
    return line


def _tell(
    labelled: LabelledBatch, console: Console, *, rows: int, title: str, is_drawn: bool
) -> None:
    shares = {
        "trained": labelled.num_trained,
        "images": labelled.num_image,
        "padding": labelled.num_padding,
    }
    told = ", ".join(f"{name} {labelled.share(num):.1%}" for name, num in shares.items())
    count = len(labelled.rows)
    console.print(
        f"# {title}: {counted(count, 'row')}, {counted(labelled.num_tokens, 'token')}: {told}"
    )
    if labelled.note:
        console.print(f"# {labelled.note}")
    for row in labelled.rows[:rows]:
        console.print(_line(row, is_drawn))
    if count > rows:
        console.print(f"# and {counted(count - rows, 'more row')}; --rows {count} shows all")
    if not labelled.num_trained and not labelled.note:
        print("mmtrain: no token of it is trained", file=sys.stderr)


def _line(row: LabelledRow, is_drawn: bool) -> Text:
    line = Text(f"{row.key}  ")
    for stretch in row.stretches:
        line.append_text(_marked(stretch.kind, _one_line(stretch), is_drawn))
    if row.note:
        line.append(f"  {row.note}", style="dim" if is_drawn else "")
    return line


def _marked(kind: str, text: str, is_drawn: bool) -> Text:
    if is_drawn:
        return Text(text, style=_STYLES[kind])
    before, behind = _MARKS[kind]
    return Text(f"{before}{text}{behind}")


def _one_line(stretch: Stretch) -> str:
    return stretch.text.replace("\r", "␍").replace("\n", "↵").replace("\t", "⇥")
