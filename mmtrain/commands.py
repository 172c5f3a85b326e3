"""What the commands beside `train` and `demo` do: evaluate, check shards, export, describe."""

import sys
from pathlib import Path

import torch.distributed as dist
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mmtrain.data.shard_check import check_shards, index_shards
from mmtrain.data.tokenizer import build_tokenizer
from mmtrain.errors import UsageError
from mmtrain.eval import Encoder, EvalResult, evaluate_retrieval, evaluate_zero_shot, write_result
from mmtrain.files import replace_file
from mmtrain.loading import export_model, load
from mmtrain.models import ClipConfig
from mmtrain.models.named import MODEL_NAMES, named_model
from mmtrain.parallel import ParallelConfig, build_layout, pick_device
from mmtrain.recipe import load_recipe, resolve
from mmtrain.report.graph import draw_graph
from mmtrain.report.summary import summarize


def eval_zero_shot_command(
    *,
    model: Path,
    data: tuple[str, ...],
    classes: Path,
    templates: str,
    label_key: str,
    batch_size: int,
    workers: int,
    device: str,
    out: Path,
) -> None:
    """`mmtrain eval zero-shot`, alone or under torchrun, whose ranks share out the samples."""
    encoder = _build_encoder(model, batch_size=batch_size, workers=workers, device=device, out=out)
    result = evaluate_zero_shot(
        encoder, data=data, classes=classes, templates=templates, label_key=label_key
    )
    _finish(encoder, result, out, ("top1", "top5", "num_samples", "num_classes"))


def eval_retrieval_command(
    *,
    model: Path,
    data: tuple[str, ...],
    captions: tuple[str, ...],
    batch_size: int,
    workers: int,
    device: str,
    out: Path,
) -> None:
    """`mmtrain eval retrieval`, alone or under torchrun."""
    encoder = _build_encoder(model, batch_size=batch_size, workers=workers, device=device, out=out)
    result = evaluate_retrieval(encoder, data=data, captions=captions)
    recalls = tuple(f"{way}_recall@{k}" for way in ("i2t", "t2i") for k in (1, 5, 10))
    _finish(encoder, result, out, (*recalls, "num_images", "num_texts"))


def data_index_command(*, data: tuple[str, ...], index_dir: Path | None) -> None:
    """`mmtrain data index`: write what indexes are missing, with checksums; tell of damage."""
    report = index_shards(data, index_dir=_text(index_dir))
    print(
        f"{report.num_samples} samples in {len(report.shards)} shards; "
        f"{report.num_new} indexes written"
    )
    _refuse(report.problems)


def data_check_command(*, data: tuple[str, ...], index_dir: Path | None) -> None:
    """`mmtrain data check`: compare every shard with its index, member by member."""
    report = check_shards(data, index_dir=_text(index_dir))
    for shard in report.shards:
        state = "verified" if shard.is_verified else "readable"
        if not shard.is_indexed:
            state += ", but it has no index to compare with (mmtrain data index writes one)"
        elif not shard.is_verified:
            state += ", but its index has no checksums (mmtrain data index adds them)"
        print(f"{shard.path}: {shard.num_samples} samples, {state}")
    _refuse(report.problems)


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


def _build_encoder(
    model: Path, *, batch_size: int, workers: int, device: str, out: Path
) -> Encoder:
    if out.suffix != ".json":
        raise UsageError(f"out = {out} must end in .json")
    layout = build_layout(ParallelConfig(), pick_device(device, key="device"))
    clip, preprocess, tokenizer = load(model, device=layout.device)
    return Encoder(
        model=clip,
        tokenizer=tokenizer,
        preprocess=preprocess.config,
        device=layout.device,
        batch_size=batch_size,
        workers=workers,
        group=layout.group("dp"),
    )


def _finish(encoder: Encoder, result: EvalResult, out: Path, keys: tuple[str, ...]) -> None:
    """Write the result and show its figures; leave the process group."""
    if encoder.is_main:
        write_result(out, result)
        for key in keys:
            value = result.figures[key]
            print(f"{key:14} {value:.2%}" if isinstance(value, float) else f"{key:14} {value:,}")
        print(f"wrote {out}")
    if dist.is_initialized():
        dist.destroy_process_group()


def _refuse(problems: tuple[str, ...]) -> None:
    """End with status 2 where something is wrong, every problem on a line of its own."""
    for problem in problems:
        print(f"mmtrain: {problem}", file=sys.stderr)
    if problems:
        raise UsageError(f"{len(problems)} problem(s) found; fetch those shards again")


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
