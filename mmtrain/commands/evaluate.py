"""`mmtrain eval` and `embed`: a model from disk, alone or under torchrun, whose ranks share out the
samples."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from mmtrain.commands.outputs import refuse_overwriting
from mmtrain.data.feature_files import PieceFormat
from mmtrain.data.storage.patience import PATIENCE, waiting
from mmtrain.errors import UsageError
from mmtrain.eval import Encoder, EvalResult, write_result
from mmtrain.eval.evaluators.evaluator import Evaluator
from mmtrain.eval.evaluators.options import option_words
from mmtrain.eval.features.embed import EmbedReport, embed
from mmtrain.eval.forward_size import FAST_BATCH, FIXED_BATCH, forward_size
from mmtrain.eval.together import on_all_ranks
from mmtrain.loading import load
from mmtrain.loading.hub_address import parse_address
from mmtrain.loading.hub_models import model_folder, pinned
from mmtrain.loading.vqa import is_vqa_folder, load_vqa, refuse_architecture
from mmtrain.models.answering_tower import AnsweringTower
from mmtrain.parallel.mesh import (
    Layout,
    ParallelConfig,
    build_layout,
    leave_ranks,
    pick_device,
)
from mmtrain.parallel.precision import Precision, check_tf32
from mmtrain.progress import Progress, speaker
from mmtrain.ranks import on_every_rank, own_rank
from mmtrain.settings.counted import counted
from mmtrain.settings.numbers import WHOLE


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """A model on disk, and how it is run."""

    path: Path | str
    """What `load` takes."""
    architecture: str | None = None
    """Of a weights' file of which nothing says it."""
    fast: bool = False
    """Forwards of batch_size samples, on which the last digits of a result then depend."""
    batch_size: int | None = None
    """Samples per rank and forward, where it is fast."""
    workers: int = 0
    """Processes per rank that read and decode."""
    retry_seconds: float = PATIENCE
    """How long a fault of the disk is given to pass."""
    device: str = "auto"
    """cpu, cuda, cuda:1 or auto."""
    precision: Precision = "fp32"
    """Number format of the forward passes."""
    quiet: bool = False
    """Say nothing of what goes well."""

    def progress(self) -> Progress:
        """Of images, told by rank 0."""
        return Progress("images", quiet=self.quiet or own_rank() != 0)

    @property
    def fetched(self) -> str | None:
        """The address of what was fetched, at its commit; None: it was here."""
        if isinstance(self.path, Path) or parse_address(self.path, key="model") is None:
            return None
        return pinned(self.path, key="model")

    def recorded(self, result: EvalResult) -> EvalResult:
        """The result with what was fetched, at its commit."""
        if self.fetched is None:
            return result
        return replace(result, figures={"model": self.fetched, **result.figures})

    @property
    def forward_size(self) -> int:
        """Samples per rank and forward."""
        if self.batch_size is not None and not self.fast and own_rank() == 0:
            say = f"--batch-size {self.batch_size} has no effect without --fast"
            print(f"mmtrain: {say}: forwards are of {FIXED_BATCH}", file=sys.stderr)
        return forward_size(self.batch_size or FAST_BATCH, fast=self.fast)


def eval_command(*, model: ModelOptions, evaluation: Evaluator, out: Path) -> None:
    """`mmtrain eval` of two towers, alone or under torchrun."""
    refuse_out(out)
    refuse_overwriting(option_words(evaluation), {"out": out})
    layout = join_ranks(model)
    build = partial(build_encoder, model, images_only=not evaluation.reads_texts, layout=layout)
    with waiting(model.retry_seconds), model.progress() as progress:
        inputs = on_every_rank(evaluation.open)
        encoder = on_every_rank(build)
        with on_all_ranks(encoder.group, encoder.device):
            result = evaluation.run(replace(encoder, progress=progress), inputs)
    if encoder.is_main:
        _tell(evaluation, result, speaker(model.quiet))
        write_result(out, model.recorded(result))
        speaker(model.quiet)(f"wrote {out}")
    leave_ranks()


def _tell(evaluation: Evaluator, result: EvalResult, say: Callable[[str], None]) -> None:
    for key, form in evaluation.shown.items():
        say(f"{key:16}{result.figures[key]:{form}}")
    if remark := evaluation.remark(result.figures):
        say(remark)


