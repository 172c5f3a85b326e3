"""A source whose samples have more than it holds itself."""

import contextlib
import hashlib
import json
from collections.abc import Collection, Iterator, Sequence
from typing import Any, Literal

import numpy as np

from mmtrain.data.fingerprint import join_fingerprint, split_fingerprint
from mmtrain.data.joins.keyed import AnyKeyed, KeyedShards, Row, open_keyed
from mmtrain.data.sample_error import SampleError
from mmtrain.data.shards.source import ShardSource
from mmtrain.data.sources.source import SampleSource
from mmtrain.data.storage.cache import Cache
from mmtrain.data.storage.piece import Piece
from mmtrain.data.work import COUNTER
from mmtrain.errors import UsageError
from mmtrain.files import parse_json

Missing = Literal["bad", "keep"]
NO_ROW = "nothing to join under its key"
"""Why a sample without a row cannot be used."""
_TEXT = "txt"
_NUM_PROBES = 64
"""Samples that are looked at, evenly spread, before the keys are found to be others."""


class JoinedSource:
    """Samples of a source, with what other places have under their keys.

    Fields come into the .json and files beside it, in the place of those of the same name; a field
    `txt` is the .txt, where it is a list as JSON.

    Args:
        source: the samples.
        paths: what is joined, each as `open_keyed` takes it, the later before the earlier.
        key_column: of tables and Parquet files.
        missing: whether a sample without a row is a bad one, or stays as it is.
        takes_lists: whether a .txt that is a list is several captions.
        index_dir: of joined shards.
        cache: of joined shards.

    Raises:
        UsageError: one cannot be read, or has none of the samples' keys.
    """

    def __init__(
        self,
        source: SampleSource,
        paths: Sequence[str],
        *,
        key_column: str,
        missing: Missing,
        takes_lists: bool = True,
        index_dir: str | None,
        cache: Cache | None = None,
    ) -> None:
        self.inner, self._missing, self._takes_lists = source, missing, takes_lists
        self._joins = [
            open_keyed(path, key_column=key_column, index_dir=index_dir, cache=cache)
            for path in paths
        ]
        self.num_samples, self.shard_sizes = source.num_samples, source.shard_sizes
        for join in self._joins:
            self._refuse_other_keys(join)
        self._refuse_keys_of_shards()

    @property
    def joins_shards(self) -> bool:
        """Whether any of what is joined has indexes."""
        return any(isinstance(join, KeyedShards) for join in self._joins)

    def _refuse_other_keys(self, join: AnyKeyed) -> None:
        probes = _probes(self.num_samples)
        if any(join.index.row(self.key(sample)) is not None for sample in probes):
            return
        raise UsageError(
            f"data.join = {join.path}: none of {len(probes)} samples looked at has a row there; "
            f"samples have keys such as {self.key(0)}, rows such as {join.row(0)[0]}; "
            "data.join_key names the column"
        )

    def _refuse_keys_of_shards(self) -> None:
        """Keys that begin anew in every shard: a row would go to a sample of each of them."""
        if not isinstance(self.inner, ShardSource):
            return
        starts = np.cumsum([0, *self.shard_sizes[:-1]])[np.array(self.shard_sizes) > 0]
        places = np.linspace(0, starts.size - 1, min(_NUM_PROBES, starts.size)).astype(int)
        found: dict[str, int] = {}
        for sample in starts[places].tolist():
            if (first := found.setdefault(self.key(sample), sample)) != sample:
                raise UsageError(
                    f"data.join = {self._joins[0].path}: {self.place(first)} and "
                    f"{self.place(sample)} both have a sample {self.key(first)}, and a row would "
                    "go to each; give every sample a key of its own, there and in what is joined"
                )

    def refuse_unread(self, read: Collection[str], *, told: str) -> None:
        """What is joined and read by nobody would leave a run as it is without a word.

        Args:
            read: the files, and the fields of the .json, that are read.
            told: which settings say so.

        Raises:
            UsageError: none of the rows looked at has any of them, and some has others.
        """
        for join in self._joins:
            given: dict[str, None] = {}
            for sample in _probes(self.num_samples):
                number = join.index.row(self.key(sample))
                with contextlib.suppress(SampleError):
                    given |= dict.fromkeys([] if number is None else _names(join.row(number)[1]))
            if given and given.keys().isdisjoint(read):
                raise UsageError(
                    f"data.join = {join.path} brings {', '.join(given)}, of which nothing is read: "
                    f"{told}; name one of them there, or leave the join out (where it only chooses "
                    "samples, leave nothing but their keys in it)"
                )

    @property
    def fingerprint(self) -> str:
        """Of the samples, and of what is joined."""
        layout, content = split_fingerprint(self.inner.fingerprint)
        digest = hashlib.blake2b(layout.encode(), digest_size=16)
        for join in self._joins:
            digest.update(f" {join.fingerprint}".encode())
        return join_fingerprint(digest.hexdigest(), content)

    def key(self, sample: int) -> str:
        """The sample's own."""
        return self.inner.key(sample)

    def place(self, sample: int) -> str:
        """Where the sample itself is."""
        return self.inner.place(sample)

    def read(self, sample: int, wanted: Collection[str] | None = None) -> dict[str, bytes]:
        """The sample's files, and those that are joined.

        Raises:
            SampleError: it cannot be used, or has no row.
            OSError: it cannot be read just now.
        """
        rows = [row for join in self._joins if (row := self._row(join, self.key(sample)))]
        files = self.inner.read(sample, wanted)
        fields: dict[str, Any] = {}
        for row in rows:
            fields |= row.fields
            files |= {k: v for k, v in row.files.items() if wanted is None or k in wanted}
        if _TEXT in fields:
            files.pop(_TEXT, None)
            text = self._text(fields.pop(_TEXT))
            files |= {_TEXT: text} if text and _is_wanted(_TEXT, wanted) else {}
        if fields and _is_wanted("json", wanted):
            files["json"] = _merged(files.get("json"), fields)
        return files

    def _text(self, value: Any) -> bytes:
        """The .txt of a joined field: a text, or a list of them; empty where it is neither.

        Raises:
            SampleError: it is a list, and a text is read as one caption.
        """
        if isinstance(value, list):
            texts = [text for text in value if isinstance(text, str)]
            if texts and not self._takes_lists:
                told = "data.caption_lines = false takes a text for one caption"
                raise SampleError("joined txt is a list", detail=told)
            value = json.dumps(texts) if texts else ""
        return value.encode("utf-8", "replace") if isinstance(value, str) else b""

    def pieces(self, sample: int, wanted: Collection[str] | None) -> list[Piece] | None:
        """As `ShardSource.pieces`, of shards: none of a sample that has no row and so is not
        read."""
        if not isinstance(self.inner, ShardSource):
            return []
        pieces = self.inner.pieces(sample, wanted)
        if pieces and self._missing == "bad":
            key = self.key(sample)
            if any(join.index.row(key) is None for join in self._joins):
                return []
        return pieces

    def _row(self, join: AnyKeyed, key: str) -> Row | None:
        number = join.index.row(key)
        if number is not None:
            own, row = join.row(number)
            if own == key:
                return row
        if self._missing == "bad":
            raise SampleError(NO_ROW, detail=join.path)
        COUNTER.missed()
        return None


def _probes(num_samples: int) -> list[int]:
    """Some samples, evenly spread."""
    num = min(_NUM_PROBES, num_samples)
    return np.linspace(0, num_samples - 1, num).astype(int).tolist()


def _names(row: Row) -> Iterator[str]:
    """What a row brings; a file of features by its name alone, as settings have it."""
    yield from row.fields
    yield from (name.removesuffix(".npy") for name in row.files)


def _is_wanted(name: str, wanted: Collection[str] | None) -> bool:
    return wanted is None or name in wanted


def _merged(content: bytes | None, fields: dict[str, Any]) -> bytes:
    try:
        own = {} if content is None else parse_json(content)
    except ValueError as error:
        raise SampleError("json invalid") from error
    if not isinstance(own, dict):
        raise SampleError("json invalid")
    return json.dumps(own | fields, default=str).encode()
