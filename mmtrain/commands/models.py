"""`mmtrain export`, `convert`, `models` and `summary`: what is done with a model's files."""

import sys
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mmtrain.data.tokenizer import build_tokenizer
from mmtrain.errors import UsageError
from mmtrain.files import replace_file
from mmtrain.loading import export_model, load
from mmtrain.models import ClipConfig
from mmtrain.models.named import MODEL_NAMES, named_model
from mmtrain.recipe import load_recipe, resolve
from mmtrain.report.graph import draw_graph
from mmtrain.report.summary import summarize


def export_command(*, model: Path, out: Path, form: str) -> None:
    """`mmtrain export`: a run's or a folder's model in a form that other tools load."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"out = {out} exists already; name a new folder")
    export_model(model, out=out, form=form)
    print(f"wrote {out} ({form})")


def models_command() -> None:
    """`mmtrain models`: every architecture that model.name knows, with its size."""
    table = Table(box=None, pad_edge=False)
    for heading in ("name", "image", "text", "parameters", "GFLOPs image", "GFLOPs text"):
        table.add_column(heading, justify="left" if heading == "name" else "right", no_wrap=True)
    for name in MODEL_NAMES:
        config = named_model(name)
        summary = summarize(config)
        table.add_row(
            name,
            str(config.vision.image_size),
            str(config.text.context_length),
            f"{summary.num_parameters / 1e6:,.2f} M",
            f"{summary.image_flops / 1e9:,.2f}",
            f"{summary.text_flops / 1e9:,.2f}",
        )
    _print(table)


def summary_command(*, model: str, graph: Path | None) -> None:
    """`mmtrain summary`: a model's parts, and on request a picture of its towers."""
    config, title = _architecture(model)
    summary = summarize(config)
    table = Table(box=None, pad_edge=False)
    for heading in ("part", "what", "parameters"):
        table.add_column(heading, justify="right" if heading == "parameters" else "left")
    for part in summary.parts:
        row = ("  " * part.depth + part.name, part.detail, f"{part.num_parameters:,}")
        table.add_row(*(escape(cell) for cell in row))
    _print(table)
    print(
        f"{title}: {summary.num_parameters:,} parameters; {summary.image_tokens} tokens an image, "
        f"at most {summary.text_tokens} a text; {summary.image_flops / 1e9:.2f} + "
        f"{summary.text_flops / 1e9:.2f} GFLOPs forward; weights, gradients and AdamW in fp32: "
        f"{summary.training_bytes / 2**30:.2f} GiB"
    )
    if graph is not None:
        if graph.suffix != ".svg":
            raise UsageError(f"graph = {graph} must end in .svg")
        try:
            replace_file(graph, draw_graph(config, title=title))
        except OSError as error:
            raise UsageError(f"graph = {graph} cannot be written: {error.strerror}") from error
        print(f"wrote {graph}")


def _architecture(model: str) -> tuple[ClipConfig, str]:
    """The architecture that a recipe, a model's folder or a name stands for, and its title."""
    if model in MODEL_NAMES:
        return named_model(model), model
    path = Path(model)
    if path.suffix == ".toml":
        recipe = load_recipe(path)
        return resolve(recipe, build_tokenizer(recipe.tokenizer)).model.clip, path.name
    if path.exists():
        return load(path)[0].config, path.name
    raise UsageError(
        f"model = {model} is neither a recipe, a model's folder nor one of `mmtrain models`"
    )


def _print(table: Table) -> None:
    # A pipe has no width; nothing in these tables may be cut.
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table, highlight=False)
