"""`data.join`: captions, labels and features by key, whatever they are kept in."""

import io
import json
import pickle
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmtrain.cli import main
from mmtrain.data import open_loader
from mmtrain.data.config import DataConfig
from mmtrain.data.feature_files import features_file, write_piece
from mmtrain.data.joins import key_index, keyed
from mmtrain.data.joins.keyed import open_keyed
from mmtrain.errors import UsageError
from tests.data.shard_files import build_data, pairs, write_set, write_shard
from tests.mistakes import mistake

KEYS = [f"{n:05}" for n in range(16)]
ROWS = [{"key": key, "title": f"new {key}", "score": n} for n, key in enumerate(KEYS)]


def as_csv(folder: Path, rows: list[dict[str, Any]]) -> Path:
    lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
    (folder / "rows.csv").write_text("\n".join(lines) + "\n")
    return folder / "rows.csv"


def as_jsonl(folder: Path, rows: list[dict[str, Any]]) -> Path:
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return folder / "rows.jsonl"


def as_parquet(folder: Path, rows: list[dict[str, Any]]) -> Path:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet")
    return folder / "rows.parquet"


def as_shards(folder: Path, rows: list[dict[str, Any]]) -> Path:
    (folder / "other").mkdir()
    samples = [(row["key"], {"json": {k: row[k] for k in row if k != "key"}}) for row in rows]
    write_shard(folder / "other" / "0.tar", samples)
    return folder / "other"


FORMS = [as_csv, as_jsonl, as_parquet, as_shards]
Form = Callable[[Path, list[dict[str, Any]]], Path]


@pytest.fixture
def shards(tmp_path: Path) -> str:
    return write_set(tmp_path / "set", [9, 7])


def texts(train: str, **options: Any) -> dict[str, str]:
    """The captions of an epoch by key."""
    data = build_data(train, batch_size=4, **options)
    data.keeps_texts = True
    batches = list(data.iterate(0, data.batches_per_epoch))
    return {k: t for batch in batches for k, t in zip(batch.keys, batch.texts, strict=True)}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("workers", [0, 2])
def test_captions_are_joined_in_any_order(
    shards: str, tmp_path: Path, form: Form, workers: int
) -> None:
    join = str(form(tmp_path, ROWS[::-1]))
    found = texts(shards, join=join, captions={"title": 1.0}, workers=workers)
    assert found == {key: f"new {key}" for key in KEYS}


@pytest.mark.parametrize("form", FORMS)
def test_a_column_txt_takes_the_place_of_the_caption(
    shards: str, tmp_path: Path, form: Form
) -> None:
    join = str(form(tmp_path, [{"key": key, "txt": f"better {key}"} for key in KEYS]))
    assert texts(shards, join=(join,)) == {key: f"better {key}" for key in KEYS}


def test_lists_are_several_captions_and_the_last_place_counts(shards: str, tmp_path: Path) -> None:
    first = as_jsonl(tmp_path, [{"key": key, "names": ["one"], "n": 1} for key in KEYS])
    (tmp_path / "b").mkdir()
    second = as_jsonl(tmp_path / "b", [{"key": key, "names": ["a", "b"]} for key in KEYS])
    found = texts(shards, join=(str(first), str(second)), captions={"names": 1.0})
    assert set(found.values()) == {"a", "b"} and set(found) == set(KEYS)


@pytest.mark.parametrize("form", [as_jsonl, as_parquet, as_shards])
def test_a_list_in_txt_is_several_captions(shards: str, tmp_path: Path, form: Form) -> None:
    """They were passed over, and the shards' own captions trained on."""
    rows = [{"key": key, "txt": [f"a {key}", f"b {key}"]} for key in KEYS]
    join = str(form(tmp_path, rows))
    found = texts(shards, join=join)
    assert set(found) == set(KEYS) and {text[0] for text in found.values()} == {"a", "b"}
    assert all(text[2:] == key for key, text in found.items())
    with pytest.raises(UsageError, match="joined txt is a list"):  # nor is it one caption
        texts(shards, join=join, caption_lines=False)


@pytest.mark.parametrize("name", ["*.parquet", "rows-{0..1}.parquet", "rows-?.parquet", ""])
def test_parquet_files_are_joined_as_they_are_trained_on(
    shards: str, tmp_path: Path, name: str
) -> None:
    """By a glob, by a range or by their folder: as one table, in which each key is once."""
    (tmp_path / "join").mkdir()
    for number, rows in enumerate((ROWS[:5], ROWS[5:])):
        as_parquet(tmp_path, rows).rename(tmp_path / f"join/rows-{number}.parquet")
    found = texts(shards, join=str(tmp_path / "join" / name), captions={"title": 1.0})
    assert found == {key: f"new {key}" for key in KEYS}


