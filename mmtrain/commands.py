"""What the commands beside `train` and `demo` do: evaluate, index and check shards, export."""

import sys
from pathlib import Path

import torch.distributed as dist

from mmtrain.data.shard_check import check_shards, index_shards
from mmtrain.errors import UsageError
from mmtrain.eval import Encoder, EvalResult, evaluate_retrieval, evaluate_zero_shot, write_result
from mmtrain.loading import export_model, load
from mmtrain.parallel import ParallelConfig, build_layout, pick_device


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
