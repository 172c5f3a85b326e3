"""`mmtrain eval` and `embed`: a model from disk, alone or under torchrun, whose ranks share out the
samples."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mmtrain.data.config import DataConfig
from mmtrain.errors import UsageError
from mmtrain.eval import (
    Encoder,
    EvalResult,
    evaluate_knn,
    evaluate_linear_probe,
    evaluate_retrieval,
    evaluate_zero_shot,
    write_result,
)
from mmtrain.eval.classify.layouts import LabelledInputs, open_labelled
from mmtrain.eval.classify.prompts import DEFAULT_TEMPLATES, load_templates
from mmtrain.eval.features.embed import embed
from mmtrain.eval.features.embed_files import PieceFormat
from mmtrain.eval.samples import open_source
from mmtrain.loading import load
from mmtrain.parallel import ParallelConfig, build_layout, leave_ranks, pick_device
from mmtrain.parallel.precision import Precision

_ACCURACY = ("top1", "top5", "mean_class_top1", "num_samples", "num_classes")


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """A model on disk, and how it is run."""

    path: Path
    """What `load` takes."""
    architecture: str | None = None
    """Of a weights' file of which nothing says it."""
    batch_size: int = 256
    """Samples per rank and forward."""
    workers: int = 0
    """Processes per rank that read and decode."""
    device: str = "auto"
    """cpu, cuda, cuda:1 or auto."""
    precision: Precision = "fp32"
    """Number format of the forward passes."""


@dataclass(frozen=True, kw_only=True)
class LabelledOptions:
    """Data with classes."""

    sets: Mapping[str, tuple[str, ...]]
    """`data`, or `train`, `test` and perhaps `validation`."""
    classes: str | None = None
    """Their names; None: the data tell them."""
    label_key: str | None = None
    """Where a sample's class id is."""
    image_key: str = DataConfig.image_key
    """Column of the images in a manifest or a saved data set."""
    per_class: bool = False
    """Also list the accuracy of every class."""

    def open(self) -> LabelledInputs:
        """Open them.

        Raises:
            UsageError: as `open_labelled`.
        """
        return open_labelled(
            self.sets, classes=self.classes, label_key=self.label_key, image_key=self.image_key
        )


def eval_zero_shot_command(
    *, model: ModelOptions, labelled: LabelledOptions, templates: str | None, out: Path
) -> None:
    """`mmtrain eval zero-shot`."""
    _refuse_out(out)
    inputs = labelled.open()
    prompts = templates or inputs.templates or DEFAULT_TEMPLATES
    load_templates(prompts)  # a typo must not wait for the model
    encoder = _build_encoder(model)
    result = evaluate_zero_shot(
        encoder, **inputs.arguments, templates=prompts, per_class=labelled.per_class
    )
    _finish(encoder, result, out, _ACCURACY)


def eval_linear_probe_command(
    *,
    model: ModelOptions,
    labelled: LabelledOptions,
    strengths: tuple[float, ...] | None,
    out: Path,
) -> None:
    """`mmtrain eval linear-probe`."""
    _refuse_out(out)
    inputs = labelled.open()
    encoder = _build_encoder(model)
    result = evaluate_linear_probe(
        encoder, **inputs.arguments, strengths=strengths, per_class=labelled.per_class
    )
    _finish(encoder, result, out, (*_ACCURACY, "num_train", "strength"))


def eval_knn_command(
    *,
    model: ModelOptions,
    labelled: LabelledOptions,
    neighbours: int,
    temperature: float | None,
    out: Path,
) -> None:
    """`mmtrain eval knn`."""
    _refuse_out(out)
    inputs = labelled.open()
    encoder = _build_encoder(model)
    result = evaluate_knn(
        encoder,
        **inputs.arguments,
        neighbours=neighbours,
        temperature=temperature,
        per_class=labelled.per_class,
    )
    _finish(encoder, result, out, (*_ACCURACY, "num_train"))


def eval_retrieval_command(
    *,
    model: ModelOptions,
    data: tuple[str, ...],
    captions: tuple[str, ...],
    caption_lines: bool | None,
    image_key: str,
    out: Path,
) -> None:
    """`mmtrain eval retrieval`."""
    _refuse_out(out)
    source = open_source(data, image_key=image_key)
    encoder = _build_encoder(model)
    result = evaluate_retrieval(
        encoder, data=source, captions=captions, caption_lines=caption_lines
    )
    recalls = tuple(f"{way}_recall@{k}" for way in ("i2t", "t2i") for k in (1, 5, 10))
    _finish(encoder, result, out, (*recalls, "num_images", "num_texts"), told=_captions(result))


def _captions(result: EvalResult) -> str:
    """Which reading of the data the figures are of."""
    figures = result.figures
    least, most, images = (figures[name] for name in ("min_captions", "max_captions", "num_images"))
    told = f"{least}" if least == most else f"{least} to {most}"
    told = f"{told} caption{'s' if most > 1 else ''} an image"
    if (different := figures["num_different_images"]) < images:
        told += (
            f"; only {different:,} of {images:,} images differ, and each counts on its own: give "
            "the captions of one image to one sample"
        )
    return told


def embed_command(
    *,
    model: ModelOptions,
    data: tuple[str, ...],
    image_key: str,
    out: Path,
    form: PieceFormat,
    dtype: Literal["float16", "float32"],
    piece: int,
    max_bad_fraction: float,
) -> None:
    """`mmtrain embed`: image features into a folder; begun again, it goes on."""
    encoder = _build_encoder(model)

    def say(done: int, of: int) -> None:
        print(f"{done} of {of} pieces", flush=True)

    report = embed(
        encoder,
        data=data,
        out=out,
        form=form,
        dtype=dtype,
        piece=piece,
        max_bad_fraction=max_bad_fraction,
        image_key=image_key,
        progress=say if encoder.is_main else None,
    )
    if encoder.is_main:
        skipped = f", {report.num_skipped:,} skipped" if report.num_skipped else ""
        print(
            f"wrote {out}: {report.num_rows:,} rows{skipped}; {report.num_made} of "
            f"{report.num_pieces} pieces made now"
        )
    leave_ranks()


def _refuse_out(out: Path) -> None:
    """Before anything is computed for it."""
    if out.suffix != ".json":
        raise UsageError(f"out = {out} must end in .json")


def _build_encoder(options: ModelOptions) -> Encoder:
    layout = build_layout(ParallelConfig(), pick_device(options.device, key="device"))
    clip, preprocess, tokenizer = load(
        options.path, device=layout.device, architecture=options.architecture
    )
    return Encoder(
        model=clip,
        tokenizer=tokenizer,
        preprocess=preprocess.config,
        device=layout.device,
        precision=options.precision,
        batch_size=options.batch_size,
        workers=options.workers,
        group=layout.group("dp"),
    )


def _finish(
    encoder: Encoder, result: EvalResult, out: Path, keys: tuple[str, ...], *, told: str = ""
) -> None:
    """Write the result and show its figures; leave the process group."""
    if encoder.is_main:
        write_result(out, result)
        for key in keys:
            print(f"{key:16}{_shown(key, result.figures[key])}")
        if told:
            print(told)
        print(f"wrote {out}")
    leave_ranks()


def _shown(key: str, value: float) -> str:
    if key == "strength":
        return f"{value:g}"
    return f"{value:.2%}" if isinstance(value, float) else f"{value:,}"