@pytest.mark.parametrize("name", ["*.csv", "{a,b}.jsonl", "row[sz].csv"])
def test_several_tables_are_refused(shards: str, tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="names several tables, and one is read"):
        build_data(shards, join=str(tmp_path / name))


@pytest.mark.parametrize("nothing", [None, 7, "", [], [7], {"a": "b"}])
def test_what_is_no_text_is_no_caption(shards: str, tmp_path: Path, nothing: Any) -> None:
    """And the shards' own does not come back."""
    rows = [{"key": key, "txt": nothing if n == 5 else key} for n, key in enumerate(KEYS)]
    data = build_data(shards, join=str(as_jsonl(tmp_path, rows)))
    batches = [data.batch(number) for number in range(data.batches_per_epoch)]
    bad = [(sample.key, sample.reason) for batch in batches for sample in batch.bad]
    assert bad == [(KEYS[5], "no caption")]


@pytest.mark.parametrize("content", [[1], "a", 3, None])
def test_a_joined_json_that_is_no_object_is_a_bad_sample(
    shards: str, tmp_path: Path, content: Any
) -> None:
    (tmp_path / "other").mkdir()
    write_shard(
        tmp_path / "other" / "0.tar", [(key, {"json": json.dumps(content)}) for key in KEYS]
    )
    with pytest.raises(UsageError, match="joined json invalid"):
        texts(shards, join=str(tmp_path / "other"))


@pytest.mark.parametrize("form", FORMS)
def test_what_nobody_reads_is_refused(shards: str, tmp_path: Path, form: Form) -> None:
    """Under another name than captions are taken from, the run trained on the old ones."""
    join = str(form(tmp_path, ROWS))
    told = r"brings title, score, of which nothing is read: captions are txt \(data.captions\); "
    with pytest.raises(UsageError, match=told):
        build_data(shards, join=join).refuse_unread_join()
    build_data(shards, join=join, captions={"title": 1.0}).refuse_unread_join()
    build_data(shards, join=join, label_key="score").refuse_unread_join()
    (tmp_path / "b").mkdir()
    alone = str(form(tmp_path / "b", [{"key": row["key"]} for row in ROWS]))  # chooses samples
    build_data(shards, join=alone).refuse_unread_join()


def test_a_run_refuses_what_nobody_reads(shards: str, tmp_path: Path, capsys: Any) -> None:
    words = ["configs/debug_clip.toml", "--data.train", shards, "--train.steps", "1"]
    words += ["--data.join", str(as_csv(tmp_path, ROWS))]
    for command in (["train", "--run-dir", str(tmp_path / "run")], ["data", "show", "--step", "1"]):
        assert "of which nothing is read" in mistake(capsys, *command, *words)


@pytest.mark.parametrize("sizes", [[4, 4], [2, 2, 2, 2], [1, 3, 4]])
def test_keys_that_begin_anew_in_each_shard_are_refused(tmp_path: Path, sizes: list[int]) -> None:
    """A row went to the samples of all shards."""
    samples = pairs(0, 4)
    for number, size in enumerate(sizes):
        write_shard(tmp_path / f"{number}.tar", samples[:size])
    join = str(as_csv(tmp_path, ROWS))
    with pytest.raises(UsageError, match=r"0\.tar and \S*1\.tar both have a sample 00000, "):
        build_data(str(tmp_path / "*.tar"), join=join, captions={"title": 1.0})


@pytest.mark.parametrize("form", ["npy", "parquet"])
def test_features_are_files(shards: str, tmp_path: Path, form: Any) -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(16, 5)).astype(np.float16)
    (tmp_path / "features").mkdir()
    for number, (start, stop) in enumerate(((0, 10), (10, 16))):
        path = features_file(tmp_path / "features", number, form)
        write_piece(path, features[start:stop], KEYS[start:stop])
    found = list(open_loader(shards, batch_size=None, join=(str(tmp_path / "features"),)))
    for files in found:
        row = np.load(io.BytesIO(files["features.npy"]))
        assert row.dtype == np.float16
        assert np.array_equal(row, features[int(files["__key__"])])
    assert len(found) == 16