@dataclass(frozen=True, kw_only=True)
class EmbedOptions:
    """What is embedded, and how it is kept; see `embed`."""

    model: ModelOptions
    """What embeds."""
    data: tuple[str, ...]
    """Paths as data.train takes them."""
    image_key: str
    """As data.image_key."""
    out: Path
    """The folder."""
    form: PieceFormat
    """Of its files."""
    dtype: Literal["float16", "float32"]
    """Of the features in them."""
    piece: int
    """Samples of a file."""
    max_bad_fraction: float
    """How many samples of a piece may be bad."""
    part: tuple[int, int]
    """Which of n parts of the pieces."""


def embed_command(options: EmbedOptions) -> None:
    """`mmtrain embed`: image features into a folder; begun again, it goes on."""
    layout = join_ranks(options.model)
    build = partial(build_encoder, options.model, images_only=True, layout=layout)
    encoder = on_every_rank(build)
    say = speaker(options.model.quiet or not encoder.is_main)
    if isinstance(encoder.model, AnsweringTower):
        say(
            f"{options.model.path} answers questions: a row is the mean of its image tower's "
            "patches, and no text is in that space"
        )
    with options.model.progress() as progress:
        report = embed_data(options, encoder, progress=progress)
    tell_embedded(report, options, say)
    leave_ranks()


def embed_data(
    options: EmbedOptions, encoder: Encoder, *, progress: Callable[[int, int], None] | None = None
) -> EmbedReport:
    """Make the pieces that are asked for; see `embed`."""
    with waiting(options.model.retry_seconds):
        return embed(
            encoder,
            data=options.data,
            out=options.out,
            form=options.form,
            dtype=options.dtype,
            piece=options.piece,
            max_bad_fraction=options.max_bad_fraction,
            image_key=options.image_key,
            part=options.part,
            fetched=options.model.fetched,
            progress=progress,
        )


def tell_embedded(
    report: EmbedReport, options: EmbedOptions, say: Callable[[str], None] = print
) -> None:
    """Say what was made."""
    skipped = f", {report.num_skipped:,} skipped" if report.num_skipped else ""
    say(
        f"wrote {options.out}: {counted(report.num_rows, 'row')}{skipped}; {report.num_made} of "
        f"{counted(report.num_pieces, 'piece')} made now"
    )
    if options.part != WHOLE:
        say(
            f"these are part {options.part[0]}/{options.part[1]}; when all are there, the same "
            "command without --shard-range ends the folder"
        )


def refuse_out(out: Path) -> None:
    """Before anything is computed for it.

    Raises:
        UsageError: it is no .json.
    """
    if out.suffix != ".json":
        raise UsageError(f"out = {out} must end in .json")


def join_ranks(options: ModelOptions) -> Layout:
    """The device and the ranks that a model is run on; collective.

    Raises:
        UsageError: there is no such device, or it has no such precision.
    """
    device = pick_device(options.device, key="device")
    check_tf32(options.precision, device, key="precision")
    return build_layout(ParallelConfig(), device)


def build_encoder(
    options: ModelOptions, *, images_only: bool = False, layout: Layout | None = None
) -> Encoder:
    """The model, on the device and the ranks that it runs on.

    Args:
        options: which, and how it is run.
        images_only: no text is encoded, so that a model that answers will do too.
        layout: of the ranks, where they have met already.
    """
    layout = layout or join_ranks(options)
    path = model_folder(options.path, key="model")
    if images_only and is_vqa_folder(path):
        refuse_architecture(path, options.architecture)
        saved = load_vqa(path, layout.device)
        model, preprocess, tokenizer = (
            AnsweringTower(saved.model).eval(),
            saved.preprocess,
            saved.tokenizer,
        )
    else:
        model, transform, tokenizer = load(
            path, device=layout.device, architecture=options.architecture
        )
        preprocess = transform.config
    return Encoder(
        model=model,
        tokenizer=tokenizer,
        preprocess=preprocess,
        device=layout.device,
        precision=options.precision,
        batch_size=options.forward_size,
        workers=options.workers,
        group=layout.group("dp"),
    )
