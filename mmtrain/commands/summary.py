"""`mmtrain summary`: what a model is made of."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mmtrain.commands.outputs import refuse_out, refuse_overwriting
from mmtrain.commands.summary_table import measured_table
from mmtrain.errors import UsageError
from mmtrain.files import replace_file
from mmtrain.interop.foreign_config import read_json
from mmtrain.interop.hf_decoder_config import decoder_config_from_hf
from mmtrain.interop.hf_decoder_files import is_decoder_folder
from mmtrain.loading import load
from mmtrain.loading.hub_models import model_folder
from mmtrain.loading.vqa import is_vqa_folder, load_vqa
from mmtrain.models import ClipConfig
from mmtrain.models.dialogues import DialogueGenerator
from mmtrain.models.flops import decoder_flops
from mmtrain.models.named import MODEL_NAMES, named_model
from mmtrain.models.vqa import Vqa
from mmtrain.report.autograd_graph import draw_autograd_graph
from mmtrain.report.graph import draw_graph
from mmtrain.report.measure import measured_answering, measured_parts
from mmtrain.report.summary import Part, count, decoder_parts, format_count, summarize

if TYPE_CHECKING:
    from mmtrain.commands.recipe_summary import PlannedModel


def summary_command(
    *, model: str, architecture: str | None, graph: Path | None, autograd: Path | None
) -> None:
    """`mmtrain summary`: a model's parts, and on request pictures of its towers and its graph."""
    for option, out in (("--graph", graph), ("--autograd", autograd)):
        if out is not None:
            refuse_out(out, option, ".svg")
    refuse_overwriting((), {"--graph": graph, "--autograd": autograd})
    is_name = model in MODEL_NAMES or model.endswith(".toml")
    path = Path(model) if is_name else model_folder(model, key="model")
    is_weights = path.exists() and path.suffix != ".toml"
    if architecture is not None and (
        not is_weights or is_decoder_folder(path) or is_vqa_folder(path)
    ):
        raise UsageError(
            f"architecture = {architecture} is for a CLIP's weights; {model} is something else"
        )
    if is_decoder_folder(path):
        _refuse_graph(graph or autograd, f"{path} is a decoder")
        _summarize_decoder(path)
        return
    if is_vqa_folder(path):
        _refuse_graph(graph or autograd, f"{path.name} answers questions")
        _summarize_vqa(path.name, load_vqa(path).model)
        return
    planned = _planned(path) if path.suffix == ".toml" else None
    if planned is not None and planned.answers is not None:
        _refuse_graph(graph or autograd, f"{path.name} answers questions")
        _summarize_vqa(path.name, planned.answers)
        return
    config, title = _architecture(model, path, architecture, planned)
    # Before anything is printed: Graphviz may be missing.
    pictures = {graph: draw_graph(config, title=title)} if graph is not None else {}
    if autograd is not None:
        pictures[autograd] = draw_autograd_graph(config, title=title)
    summary = summarize(config)
    _print(measured_table(measured_parts(config)))
    print(
        f"{title}: {summary.num_parameters:,} parameters; {summary.image_tokens} tokens an image, "
        f"at most {summary.text_tokens} a text; {summary.image_flops / 1e9:.2f} + "
        f"{summary.text_flops / 1e9:.2f} GFLOPs forward; kept: what one image or text keeps for "
        "the backward in fp32; weights, gradients and AdamW in fp32: "
        f"{summary.training_bytes / 2**30:.2f} GiB"
    )
    for line in () if planned is None else planned.phases:
        print(line)
    for out, picture in pictures.items():
        replace_file(out, picture)
        print(f"wrote {out}")


def _refuse_graph(graph: Path | None, told: str) -> None:
    if graph is not None:
        raise UsageError(f"graph = {graph} draws a CLIP's two towers, and {told}")


def _summarize_decoder(folder: Path) -> None:
    source = folder / "config.json"
    config = decoder_config_from_hf(read_json(source), source=str(source))
    parts, length = decoder_parts(config), config.context_length
    _print(_parts_table(parts))
    print(
        f"{folder.name}: {parts[0].num_parameters:,} parameters; {config.vocab_size:,} ids, at "
        f"most {length:,} tokens a text; "
        f"{decoder_flops(config, num_tokens=length) / 1e9:.2f} GFLOPs "
        f"forward; weights in fp32: {4 * parts[0].num_parameters / 2**30:.2f} GiB"
    )


def _summarize_vqa(title: str, model: Vqa) -> None:
    parts, total, vision = measured_answering(model), count(model), model.clip.vision
    _print(measured_table(parts))
    flops = {one.part.name: one.measured.flops for one in parts if one.measured is not None}
    names = [name for name in ("vision", "text", "classify", "generate") if name in flops]
    longest, text, one = model.clip.text.context_length, "question", "an image and a question"
    if isinstance(model.generate, DialogueGenerator):
        longest, text = model.generate.decoder.config.context_length, "dialogue"
        one = "the longest with one piece of an image"
    print(
        f"{title}: {total:,} parameters; {vision.num_tokens} tokens an image, at most "
        f"{longest} a {text}; "
        f"{' + '.join(f'{format_count(flops[name])}FLOPs {name}' for name in names)} forward for "
        f"{one}; weights in fp32: {4 * total / 2**30:.2f} GiB"
    )


def _parts_table(parts: list[Part]) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("part", "what", "parameters"):
        table.add_column(heading, justify="right" if heading == "parameters" else "left")
    for part in parts:
        row = ("  " * part.depth + part.name, part.detail, f"{part.num_parameters:,}")
        table.add_row(*(escape(cell) for cell in row))
    return table


def _architecture(
    model: str, path: Path, architecture: str | None, planned: "PlannedModel | None"
) -> tuple[ClipConfig, str]:
    """The architecture that a recipe, a model's folder or a name stands for, and its title."""
    if model in MODEL_NAMES:
        return named_model(model), model
    if planned is not None:
        assert planned.clip is not None, "its answers were told"
        return planned.clip, path.name
    if path.exists():
        return load(path, architecture=architecture)[0].config, path.name
    raise UsageError(
        f"model = {model} is neither a recipe, a model's folder nor one of `mmtrain models`"
    )


def _planned(path: Path) -> "PlannedModel":
    # What composes a recipe brings the engine: seconds that a model's name need not wait for.
    from mmtrain.commands.recipe_summary import planned_model

    return planned_model(path)


def _print(table: Table) -> None:
    # A pipe has no width; nothing in these tables may be cut.
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table, highlight=False)
