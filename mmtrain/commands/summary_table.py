"""The table of `mmtrain summary`: what each part of a model is, gives, costs and keeps."""

from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from mmtrain.report.measure import MeasuredPart

_MIB = 1 << 20


def measured_table(parts: Sequence[MeasuredPart]) -> Table:
    """A line a part; FLOPs and kept memory are of one image, one text or one question."""
    table = Table(box=None, pad_edge=False)
    for heading in ("part", "what", "output"):
        table.add_column(heading, no_wrap=heading == "part")
    for heading in ("parameters", "MFLOPs", "weights MiB", "kept MiB"):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in parts:
        table.add_row(*(escape(cell) for cell in _cells(one)))
    return table


def _cells(one: MeasuredPart) -> tuple[str, ...]:
    part, measured = one.part, one.measured
    name, weights = "  " * part.depth + part.name, f"{4 * part.num_parameters / _MIB:,.2f}"
    count = f"{part.num_parameters:,}"
    if measured is None:
        return name, part.detail, "", count, "", weights, ""
    return (
        name,
        part.detail,
        " x ".join(map(str, measured.shape)),
        count,
        f"{measured.flops / 1e6:,.1f}" if measured.flops else "",
        weights,
        f"{measured.kept_bytes / _MIB:,.2f}" if measured.kept_bytes else "",
    )
