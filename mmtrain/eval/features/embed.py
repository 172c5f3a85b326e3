"""Image features of whole data sets on disk, piece by piece, so that a long job can go on.

Rows are in the order of the data. A piece holds the same rows, to the last bit, however many ranks
there are and however often the job was begun again. The files: embed_folder.py.
"""

import contextlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from mmtrain.collectives import rank_and_size, sum_
from mmtrain.data.config import DataConfig
from mmtrain.data.feature_files import PieceFormat, require_parquet
from mmtrain.data.sources.open import open_source
from mmtrain.data.sources.source import SampleSource
from mmtrain.errors import UsageError
from mmtrain.eval.encode import Encoder, encode_image_batch
from mmtrain.eval.features.embed_folder import EmbedFolder, Skipped
from mmtrain.eval.result import provenance
from mmtrain.eval.samples import (
    EvalBatch,
    EvalBatches,
    Members,
    made_ahead,
    refuse_on_all_ranks,
    spans,
)
from mmtrain.settings.numbers import WHOLE, refuse_empty_part

ResultT = TypeVar("ResultT")

_AT_LEAST = 1000
"""Samples that the limit of skipped ones is a fraction of, at least."""


@dataclass(frozen=True, kw_only=True)
class EmbedReport:
    """What a call did, the same on every rank."""

    num_rows: int
    """Rows of all pieces, or of those of the part."""
    num_skipped: int
    """Samples of these without a row."""
    num_pieces: int
    """How many pieces these are."""
    num_made: int
    """Pieces made by this call; the others were there."""