@pytest.mark.parametrize("form", FORMS)
def test_a_sample_without_a_row_is_bad_or_kept(shards: str, tmp_path: Path, form: Form) -> None:
    join = str(form(tmp_path, ROWS[:12]))
    options: dict[str, Any] = {"join": (join,), "batch_size": 4}
    data = build_data(shards, **options, captions={"title": 1.0})
    batches = list(data.iterate(0, 4))
    bad = [sample for batch in batches for sample in batch.bad]
    assert {sample.reason for sample in bad} == {"nothing to join under its key"}
    assert {sample.key for sample in bad} >= set(KEYS[12:])
    kept = {"join_missing": "keep", "captions": {"title": 1.0, "txt": 0.0001}}
    found = texts(shards, join=(join,), **kept)
    assert found == {k: f"new {k}" if n < 12 else f"picture {n}" for n, k in enumerate(KEYS)}
    counted = build_data(shards, **options, **kept, workers=1)
    list(counted.iterate(0, 4))
    assert counted.work.figures()["data_unjoined"] == 4


def test_the_fingerprint_covers_what_is_joined(shards: str, tmp_path: Path) -> None:
    plain = build_data(shards).fingerprint
    found = set()
    for number, form in enumerate((*FORMS, *FORMS)):
        folder = tmp_path / str(number)
        folder.mkdir()
        rows = ROWS if number < len(FORMS) else [{**ROWS[0], "title": "other"}, *ROWS[1:]]
        found.add(build_data(shards, join=(str(form(folder, rows)),)).fingerprint)
    assert len(found | {plain}) == 9


@pytest.mark.parametrize("nothing", [None, ""])
def test_a_row_without_a_key_is_refused(tmp_path: Path, nothing: str | None) -> None:
    """It was passed over; of several it was told that they have the same key."""
    rows = [*ROWS, {**ROWS[0], "key": nothing}]
    for form, told in ((as_jsonl, "rows.jsonl:17"), (as_parquet, r"row 17 of \S*rows.parquet")):
        with pytest.raises(UsageError, match=f"{told} has no key; leave the row out"):
            open_keyed(str(form(tmp_path, rows)), key_column="key", index_dir=None)


@pytest.mark.parametrize("form", FORMS)
def test_keys_that_nobody_has_or_two_have_are_refused(
    shards: str, tmp_path: Path, form: Form
) -> None:
    join = str(form(tmp_path, [{**row, "key": f"x{row['key']}"} for row in ROWS]))
    with pytest.raises(UsageError, match=r"none of 16 samples looked at has a row there; .* 00000"):
        build_data(shards, join=(join,))
    (tmp_path / "b").mkdir()
    twice = str(form(tmp_path / "b", [*ROWS, ROWS[3]]))
    with pytest.raises(UsageError, match="rows 4 and 17 have the same key"):
        build_data(shards, join=(twice,))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--data.join", '["{tmp}/none.csv"]'], "none.csv cannot be read"),
        (["--data.join", '["{tmp}/none.parquet"]'], "none.parquet cannot be read"),
        (["--data.join", '["{tmp}/empty"]'], "data.join = {tmp}/empty"),
        (["--data.join", '["{tmp}/rows.csv"]', "--data.join_key", "id"], "join_key = id"),
        (["--data.join_key", "id"], 'join_key = "id" has no effect without join'),
        (["--data.join_missing", "keep"], "has no effect without join"),
        (["--data.join", '["{tmp}/rows.csv"]', "--data.join_missing", "drop"], "drop"),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], told: str
) -> None:
    as_csv(tmp_path, ROWS)
    (tmp_path / "empty").mkdir()
    given = [word.replace("{tmp}", str(tmp_path)) for word in options]
    words = ["train", "configs/debug_clip.toml", "--run-dir", str(tmp_path / "run"), *given]
    assert told.replace("{tmp}", str(tmp_path)) in mistake(capsys, *words)


def test_a_run_trains_on_joined_captions(tmp_path: Path) -> None:
    """And its steps are shown with them."""
    rows = [{"key": sample["__key__"], "title": f"joined {n}"} for n, sample in enumerate(
        open_loader("mmtrain/demo/debug/train.tar", batch_size=None)
    )]  # fmt: skip
    join = as_csv(tmp_path, rows)
    words = ["--data.join", f'["{join}"]', "--data.captions", "{ title = 1.0 }"]
    run = tmp_path / "run"
    given = ["--run-dir", str(run), "--train.steps", "2", *words]
    assert main(["train", "configs/debug_clip.toml", *given]) == 0
    assert main(["data", "show", str(run), "--step", "2"]) == 0


def test_a_mixture_has_no_join() -> None:
    source = {"name": "a", "train": "a.tar", "weight": 1.0}
    from mmtrain.data.mixture import MixtureSource

    with pytest.raises(ValueError, match="is of one set, and mixture has several"):
        DataConfig(mixture=(MixtureSource(**source),), join=("a.csv",))


