"""`mmtrain eval`: a model from disk, alone or under torchrun, whose ranks share out the samples."""

from pathlib import Path

import torch.distributed as dist

from mmtrain.errors import UsageError
from mmtrain.eval import Encoder, EvalResult, evaluate_retrieval, evaluate_zero_shot, write_result
from mmtrain.loading import load
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
