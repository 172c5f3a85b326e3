"""What can be searched: the nearest by brute force, whatever the parts; what cannot be used."""

import json
import re
from collections.abc import Callable
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


def as_other_type(folder: Path) -> None:
    path = folder / "features-00001.npy"
    np.save(path, np.load(path).astype(np.float64))


def of_another_model(folder: Path) -> None:
    (folder.parent / "other").mkdir()
    other = write_embeddings(folder.parent / "other", tiny_clip().init_weights(5))
    (folder / "features-00001.npy").write_bytes((other / "features-00001.npy").read_bytes())


def cut(name: str, keep: float) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(len(content) * keep)])

    return damage


def holds(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text) and None


DAMAGE = [
    *(
        (cut(f"features-0000{n}.npy", keep), f"features-0000{n}.npy is cut")
        for n, keep in [(0, 0), (1, 0.2), (2, 0.98)]
    ),
    (cut("keys-00001.json", 0.5), "keys-00001.json is no JSON"),
    (holds("keys-00001.json", '{"a": 1, "b": 2, "c": 3}'), "keys-00001.json is no list of keys"),
    (holds("keys-00000.json", "[1, 2, 3]"), "keys-00000.json is no list of keys"),
    (lambda folder: (folder / "features-00002.npy").unlink(), "features-00002.npy"),
    (as_other_type, "features-00001.npy is of float64, not float16"),
]
"""What happens to a piece, and what is said of it."""


@pytest.mark.parametrize(("damage", "told"), DAMAGE)
def test_a_damaged_piece_is_named(tmp_path: Path, damage: Callable, told: str) -> None:
    model = tiny_clip()
    folder = write_embeddings(tmp_path, model)
    damage(folder)
    with pytest.raises(UsageError, match=re.escape(told)) as caught:
        open_index(tiny_encoder(model), [str(folder)])
    assert "into a new folder" in str(caught.value)
    missing = "unlink" in damage.__code__.co_names
    if missing:
        write_embeddings(tmp_path, model)
    else:
        with pytest.raises(UsageError, match=re.escape(told)):
            write_embeddings(tmp_path, model)
        (folder / re.findall(r"remove (\S+),", str(_refusal(tmp_path, model)))[0]).unlink()
        write_embeddings(tmp_path, model)
    assert open_index(tiny_encoder(model), [str(folder)]).num_images == COUNT


def _refusal(folder: Path, model: Clip) -> UsageError:
    with pytest.raises(UsageError) as caught:
        write_embeddings(folder, model)
    return caught.value


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"data": 1}', "null"])
def test_a_damaged_description_is_one_line(tmp_path: Path, text: str) -> None:
    model = tiny_clip()
    folder = write_embeddings(tmp_path, model)
    (folder / "embed.json").write_text(text)
    with pytest.raises(UsageError, match="cannot be read"):
        open_index(tiny_encoder(model), [str(folder)])
    assert "name a new folder" in str(_refusal(tmp_path, model))


def test_a_piece_of_another_model_is_refused(tmp_path: Path) -> None:
    model = tiny_clip()
    folder = write_embeddings(tmp_path, model)
    of_another_model(folder)
    with pytest.raises(UsageError, match=r"features-00001\.npy and its keys are not the piece"):
        open_index(tiny_encoder(model), [str(folder)])
    told = json.loads((folder / "embed.json").read_text())
    del told["digests"]  # as older ones are
    (folder / "embed.json").write_text(json.dumps(told))
    with pytest.raises(UsageError, match=r"not of this model in features-00001\.npy"):
        open_index(tiny_encoder(model), [str(folder)])
