"""Features on disk: complete, in order, resumable, the same over ranks."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from pyarrow import parquet
from torch import nn

from mmtrain.data.sources.open import open_source
from mmtrain.errors import UsageError
from mmtrain.eval.encode import encode_image_batch
from mmtrain.eval.features import embed_folder
from mmtrain.eval.features.embed import embed
from mmtrain.eval.features.embed_folder import _SAME_JOB, PARTIAL_FILE, EmbedFolder
from mmtrain.eval.samples import EvalBatches, spans
from mmtrain.serve.index import read_embeddings
from tests.data.shard_files import encoded, picture, write_shard
from tests.eval.tiny import LinearTowers, image_features, make_encoder, write_classified


def read_rows(folder: Path) -> tuple[np.ndarray, list[str]]:
    paths = sorted(folder.glob("features-*.npy"))
    keys: list[str] = []
    for path in sorted(folder.glob("keys-*.json")):
        keys += json.loads(path.read_text())
    return np.concatenate([np.load(path) for path in paths]), keys


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize(("piece", "num_pieces"), [(5, 3), (13, 1), (100, 1)])
def test_every_sample_has_its_row_and_key(tmp_path: Path, piece: int, num_pieces: int) -> None:
    data = write_classified(tmp_path / "a.tar", 13, num_classes=3)
    out = tmp_path / "deep" / "out"
    report = embed(make_encoder(), data=str(data), out=out, piece=piece, dtype="float32")
    assert (report.num_rows, report.num_skipped) == (13, 0)
    assert (report.num_pieces, report.num_made) == (num_pieces, num_pieces)
    rows, keys = read_rows(out)
    assert rows.dtype == np.float32
    assert np.allclose(rows, image_features(data).numpy(), atol=1e-6)
    assert keys == [f"{number:05d}" for number in range(13)]
    said = json.loads((out / "embed.json").read_text())
    assert (said["num_rows"], said["data"], said["dtype"]) == (13, [str(data)], "float32")
    assert said["data_fingerprint"] and said["versions"] and said["preprocess"]
    names = {path.name for path in out.iterdir()}
    assert len(names) == 2 * num_pieces + 1


@pytest.mark.parametrize("form", ["npy", "parquet"])
def test_the_page_to_play_with_searches_what_was_written(tmp_path: Path, form) -> None:
    data = write_classified(tmp_path / "a.tar", 13, num_classes=3)
    encoder = make_encoder()
    embed(encoder, data=str(data), out=tmp_path / "out", piece=5, form=form)
    index = read_embeddings(encoder, tmp_path / "out")
    assert index.num_images == 13
    features = image_features(data).float()
    assert [index.nearest(features[number], 1)[0][0] for number in range(13)] == list(range(13))


def test_parquet_holds_the_same_rows_and_keys(tmp_path: Path) -> None:
    """As any reader of Parquet sees them; the features to the last bit."""
    data = write_with_bad(tmp_path / "a.tar", 9, {4})
    for form in ("npy", "parquet"):
        embed(make_encoder(), data=data, out=tmp_path / form, piece=5, form=form)
    paths = sorted((tmp_path / "parquet").glob("features-*.parquet"))
    tables = [parquet.read_table(path) for path in paths]
    assert [table.num_rows for table in tables] == [4, 4]
    keys = [key for table in tables for key in table["key"].to_pylist()]
    rows = np.array([row for table in tables for row in table["features"].to_pylist()])
    wanted, wanted_keys = read_rows(tmp_path / "npy")
    assert wanted.dtype == np.float16
    assert keys == wanted_keys and np.array_equal(rows.astype(np.float16), wanted)
    paths[0].unlink()
    job: dict[str, Any] = {"data": data, "out": tmp_path / "parquet", "piece": 5}
    assert embed(make_encoder(), **job, form="parquet").num_made == 1
    with pytest.raises(UsageError, match=r"made with another format"):
        embed(make_encoder(), **job)


def test_damaged_parquet_is_one_line(tmp_path: Path) -> None:
    data = str(write_classified(tmp_path / "a.tar", 4, num_classes=3))
    out = tmp_path / "out"
    embed(make_encoder(), data=data, out=out, form="parquet")
    path = out / "features-00000.parquet"
    whole = path.read_bytes()
    parquet.write_table(parquet.read_table(path, columns=["key"]), path)
    for content in (whole[:-9], b"", path.read_bytes()):
        path.write_bytes(content)
        with pytest.raises(UsageError, match=r"index = .* cannot be read .*embed the data again"):
            read_embeddings(make_encoder(), out)


def test_parquet_without_the_library_names_the_extra(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"format = parquet needs .*mmtrain\[parquet\]"):
        embed(make_encoder(), data="synthetic:4", out=tmp_path / "out", form="parquet")


class Interrupting(LinearTowers):
    """Ends the job after some batches, as a kill does."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after

    def encode_image(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        if len(self.batch_sizes) == self.after:
            raise KeyboardInterrupt
        return super().encode_image(images_BCHW)


@pytest.mark.parametrize("after", [0, 1, 3, 5])
def test_a_job_goes_on_where_it_was_killed(tmp_path: Path, after: int) -> None:
    data = write_classified(tmp_path / "a.tar", 17, num_classes=3)
    job: dict[str, Any] = {"data": str(data), "piece": 6}
    embed(make_encoder(), out=tmp_path / "whole", **job)

    out = tmp_path / "killed"
    with pytest.raises(KeyboardInterrupt):
        embed(make_encoder(Interrupting(after)), out=out, **job)
    assert not (out / "embed.json").exists()
    (out / ".features-00009.npy.partial").write_bytes(b"half")
    model = LinearTowers()
    report = embed(make_encoder(model), out=out, **job)
    assert (report.num_made, report.num_rows) == (3 - after // 2, 17)
    assert len(model.batch_sizes) == 2 * report.num_made
    (out / ".features-00009.npy.partial").unlink()
    assert files_of(out) == files_of(tmp_path / "whole")

    again = embed(make_encoder(model), out=out, **job)
    assert again.num_made == 0 and len(model.batch_sizes) == 2 * report.num_made


class Module(nn.Module):
    """LinearTowers with weights that have a fingerprint."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.towers = LinearTowers(seed)
        self.weight = nn.Parameter(self.towers.pixels_DE)

    def encode_image(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        return self.towers.encode_image(images_BCHW)

    def encode_text(self, tokens_BT: torch.Tensor) -> torch.Tensor:
        return self.towers.encode_text(tokens_BT)


def test_another_job_in_the_folder_is_refused(tmp_path: Path) -> None:
    data = write_classified(tmp_path / "a.tar", 9, num_classes=3)
    other = write_classified(tmp_path / "b.tar", 10, num_classes=3)
    out = tmp_path / "out"
    embed(make_encoder(Module()), data=str(data), out=out)
    for encoder, change, told in (
        (make_encoder(Module(1)), {}, "model_fingerprint"),
        (make_encoder(Module(), precision="bf16"), {}, "precision"),
        (make_encoder(Module()), {"data": str(other)}, "num_samples, data_fingerprint"),
        (make_encoder(Module()), {"dtype": "float32"}, "dtype"),
        (make_encoder(Module()), {"piece": 4}, "piece"),
    ):
        job: dict[str, Any] = {"data": str(data), "out": out} | change
        with pytest.raises(UsageError, match=f"embeddings made with another {told}; name a new"):
            embed(encoder, **job)
    assert embed(make_encoder(Module()), data=str(data), out=out).num_made == 0
    (out / "embed.json").write_text("[")
    with pytest.raises(UsageError, match=r"embed\.json is damaged"):
        embed(make_encoder(Module()), data=str(data), out=out)


def test_a_folder_of_other_things_is_refused(tmp_path: Path) -> None:
    data = write_classified(tmp_path / "a.tar", 3, num_classes=3)
    with pytest.raises(UsageError, match=r"holds other things already"):
        embed(make_encoder(), data=str(data), out=tmp_path)
    with pytest.raises(UsageError, match=r"holds other things already"):
        embed(make_encoder(), data=str(data), out=data)
    with pytest.raises(UsageError, match=r"piece = 0"):
        embed(make_encoder(), data=str(data), out=tmp_path / "out", piece=0)


def write_with_bad(path: Path, count: int, bad: set[int]) -> str:
    samples = []
    for number in range(count):
        image = b"\x89PNG no" if number in bad else encoded(picture((20, 20), seed=number), "PNG")
        samples.append((f"{number:05d}", {"png": image}))
    return str(write_shard(path, samples))


def test_bad_samples_have_no_row_and_are_named(tmp_path: Path) -> None:
    data = write_with_bad(tmp_path / "a.tar", 15, {0, 7, 8, 9})
    out = tmp_path / "out"
    report = embed(make_encoder(), data=data, out=out, piece=5, dtype="float32")
    assert (report.num_rows, report.num_skipped) == (11, 4)
    rows, keys = read_rows(out)
    good = [number for number in range(15) if number not in {0, 7, 8, 9}]
    assert keys == [f"{number:05d}" for number in good]
    source = open_source(data)
    assert len(rows) == 11 and source.num_samples == 15
    clean = write_with_bad(tmp_path / "b.tar", 15, set())
    assert np.allclose(rows, image_features(clean).numpy()[good], atol=1e-6)
    skipped = json.loads((out / "skipped-00001.json").read_text())
    told = {"place": data, "reason": "image corrupt"}
    assert skipped == [{"key": f"{number:05d}", **told} for number in (7, 8, 9)]
    assert not (out / "skipped-00002.json").exists()
    assert read_embeddings(make_encoder(), out).num_images == 11


@pytest.mark.parametrize("damage", ["gone", "cut", "no list", "one less", "another's"])
def test_what_was_skipped_is_whole_or_told(damage: str, tmp_path: Path) -> None:
    """Of a job that goes on: else its counts would be wrong without a word."""
    data, out = write_with_bad(tmp_path / "a.tar", 15, {0, 7, 8, 9}), tmp_path / "out"
    job: dict[str, Any] = {"data": data, "out": out, "piece": 5}
    embed(make_encoder(), **job)
    told = (out / "embed.json").read_bytes()
    file = out / "skipped-00001.json"
    text = file.read_text()
    file.unlink()
    if damage == "another's":
        (out / "skipped-00002.json").write_text(text)
    elif damage != "gone":
        one_less = json.dumps(json.loads(text)[1:])
        file.write_text({"cut": text[:20], "no list": "7", "one less": one_less}[damage])
    with pytest.raises(UsageError, match=r"a piece is damaged .* remove features-0000\d\.npy"):
        embed(make_encoder(), **job)
    for path in (*out.glob("features-0000[12].npy"), *out.glob("skipped-00002.json")):
        path.unlink()
    embed(make_encoder(), **job)
    assert (out / "embed.json").read_bytes() == told and file.read_text() == text


def test_a_piece_of_bad_samples_alone_is_empty(tmp_path: Path) -> None:
    data = write_with_bad(tmp_path / "a.tar", 6, {3, 4, 5})
    embed(make_encoder(), data=data, out=tmp_path / "out", piece=3)
    assert np.load(tmp_path / "out" / "features-00001.npy").shape == (0, 12)


def test_too_many_bad_samples_stop_the_job(tmp_path: Path) -> None:
    data = write_with_bad(tmp_path / "a.tar", 15, {7, 8, 9})
    with pytest.raises(
        UsageError, match=r"3 samples of a piece are bad, the last is 00009 in .*a.tar \(image"
    ):
        embed(make_encoder(), data=data, out=tmp_path / "out", max_bad_fraction=0.002)


def test_a_disk_that_fails_stops_the_job_and_skips_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_source(str(write_classified(tmp_path / "a.tar", 5, num_classes=3)))

    def broken(number: int, wanted: object = None) -> dict[str, bytes]:
        raise OSError("the disk is gone")

    monkeypatch.setattr(source, "read", broken)
    with pytest.raises(UsageError, match=r"sample 00000 of .*: the disk is gone \(and 3 more"):
        embed(make_encoder(), data=source, out=tmp_path / "out")


def test_features_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    data = write_classified(tmp_path / "a.tar", 5, num_classes=3)
    model = LinearTowers()
    model.pixels_DE[:] = torch.nan
    with pytest.raises(UsageError, match=r"image features are not finite"):
        embed(make_encoder(model), data=str(data), out=tmp_path / "out")


def embed_on_ranks(rank: int, folder: str) -> None:
    """Called by the ranks of test_eval_ranks.py, to spare a spawn."""
    path, group = Path(folder), dist.group.WORLD
    model = LinearTowers()
    encoder = make_encoder(model, group=group)
    report = embed(encoder, data=f"{folder}/classified-17.tar", out=path / "ranks", piece=3)
    assert (report.num_made, report.num_pieces, report.num_rows) == (6, 6, 17)
    passes: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(passes, len(model.batch_sizes))
    assert len(set(passes)) == 1, passes
    if rank == 0:
        (path / "ranks" / "features-00004.npy").unlink()
    dist.barrier()
    report = embed(encoder, data=f"{folder}/classified-17.tar", out=path / "ranks", piece=3)
    assert report.num_made == 1
    with pytest.raises(UsageError, match=r"made with another piece"):
        embed(encoder, data=f"{folder}/classified-17.tar", out=path / "ranks", piece=4)


def test_features_are_those_of_an_evaluation(tmp_path: Path) -> None:
    """Bit for bit where the batches are the same."""
    data = write_classified(tmp_path / "a.tar", 4, num_classes=3)
    encoder = make_encoder()
    embed(encoder, data=str(data), out=tmp_path / "out", dtype="float32")
    batches = EvalBatches(
        open_source(str(data)), encoder.preprocess, read_value=len, spans=spans(4, 4)
    )
    wanted = encode_image_batch(encoder, batches.batch(0).images_BCHW)
    assert np.array_equal(read_rows(tmp_path / "out")[0], wanted.numpy())


@pytest.mark.parametrize("num", [2, 3, 5])
def test_parts_of_machines_are_the_folder_of_one(tmp_path: Path, num: int) -> None:
    """The last call, which finds every piece there, makes none."""
    data = write_with_bad(tmp_path / "a.tar", 23, {0, 7, 8, 9})
    embed(make_encoder(), data=data, out=tmp_path / "whole", piece=5)
    rows = made = 0
    for number in reversed(range(num)):
        report = embed(
            make_encoder(), data=data, out=tmp_path / "parts", piece=5, part=(number, num)
        )
        rows, made = rows + report.num_rows, made + report.num_made
        assert not (tmp_path / "parts" / "embed.json").exists()
    assert (rows, made) == (19, 5)
    last = embed(make_encoder(), data=data, out=tmp_path / "parts", piece=5)
    assert (last.num_rows, last.num_skipped, last.num_made) == (19, 4, 0)
    assert files_of(tmp_path / "parts") == files_of(tmp_path / "whole")
    with pytest.raises(UsageError, match=r"--shard-range 1/6: there are only 5 pieces"):
        embed(make_encoder(), data=data, out=tmp_path / "more", piece=5, part=(1, 6))


def test_machines_that_begin_at_once_begin_one_job(tmp_path: Path, monkeypatch) -> None:
    """One that is about to write is no other thing; of two that write the second sees the first."""
    out, job = tmp_path / "out", dict.fromkeys(_SAME_JOB, "1")
    out.mkdir()
    (out / f".{PARTIAL_FILE}.other.17.partial").touch()
    write = embed_folder.create_file

    def after_another(path: Path, text: str) -> None:
        path.write_text(json.dumps(job | {"dtype": "2"}))
        write(path, text)

    monkeypatch.setattr(embed_folder, "create_file", after_another)
    with pytest.raises(UsageError, match="made with another dtype"):
        EmbedFolder(path=out, job=job, num_pieces=2).begin()
    same = EmbedFolder(path=out, job=job | {"dtype": "2"}, num_pieces=2)
    assert same.begin() == [0, 1]
