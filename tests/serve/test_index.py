"""What can be searched: the nearest by brute force, whatever the parts; what cannot be used."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mmtrain.data.images.transforms import eval_transform
from mmtrain.data.shards.source import ShardSource
from mmtrain.errors import UsageError
from mmtrain.eval.encode import encode_texts
from mmtrain.eval.features.embed import embed
from mmtrain.eval.samples import decode_sample
from mmtrain.models import Clip
from mmtrain.serve import index as index_module
from mmtrain.serve.index import ImageIndex, embed_now, open_index
from tests.data.shard_files import write_shard
from tests.serve.tiny import COUNT, tiny_clip, tiny_encoder, write_pictures


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_the_nearest_of_all_parts(tmp_path: Path, monkeypatch, dtype):
    monkeypatch.setattr(index_module, "_BLOCK", 2)
    source = ShardSource(str(write_pictures(tmp_path / "a.tar")))
    features = np.eye(4, dtype=dtype)[[0, 1, 2, 1, 3, 1, 0]]
    index = ImageIndex(source, [features[:3], features[3:]], np.arange(COUNT))
    query = torch.tensor([0.6, 0.8, 0.0, 0.0])
    found = index.nearest(query, 4)
    assert [number for number, _ in found] == [1, 3, 5, 0]
    assert [cosine for _, cosine in found] == pytest.approx([0.8, 0.8, 0.8, 0.6])
    assert len(index.nearest(query, 100)) == COUNT


def test_embedding_now_leaves_out_what_is_no_picture(tmp_path: Path, capsys):
    model = tiny_clip()
    path = write_pictures(tmp_path / "a.tar", broken=(1, 4))
    index = embed_now(tiny_encoder(model), [str(path)])
    assert index.num_images == COUNT - 2
    told = capsys.readouterr().err
    assert "left out 2 images" in told and "no image that Pillow reads" in told

    # Number 3 of the index is sample 5 of the shard: its caption, its picture and its feature.
    assert index.caption(3) == "picture 5"
    pixels = eval_transform(tiny_encoder(model).preprocess)(decode_sample(index.members(3)))
    with torch.no_grad():
        feature = model.encode_image(pixels[None])[0]
    number, cosine = index.nearest(feature, 1)[0]
    assert number == 3 and cosine == pytest.approx(1.0, abs=1e-5)


def test_no_picture_at_all(tmp_path: Path):
    path = write_pictures(tmp_path / "a.tar", broken=tuple(range(COUNT)))
    with pytest.raises(UsageError, match=r"index = .*a\.tar: no image can be used"):
        embed_now(tiny_encoder(tiny_clip()), [str(path)])


def test_nothing_there(tmp_path: Path):
    with pytest.raises(UsageError, match=r"index = .*nowhere\.tar: the shard does not exist"):
        embed_now(tiny_encoder(tiny_clip()), [str(tmp_path / "nowhere.tar")])


def write_embeddings(folder: Path, model: Clip, *, skip: tuple[int, ...] = ()) -> Path:
    """A shard in pieces of three samples, and these of float16."""
    shard, out = write_pictures(folder / "a.tar", broken=skip), folder / "embeddings"
    embed(tiny_encoder(model), data=[str(shard)], out=out, piece=3)
    return out


@pytest.mark.parametrize("skip", [(), (0, 4)])
def test_embeddings_on_disk_are_those_made_now(tmp_path: Path, skip: tuple[int, ...]):
    model = tiny_clip()
    folder = write_embeddings(tmp_path, model, skip=skip)
    encoder = tiny_encoder(model)
    read = open_index(encoder, [str(folder)])
    made = open_index(encoder, [str(tmp_path / "a.tar")])
    kept = [number for number in range(COUNT) if number not in skip]
    assert read.num_images == len(kept)
    assert [read.caption(row) for row in range(len(kept))] == [f"picture {n}" for n in kept]
    query = encode_texts(encoder, ["a red car"])[0]
    expected, got = (index.nearest(query, COUNT) for index in (made, read))
    assert [row for row, _ in got] == [row for row, _ in expected]
    assert [x for _, x in got] == pytest.approx([x for _, x in expected], abs=2e-3)


def test_embeddings_of_something_else(tmp_path: Path):
    model = tiny_clip()
    folder = write_embeddings(tmp_path, model)
    other = tiny_clip().init_weights(5)
    with pytest.raises(UsageError, match="its features are not of this model"):
        open_index(tiny_encoder(other), [str(folder)])
    with pytest.raises(UsageError, match=r"its rows are not of .* as it is now"):
        write_shard(tmp_path / "a.tar", [("other", {"txt": "x"})])
        open_index(tiny_encoder(model), [str(folder)])
    (folder / "keys-00001.json").write_text("[]")
    with pytest.raises(UsageError, match=r"features-00001\.npy holds no features with"):
        open_index(tiny_encoder(model), [str(folder)])
    np.save(folder / "features-00000.npy", np.array([object()]), allow_pickle=True)
    with pytest.raises(UsageError, match="cannot be read"):
        open_index(tiny_encoder(model), [str(folder)])
    (folder / "embed.json").rename(folder / "embed.partial.json")
    with pytest.raises(UsageError, match="is not finished; go on with mmtrain embed"):
        open_index(tiny_encoder(model), [str(folder)])
