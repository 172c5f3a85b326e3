"""Image features of whole data sets on disk, piece by piece, so that a long job can go on.

    OUT/features-00000.npy    [n, E] unit-norm features of the images of a piece
    OUT/keys-00000.json       the samples' keys, a row each
    OUT/skipped-00000.json    samples of the piece without a row, and why; only if there are any
    OUT/embed.json            what was embedded with what; there when all is done

Rows are in the order of the data. A piece holds the same rows, to the last bit, however many ranks
there are and however often the job was begun again.
"""

import contextlib
import hashlib
import io
import json
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from mmtrain.collectives import rank_and_size, sum_
from mmtrain.data.sources import SampleSource
from mmtrain.errors import UsageError
from mmtrain.eval.encode import Encoder, encode_image_batch
from mmtrain.eval.result import provenance
from mmtrain.eval.samples import (
    EvalBatch,
    EvalBatches,
    Fault,
    Members,
    made_ahead,
    open_source,
    refuse_on_all_ranks,
    spans,
)
from mmtrain.files import replace_file

MadeT = TypeVar("MadeT")

DONE_FILE = "embed.json"
PARTIAL_FILE = "embed.partial.json"
_AT_LEAST = 1000
"""Samples that the limit of skipped ones is a fraction of, at least."""


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A sample without a row."""

    key: str
    """The sample's key."""
    reason: str
    """Why it has none."""


@dataclass(frozen=True, kw_only=True)
class EmbedReport:
    """What a call did, the same on every rank."""

    num_rows: int
    """Rows of all pieces."""
    num_skipped: int
    """Samples without a row."""
    num_pieces: int
    """Pieces of the whole set."""
    num_made: int
    """Pieces made by this call; the others were there."""


