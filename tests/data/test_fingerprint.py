"""Checksums that come later make no other data of a run's; other contents do."""

import json
from pathlib import Path

import pytest

from mmtrain.data.numbered import NumberedData
from mmtrain.data.shards.check import index_shards
from mmtrain.errors import UsageError
from mmtrain.eval.features.embed_folder import DONE_FILE, EmbedFolder
from mmtrain.train.state import Identity
from tests.data.shard_files import build_data, pairs, write_set, write_shard


def identity(data: NumberedData) -> Identity:
    return Identity(
        seed=1, batch_size=4, num_samples=data.num_samples, data_fingerprint=data.fingerprint
    )


def rewrite(train: str) -> None:
    """The second shard with another caption of the same length, indexed with checksums again."""
    samples = pairs(6, 5)
    samples[0][1]["txt"] = samples[0][1]["txt"].replace("picture", "picturE")
    write_shard(Path(train).parent / "001.tar", samples)
    index_shards(train)


def test_a_checkpoint_fits_as_long_as_nothing_known_differs(tmp_path: Path):
    train = write_set(tmp_path / "train", (6, 5))
    bare = identity(build_data(train))
    index_shards(train)
    whole = identity(build_data(train))
    for one in (bare, whole):
        for other in (bare, whole):
            one.check(vars(other), tmp_path)
    assert build_data(train, shuffle_group=1).fingerprint != whole.data_fingerprint
    rewrite(train)
    changed = identity(build_data(train))
    changed.check(vars(bare), tmp_path)
    with pytest.raises(UsageError, match=r"fingerprint of data.train = .*was saved with"):
        changed.check(vars(whole), tmp_path)


def test_embeddings_go_on_after_checksums_were_made(tmp_path: Path):
    train = write_set(tmp_path / "train", (6, 5))
    job = dict.fromkeys(("num_samples", "piece", "model_fingerprint", "preprocess", "precision"))
    job |= {"dtype": "float16", "format": "npy"}

    def begin() -> None:
        told = job | {"data_fingerprint": build_data(train).source.fingerprint}
        EmbedFolder(path=tmp_path / "out", job=told, num_pieces=1).begin()

    begin()
    index_shards(train)
    begin()
    (tmp_path / "out" / DONE_FILE).write_text(
        json.dumps(job | {"data_fingerprint": build_data(train).source.fingerprint})
    )
    rewrite(train)
    with pytest.raises(UsageError, match="made with another data_fingerprint"):
        begin()
