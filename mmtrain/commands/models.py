"""`mmtrain export`, `convert` and `summary`: what is done with a model's files."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mmtrain.build.resolve import resolve, run_tokenizer
from mmtrain.build.tasks import task_sections
from mmtrain.build.workload import flops_by_phase, model_workload, phase_workloads
from mmtrain.commands.summary_table import measured_table
from mmtrain.errors import UsageError
from mmtrain.files import replace_file
from mmtrain.interop.foreign_config import read_json
from mmtrain.interop.hf_decoder_config import decoder_config_from_hf
from mmtrain.interop.hf_decoder_files import is_decoder_folder
from mmtrain.loading import export_model, load
from mmtrain.loading.hub_models import model_folder
from mmtrain.loading.start import read_start
from mmtrain.loading.vqa import is_vqa_folder, load_vqa
from mmtrain.models import ClipConfig
from mmtrain.models.dialogues import DialogueGenerator
from mmtrain.models.flops import clip_flops, decoder_flops
from mmtrain.models.named import MODEL_NAMES, named_model
from mmtrain.models.vqa import Vqa
from mmtrain.progress import speaker
from mmtrain.recipe import load_recipe
from mmtrain.report.autograd_graph import draw_autograd_graph
from mmtrain.report.graph import draw_graph
from mmtrain.report.measure import measured_answering, measured_parts
from mmtrain.report.summary import Part, count, decoder_parts, format_count, summarize
from mmtrain.settings.paths import refuse_existing
from mmtrain.tasks.answering_sections import AnsweringSections


def export_command(
    *,
    model: str,
    out: Path,
    form: str,
    weights: str | None,
    architecture: str | None,
    quiet: bool = False,
) -> None:
    """`mmtrain export`: a run's or a folder's model in a form that other tools load."""
    refuse_existing(out)
    say = speaker(quiet)
    differences = export_model(
        model, out=out, form=form, architecture=architecture, weights=weights, say=say
    )
    for line in differences:
        print(f"tokenizer: {line}")
    say(f"wrote {out} ({form})")


def summary_command(
    *, model: str, architecture: str | None, graph: Path | None, autograd: Path | None
) -> None:
    """`mmtrain summary`: a model's parts, and on request pictures of its towers and its graph."""
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
        _summarize_decoder(path, graph or autograd)
        return
    if is_vqa_folder(path):
        _summarize_vqa(path.name, load_vqa(path).model, graph or autograd)
        return
    if path.suffix == ".toml" and (answers := _planned_answers(path)) is not None:
        _summarize_vqa(path.name, answers, graph or autograd)
        return
    config, title = _architecture(model, path, architecture)
    summary = summarize(config)
    _print(measured_table(measured_parts(config)))
    print(
        f"{title}: {summary.num_parameters:,} parameters; {summary.image_tokens} tokens an image, "
        f"at most {summary.text_tokens} a text; {summary.image_flops / 1e9:.2f} + "
        f"{summary.text_flops / 1e9:.2f} GFLOPs forward; kept: what one image or text keeps for "
        "the backward in fp32; weights, gradients and AdamW in fp32: "
        f"{summary.training_bytes / 2**30:.2f} GiB"
    )
    if path.suffix == ".toml":
        for line in _phases(path):
            print(line)
    if graph is not None:
        _write_picture("graph", graph, lambda: draw_graph(config, title=title))
    if autograd is not None:
        _write_picture("autograd", autograd, lambda: draw_autograd_graph(config, title=title))


def _phases(path: Path) -> Iterator[str]:
    """What each phase of a recipe costs; nothing where it has none."""
    workload = model_workload(load_recipe(path))
    if not workload.train.phase:
        return
    flops = [
        clip_flops(part.clip, num_patches=part.clip.vision.num_kept).training
        for part in phase_workloads(workload)
    ]
    yield from flops_by_phase(workload, flops)


def _write_picture(key: str, path: Path, draw: Callable[[], str]) -> None:
    if path.suffix != ".svg":
        raise UsageError(f"{key} = {path} must end in .svg")
    try:
        replace_file(path, draw())
    except OSError as error:
        raise UsageError(f"{key} = {path} cannot be written: {error.strerror}") from error
    print(f"wrote {path}")


def _summarize_decoder(folder: Path, graph: Path | None) -> None:
    if graph is not None:
        raise UsageError(f"graph = {graph} draws a CLIP's two towers, and {folder} is a decoder")
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


def _planned_answers(path: Path) -> Vqa | None:
    """The model of a recipe that answers, without values; None: it is one of two towers."""
    recipe = load_recipe(path)
    if not isinstance(task_sections(recipe), AnsweringSections):
        return None
    with torch.device("meta"):
        model = model_workload(recipe).whole_model()
    assert isinstance(model, Vqa), "of its own workload"
    return model


def _summarize_vqa(title: str, model: Vqa, graph: Path | None) -> None:
    if graph is not None:
        raise UsageError(
            f"graph = {graph} draws a CLIP's two towers, and {title} answers questions"
        )
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


def _architecture(model: str, path: Path, architecture: str | None) -> tuple[ClipConfig, str]:
    """The architecture that a recipe, a model's folder or a name stands for, and its title."""
    if model in MODEL_NAMES:
        return named_model(model), model
    if path.suffix == ".toml":
        recipe = load_recipe(path)
        start = read_start(recipe.model.init, name=recipe.model.name)
        return resolve(recipe, run_tokenizer(recipe, start)).model.clip, path.name
    if path.exists():
        return load(path, architecture=architecture)[0].config, path.name
    raise UsageError(
        f"model = {model} is neither a recipe, a model's folder nor one of `mmtrain models`"
    )


def _print(table: Table) -> None:
    # A pipe has no width; nothing in these tables may be cut.
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table, highlight=False)