@torch.no_grad()
def embed(
    encoder: Encoder,
    *,
    data: str | Sequence[str] | SampleSource,
    out: Path,
    dtype: Literal["float16", "float32"] = "float16",
    form: PieceFormat = "npy",
    piece: int = 1 << 16,
    max_bad_fraction: float = 0.01,
    index_dir: str | None = None,
    image_key: str = DataConfig.image_key,
    part: tuple[int, int] = WHOLE,
    fetched: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> EmbedReport:
    """Write the image features of every sample into the folder `out`, or what of them is missing.

    Args:
        encoder: the model and the ranks that share the work, piece by piece.
        data: shards or whatever else data.train takes.
        out: a new folder, or one that this job was begun in.
        dtype: of the features on disk.
        form: of the pieces' files: numpy's, or Parquet (extra `parquet`).
        piece: samples of a piece, which is what an interruption loses on each rank.
        max_bad_fraction: how many samples of a piece (of 1000, where it has fewer) may be bad; they
            have no row.
        index_dir: where the shards' indexes are kept.
        image_key: the column of the images in a manifest or a saved data set.
        part: number and count of equal parts of the pieces, of which one is made. Who makes all,
            or finds them all there, says so in the folder.
        fetched: the hub's address of the model, at its commit, which embed.json then has.
        progress: told how many images are through, those of pieces that are there too, of how many.

    Raises:
        UsageError: on every rank: unreadable data, too many bad samples, features that are no
            numbers, a folder of another job or of other things.
    """
    if piece < 1:
        raise UsageError(f"piece = {piece} must be at least 1")
    if form == "parquet":
        require_parquet("format = parquet")
    source = open_source(data, index_dir=index_dir, image_key=image_key, key="data")
    pieces = spans(source.num_samples, piece)
    refuse_empty_part(part, len(pieces), "pieces, see --piece")
    numbers = range(part[0], len(pieces), part[1])
    folder = EmbedFolder(
        path=out,
        job={
            "data": _names(data),
            "image_key": image_key,
            "num_samples": source.num_samples,
            "piece": piece,
            "dtype": dtype,
            "format": form,
            **_weights(encoder, source, fetched),
        },
        num_pieces=len(pieces),
    )
    missing = [n for n in _on_main_rank(encoder, folder.begin) if n in numbers]
    total = sum(len(pieces[number]) for number in numbers)
    behind = total - sum(len(pieces[number]) for number in missing)
    maker = _PieceMaker(encoder, source, folder, max_bad_fraction=max_bad_fraction)
    _make_missing(
        maker,
        {n: pieces[n] for n in missing},
        say=lambda done: _say(progress, behind + done, total),
    )
    end = folder.finish if part == WHOLE else partial(folder.num_skipped, numbers)
    num_skipped = _on_main_rank(encoder, end)
    return EmbedReport(
        num_rows=sum(len(pieces[number]) for number in numbers) - num_skipped,
        num_skipped=num_skipped,
        num_pieces=len(numbers),
        num_made=len(missing),
    )


def _make_missing(
    maker: "_PieceMaker", missing: Mapping[int, range], *, say: Callable[[int], None]
) -> None:
    """Each rank its share of the pieces, by number; `say` is told how many images are through."""
    rank, ranks = rank_and_size(maker.encoder.group)
    numbers, through = list(missing), 0
    with contextlib.closing(maker.batches([missing[n] for n in numbers[rank::ranks]])) as batches:
        for first in range(0, len(numbers), ranks):
            together = numbers[first : first + ranks]
            number = together[rank] if rank < len(together) else None
            # A sharded model's passes are collective: as many on every rank.
            passes = max(maker.num_batches(missing[each]) for each in together)
            span = range(0) if number is None else missing[number]
            for turn in maker.make(number, span, batches, passes):
                size = turn * maker.encoder.batch_size
                say(through + sum(min(size, len(missing[each])) for each in together))
            through += sum(len(missing[each]) for each in together)


class _PieceMaker:
    """Makes one piece after another, in rounds of all ranks."""

    def __init__(
        self,
        encoder: Encoder,
        source: SampleSource,
        folder: EmbedFolder,
        *,
        max_bad_fraction: float,
    ) -> None:
        self.encoder, self._source, self._folder = encoder, source, folder
        self._max_bad_fraction = max_bad_fraction

    def num_batches(self, piece: range) -> int:
        """Forward passes that a piece takes."""
        return -(-len(piece) // self.encoder.batch_size)

    def batches(self, pieces: Sequence[range]) -> Generator[EvalBatch[None], None, None]:
        """The batches of some pieces; none holds samples of two."""
        every = [
            range(piece.start + each.start, piece.start + each.stop)
            for piece in pieces
            for each in spans(len(piece), self.encoder.batch_size)
        ]
        return made_ahead(self.encoder, self._batches(every))

    def _batches(self, every: Sequence[range]) -> EvalBatches[None]:
        preprocess = self.encoder.preprocess
        return EvalBatches(self._source, preprocess, read_value=_nothing, names=(), spans=every)

    def make(
        self, number: int | None, piece: range, batches: Iterator[EvalBatch[None]], passes: int
    ) -> Iterator[int]:
        """Write one piece -> the passes done, after each; a rank without one takes part in the
        round.

        Args:
            number: of the piece.
            piece: its samples.
            batches: of this and the following pieces.
            passes: forward passes of the round.
        """
        rows: list[Tensor] = []
        keys: list[str] = []
        skipped: list[Skipped] = []
        left, blank = self.num_batches(piece), self._batches(()).blank()
        for turn in range(passes):
            batch = next(batches) if turn < left else blank
            features_BE = encode_image_batch(self.encoder, batch.images_BCHW)
            bad = {fault.row for fault in batch.faults}
            kept = [row for row in range(len(features_BE)) if turn < left and row not in bad]
            rows.append(features_BE[kept])
            keys += [self._source.key(batch.first + row) for row in kept]
            skipped += [
                self._skipped(batch.first + fault.row, fault.reason)
                for fault in batch.faults
                if fault.is_bad_sample
            ]
            self._refuse(batch, rows[-1], skipped, len(piece))
            yield turn + 1
        self._save(number, rows, keys, skipped)

    def _skipped(self, sample: int, reason: str) -> Skipped:
        key, place = self._source.key(sample), self._source.place(sample)
        return Skipped(key=key, place=place, reason=reason)

    def _refuse(
        self, batch: EvalBatch[None], rows_BE: Tensor, skipped: Sequence[Skipped], size: int
    ) -> None:
        told = [str(fault) for fault in batch.faults if not fault.is_bad_sample]
        if not bool(rows_BE.isfinite().all()):
            told.append("image features are not finite: the weights or the precision overflow")
        if skipped and self._max_bad_fraction == 0:
            told.append(f"sample {skipped[-1].key} of {skipped[-1].place}: {skipped[-1].reason}")
        elif len(skipped) > self._max_bad_fraction * max(_AT_LEAST, size):
            told.append(
                f"{len(skipped)} samples of a piece are bad, the last is {skipped[-1].key} "
                f"in {skipped[-1].place} ({skipped[-1].reason}), above max_bad_fraction = "
                f"{self._max_bad_fraction:g}"
            )
        refuse_on_all_ranks(self.encoder, told, key="data", remedy="mend that and go on")

    def _save(
        self, number: int | None, rows: list[Tensor], keys: list[str], skipped: list[Skipped]
    ) -> None:
        told: list[str] = []
        if number is not None:
            try:
                self._folder.save(number, torch.cat(rows).cpu().numpy(), keys, skipped)
            except OSError as error:
                told.append(f"it cannot be written: {error.strerror}")
        key = f"out = {self._folder.path}"
        refuse_on_all_ranks(self.encoder, told, key=key, remedy="mend that and go on")


def _say(progress: Callable[[int, int], None] | None, done: int, of: int) -> None:
    if progress is not None:
        progress(done, of)


def _weights(encoder: Encoder, source: SampleSource, fetched: str | None) -> dict[str, Any]:
    """What the features are of, and where from."""
    address = {} if fetched is None else {"model": fetched}
    return {**address, **provenance(encoder, source)}


def _nothing(_: Members) -> None:
    """For images alone."""


def _names(data: str | Sequence[str] | SampleSource) -> list[str]:
    """What opens the data again; nothing for a source that was opened already."""
    if isinstance(data, str):
        return [data]
    return list(data) if isinstance(data, Sequence) else []


def _on_main_rank(encoder: Encoder, make: Callable[[], ResultT]) -> ResultT:
    """What the main rank makes, on every rank, and its mistakes too.

    Raises:
        UsageError: raised by `make`, or a file cannot be written.
    """
    held: list[Any] = [None, None]
    if encoder.is_main:
        try:
            held[0] = make()
        except UsageError as error:
            held[1] = str(error)
        except OSError as error:
            held[1] = f"{error.filename or 'the data'}: {error.strerror or error}"
    if encoder.group is not None:
        # Not before every rank has written what it had to.
        sum_(torch.zeros(1, device=encoder.device), group=encoder.group)
        source = dist.get_global_rank(encoder.group, 0)
        dist.broadcast_object_list(held, source, group=encoder.group)
    if held[1] is not None:
        raise UsageError(held[1])
    return held[0]