def test_a_parquet_join_is_mapped_and_not_copied_to_workers(tmp_path: Path) -> None:
    """50,000 rows of 64 numbers, 13 MB: what a worker is handed is the index of the keys alone."""
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows_NE = np.random.default_rng(0).normal(size=(50_000, 64)).astype(np.float32)
    table = {
        "key": [f"{n:06}" for n in range(50_000)],
        "emb": pa.FixedSizeListArray.from_arrays(pa.array(rows_NE.reshape(-1)), 64),
        "score": list(range(50_000)),
    }
    parquet.write_table(pa.table(table), tmp_path / "rows.parquet", row_group_size=7_000)
    held = pa.total_allocated_bytes()
    join = open_keyed(str(tmp_path / "rows.parquet"), key_column="key", index_dir=None)
    assert pa.total_allocated_bytes() - held < 1_000_000
    handed = pickle.dumps(join)
    assert len(handed) < 20 * 50_000
    for one in (join, pickle.loads(handed)):
        for number in (0, 6_999, 7_000, 49_999):
            assert one.index.row(f"{number:06}") == number
            key, row = one.row(number)
            assert key == f"{number:06}" and row.fields == {"score": number}
            assert np.array_equal(np.load(io.BytesIO(row.files["emb.npy"])), rows_NE[number])


def test_no_room_to_unpack_is_one_line(
    shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    join = str(as_parquet(tmp_path, ROWS))

    def full() -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(keyed.tempfile, "TemporaryFile", full)
    with pytest.raises(UsageError, match=r"No space left on device.*TMPDIR"):
        build_data(shards, join=(join,))


def features_folder(folder: Path, keys: list[str], *, width: int = 4) -> Path:
    """Two pieces of features, as `mmtrain embed` writes them: row n is full of n."""
    folder.mkdir()
    half = len(keys) // 2
    for piece, part in enumerate((range(half), range(half, len(keys)))):
        rows = np.repeat(np.array(part, dtype=np.float32)[:, None], width, axis=1)
        np.save(folder / f"features-{piece:05}.npy", rows)
        told = json.dumps([keys[number] for number in part])
        (folder / f"keys-{piece:05}.json").write_text(told)
    return folder


def open_features(folder: Path) -> Any:
    return open_keyed(str(folder), key_column="key", index_dir=None)


ODD = ["", "a", "\n", "a\nb", "ключ", "b" * 300, "\ud800", "a b", "\n\n", "é", "e\u0301"]


def test_keys_of_features_are_the_texts_that_were_written(tmp_path: Path) -> None:
    one = open_features(features_folder(tmp_path / "f", ODD))
    for found in (one, pickle.loads(pickle.dumps(one))):
        for number, key in enumerate(ODD):
            assert found.index.row(key) == number
            own, row = found.row(number)
            features_E = np.load(io.BytesIO(row.files["features.npy"]))
            assert own == key and (features_E == number).all()
    assert one.index.row("c") is None


@pytest.mark.parametrize("content", ["1", "true", '"ab"', "null", '{"a": 1}', '["a", "b"]'])
def test_damaged_keys_of_features_are_one_line(tmp_path: Path, content: str) -> None:
    folder = features_folder(tmp_path / "f", ["a", "b"])
    (folder / "keys-00000.json").write_text(content)
    told = "keys-00000.json is no list of keys|.* holds no features with a key each"
    with pytest.raises(UsageError, match=rf"cannot be read \(({told})\)"):
        open_features(folder)


def test_a_key_of_features_takes_little_memory_and_features_go_to_no_worker(tmp_path: Path) -> None:
    """16 bytes of hash and row, 8 of a place, and its letters; Python's text takes 66 alone."""
    num, width = 20_000, 64
    folder = features_folder(tmp_path / "f", [f"{n:09}" for n in range(num)], width=width)
    tracemalloc.start()
    try:
        one = open_features(folder)
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert held / num < 16 + 8 + 10 + 8
    assert len(pickle.dumps(one)) < num * width  # a quarter of the features


@pytest.mark.parametrize("alike", [1, 3])
def test_keys_with_one_hash_are_told_apart(tmp_path: Path, monkeypatch: Any, alike: int) -> None:
    monkeypatch.setattr(key_index, "_hashed", lambda key: len(key) % alike)
    keys = [f"{'x' * (n % 4)}{n}" for n in range(12)]
    one = open_features(features_folder(tmp_path / "f", keys))
    assert [one.index.row(key) for key in keys] == [*range(12)]
    folder = features_folder(tmp_path / "twice", [*keys, keys[2]])
    with pytest.raises(UsageError, match="rows 3 and 13 have the same key"):
        open_features(folder)