@torch.no_grad()
def embed(
    encoder: Encoder,
    *,
    data: str | Sequence[str] | SampleSource,
    out: Path,
    dtype: Literal["float16", "float32"] = "float16",
    piece: int = 1 << 16,
    max_bad_fraction: float = 0.01,
    index_dir: str | None = None,
) -> EmbedReport:
    """Write the image features of every sample into the folder `out`, or what of them is missing.

    Args:
        encoder: the model and the ranks that share the work: piece by piece.
        data: shards or whatever else data.train takes.
        out: a new folder, or one that this job began in.
        dtype: of the features on disk.
        piece: samples of a piece; what an interrupted job loses at most on every rank.
        max_bad_fraction: how many samples of a piece (of 1000, where it has fewer) may be bad; they
            have no row.
        index_dir: where the shards' indexes are kept.

    Raises:
        UsageError: on every rank: unreadable data, too many bad samples, features that are no
            numbers, a folder of another job or of other things.
    """
    if piece < 1:
        raise UsageError(f"piece = {piece} must be at least 1")
    source = open_source(data, index_dir)
    job = _describe(encoder, source, data, dtype=dtype, piece=piece)
    pieces = spans(source.num_samples, piece)
    missing = _begin(encoder, out, job, len(pieces))
    writer = _PieceWriter(encoder, source, out, dtype=dtype, max_bad_fraction=max_bad_fraction)
    rank, ranks = rank_and_size(encoder.group)
    own = missing[rank::ranks]
    with contextlib.closing(writer.batches([pieces[number] for number in own])) as batches:
        for first in range(0, len(missing), ranks):
            together = missing[first : first + ranks]
            number = together[rank] if rank < len(together) else None
            # A sharded model's passes are collective: as many on every rank.
            passes = max(-(-len(pieces[each]) // encoder.batch_size) for each in together)
            writer.write(number, None if number is None else pieces[number], batches, passes)
    return _finish(encoder, out, job, num_pieces=len(pieces), num_made=len(missing))


class _PieceWriter:
    """Makes one piece after another."""

    def __init__(
        self,
        encoder: Encoder,
        source: SampleSource,
        out: Path,
        *,
        dtype: str,
        max_bad_fraction: float,
    ) -> None:
        self._encoder, self._source, self._out = encoder, source, out
        self._dtype, self._max_bad_fraction = dtype, max_bad_fraction
        self._blank: EvalBatch[None] = EvalBatches(
            source, encoder.preprocess, read_value=_nothing, spans=[]
        ).blank()

    def batches(self, pieces: Sequence[range]) -> Generator[EvalBatch[None], None, None]:
        """The batches of some pieces; none holds samples of two."""
        size = self._encoder.batch_size
        every = [
            range(piece.start + each.start, piece.start + each.stop)
            for piece in pieces
            for each in spans(len(piece), size)
        ]
        made = EvalBatches(self._source, self._encoder.preprocess, read_value=_nothing, spans=every)
        with contextlib.closing(made_ahead(self._encoder, made)) as batches:
            yield from batches

    def write(
        self,
        number: int | None,
        piece: range | None,
        batches: Iterator[EvalBatch[None]],
        passes: int,
    ) -> None:
        """One round of all ranks, each with a piece of its own or with none."""
        own = 0 if piece is None else -(-len(piece) // self._encoder.batch_size)
        rows: list[Tensor] = []
        keys: list[str] = []
        skipped: list[Skipped] = []
        for turn in range(passes):
            batch = next(batches) if turn < own else self._blank
            features_BE = encode_image_batch(self._encoder, batch.images_BCHW)
            kept = self._kept(batch) if turn < own else []
            rows.append(features_BE[kept])
            keys += [self._source.key(batch.first + row) for row in kept]
            skipped += [
                Skipped(key=self._source.key(batch.first + each.row), reason=each.reason)
                for each in batch.faults
                if each.is_bad_sample
            ]
            self._refuse(batch.faults, rows[-1], skipped, piece)
        told: list[str] = []
        if number is not None:
            try:
                self._save(number, torch.cat(rows).cpu().numpy(), keys, skipped)
            except OSError as error:
                told.append(f"out = {self._out} cannot be written: {error.strerror}")
        refuse_on_all_ranks(self._encoder, told, key="embed", remedy="mend that and go on")

    def _kept(self, batch: EvalBatch[None]) -> list[int]:
        bad = {fault.row for fault in batch.faults}
        return [row for row in range(len(batch.images_BCHW)) if row not in bad]

    def _refuse(
        self,
        faults: Sequence[Fault],
        rows_BE: Tensor,
        skipped: Sequence[Skipped],
        piece: range | None,
    ) -> None:
        told = [str(fault) for fault in faults if not fault.is_bad_sample]
        if not bool(rows_BE.isfinite().all()):
            told.append("image features are not finite: the weights or the precision overflow")
        allowed = self._max_bad_fraction * max(_AT_LEAST, 0 if piece is None else len(piece))
        if len(skipped) > allowed:
            last = skipped[-1]
            told.append(
                f"{len(skipped)} samples of a piece are bad, the last is {last.key} "
                f"({last.reason}), above max_bad_fraction = {self._max_bad_fraction:g}"
            )
        refuse_on_all_ranks(self._encoder, told, key="data", remedy="mend that and go on")

    def _save(
        self, number: int, features: np.ndarray, keys: list[str], skipped: list[Skipped]
    ) -> None:
        """The features last: a piece that has them is whole."""
        _write_json(_path(self._out, "keys", number), keys)
        if skipped:
            _write_json(_path(self._out, "skipped", number), [asdict(each) for each in skipped])
        buffer = io.BytesIO()
        np.save(buffer, features.astype(self._dtype), allow_pickle=False)
        replace_file(_path(self._out, "features", number), buffer.getvalue())


def _nothing(_: Members) -> None:
    """For images alone."""


def _path(out: Path, what: str, number: int) -> Path:
    return out / f"{what}-{number:05d}.{'npy' if what == 'features' else 'json'}"


def _write_json(path: Path, content: Any) -> None:
    replace_file(path, json.dumps(content, indent=1) + "\n")


def _describe(
    encoder: Encoder,
    source: SampleSource,
    data: str | Sequence[str] | SampleSource,
    *,
    dtype: str,
    piece: int,
) -> dict[str, Any]:
    """What a folder of embeddings says of itself."""
    named = [data] if isinstance(data, str) else list(data) if isinstance(data, Sequence) else []
    return {
        "data": named,
        "num_samples": source.num_samples,
        "piece": piece,
        "dtype": dtype,
        "model_fingerprint": weights_fingerprint(encoder.model),
        **provenance(encoder, source),
    }


_SAME_JOB = (
    "num_samples",
    "piece",
    "dtype",
    "model_fingerprint",
    "data_fingerprint",
    "preprocess",
    "precision",
)
"""With any of these changed, a piece would hold something else."""


def _begin(encoder: Encoder, out: Path, job: dict[str, Any], num_pieces: int) -> list[int]:
    """Make the folder, or find out what it lacks: the pieces to make. Collective."""

    def begin() -> list[int] | str:
        try:
            return _missing(out, job, num_pieces)
        except OSError as error:
            return f"out = {out} cannot be written: {error.strerror}"
        except UsageError as error:
            return str(error)

    found = _from_rank_0(encoder, begin)
    if isinstance(found, str):
        raise UsageError(found)
    return found


def _missing(out: Path, job: dict[str, Any], num_pieces: int) -> list[int]:
    described = next(
        (out / name for name in (DONE_FILE, PARTIAL_FILE) if (out / name).is_file()), None
    )
    if described is None:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UsageError(f"out = {out} holds other things already; name a new folder")
        out.mkdir(parents=True, exist_ok=True)
        _write_json(out / PARTIAL_FILE, job)
        return list(range(num_pieces))
    try:
        before = json.loads(described.read_text(encoding="utf-8"))
        other = [key for key in _SAME_JOB if before.get(key) != job[key]]
    except (ValueError, AttributeError) as error:
        raise UsageError(f"{described} is damaged ({error}); name a new folder") from error
    if other:
        raise UsageError(
            f"out = {out} holds embeddings made with another {', '.join(other)}; name a new folder"
        )
    return [number for number in range(num_pieces) if not _path(out, "features", number).is_file()]


def _finish(
    encoder: Encoder, out: Path, job: dict[str, Any], *, num_pieces: int, num_made: int
) -> EmbedReport:
    """Seal the folder once every rank has written its pieces. Collective."""
    sum_(torch.zeros(1, device=encoder.device), group=encoder.group)

    def finish() -> EmbedReport:
        files = [_path(out, "skipped", number) for number in range(num_pieces)]
        num_skipped = sum(
            len(json.loads(file.read_text(encoding="utf-8"))) for file in files if file.is_file()
        )
        report = EmbedReport(
            num_rows=job["num_samples"] - num_skipped,
            num_skipped=num_skipped,
            num_pieces=num_pieces,
            num_made=num_made,
        )
        counts = {key: value for key, value in asdict(report).items() if key != "num_made"}
        _write_json(out / DONE_FILE, job | counts)
        (out / PARTIAL_FILE).unlink(missing_ok=True)
        return report

    return _from_rank_0(encoder, finish)


def _from_rank_0(encoder: Encoder, make: Callable[[], MadeT]) -> MadeT:
    """What the main rank makes, on every rank."""
    if encoder.group is None:
        return make()
    held: list[Any] = [make() if encoder.is_main else None]
    dist.broadcast_object_list(held, dist.get_global_rank(encoder.group, 0), group=encoder.group)
    return held[0]


def weights_fingerprint(model: object) -> str | None:
    """Of all parameters and buffers; None for a model that has no such. Collective if sharded."""
    if not isinstance(model, nn.Module):
        return None
    hashed = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        whole = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
        hashed.update(f"{name} {whole.dtype} {list(whole.shape)}\n".encode())
        hashed.update(whole.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return hashed.hexdigest()
