"""`mmtrain eval` and `embed`: a model from disk, alone or under torchrun, whose ranks share out the
samples."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mmtrain.data.storage.patience import PATIENCE, waiting
from mmtrain.errors import UsageError
from mmtrain.eval import Encoder, write_result
from mmtrain.eval.evaluators.evaluator import Evaluator
from mmtrain.eval.features.embed import embed
from mmtrain.eval.features.embed_files import PieceFormat
from mmtrain.eval.together import on_all_ranks
from mmtrain.loading import load
from mmtrain.parallel import ParallelConfig, build_layout, leave_ranks, pick_device
from mmtrain.parallel.precision import Precision
from mmtrain.settings.numbers import WHOLE


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
    retry_seconds: float = PATIENCE
    """How long a fault of the disk is given to pass."""
    device: str = "auto"
    """cpu, cuda, cuda:1 or auto."""
    precision: Precision = "fp32"
    """Number format of the forward passes."""


def eval_command(*, model: ModelOptions, evaluation: Evaluator, out: Path) -> None:
    """`mmtrain eval` of two towers, alone or under torchrun."""
    refuse_out(out)
    with waiting(model.retry_seconds):
        inputs = evaluation.open()
        encoder = build_encoder(model)
        with on_all_ranks(encoder.group, encoder.device):
            result = evaluation.run(encoder, inputs)
    if encoder.is_main:
        write_result(out, result)
        for key, form in evaluation.shown.items():
            print(f"{key:16}{result.figures[key]:{form}}")
        if remark := evaluation.remark(result.figures):
            print(remark)
        print(f"wrote {out}")
    leave_ranks()


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
    part: tuple[int, int],
) -> None:
    """`mmtrain embed`: image features into a folder; begun again, it goes on."""
    encoder = build_encoder(model)

    def say(done: int, of: int) -> None:
        print(f"{done} of {of} pieces", flush=True)

    with waiting(model.retry_seconds):
        report = embed(
            encoder,
            data=data,
            out=out,
            form=form,
            dtype=dtype,
            piece=piece,
            max_bad_fraction=max_bad_fraction,
            image_key=image_key,
            part=part,
            progress=say if encoder.is_main else None,
        )
    if encoder.is_main:
        skipped = f", {report.num_skipped:,} skipped" if report.num_skipped else ""
        print(
            f"wrote {out}: {report.num_rows:,} rows{skipped}; {report.num_made} of "
            f"{report.num_pieces} pieces made now"
        )
        if part != WHOLE:
            print(
                f"these are part {part[0]}/{part[1]}; when all are there, the same command without "
                "--shard-range ends the folder"
            )
    leave_ranks()


def refuse_out(out: Path) -> None:
    """Before anything is computed for it.

    Raises:
        UsageError: it is no .json.
    """
    if out.suffix != ".json":
        raise UsageError(f"out = {out} must end in .json")


def build_encoder(options: ModelOptions) -> Encoder:
    """The model, on the device and the ranks that it runs on."""
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
