"""Batches by number: the same for any ranks and workers, exactly once, bad samples replaced."""

import dataclasses
import errno
import os
import re
from collections import Counter

import pytest
import torch

from mmtrain.data.batch import ImageTextBatch
from mmtrain.data.config import DataConfig
from mmtrain.data.images.decode import decode_image
from mmtrain.data.members import label_of
from mmtrain.data.storage.file import LocalFile
from mmtrain.data.text.tokenizer import TokenizerConfig, build_tokenizer
from mmtrain.errors import UsageError
from tests.data.shard_files import (
    TOKENIZER,
    build_data,
    encoded,
    pairs,
    picture,
    write_set,
    write_shard,
)

SIZES = (7, 6, 8, 5, 4)
NUM = sum(SIZES)
BAD = {3: "image truncated", 11: "no caption", 12: "no image", 25: "no caption"}


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> str:
    """30 samples in 5 shards."""
    return write_set(tmp_path_factory.mktemp("good") / "train", SIZES)


@pytest.fixture(scope="module")
def damaged(tmp_path_factory) -> str:
    """The same with four samples that cannot be used."""
    folder = tmp_path_factory.mktemp("damaged")
    samples = pairs(0, NUM)
    for number, reason in BAD.items():
        files = samples[number][1]
        kind = next(iter(files))
        if reason == "no caption":
            del files["txt"]
        else:
            image = files.pop(kind)
            if reason == "image truncated":
                files[kind] = image[: len(image) // 2]
    for shard in range(3):
        write_shard(folder / f"{shard}.tar", samples[10 * shard : 10 * shard + 10])
    return str(folder / "*.tar")


def assert_equal(one: ImageTextBatch, other: ImageTextBatch) -> None:
    for field in dataclasses.fields(ImageTextBatch):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if isinstance(a, torch.Tensor):
            assert torch.equal(a, b), field.name
            assert a.stride() == b.stride()
        else:
            assert a == b, field.name


def test_a_batch_is_as_documented(good):
    batch = build_data(good, label_key="concept").batch(0)
    assert batch.images_BCHW.shape == (4, 3, 16, 16)
    assert batch.images_BCHW.dtype == torch.uint8
    assert batch.images_BCHW.is_contiguous(memory_format=torch.channels_last)
    for name in ("tokens_BT", "text_length_B", "label_B", "position_B"):
        assert getattr(batch, name).dtype == torch.int64
    assert batch.valid_B.dtype == torch.bool
    assert batch.valid_B.all()
    assert batch.position_B.tolist() == [0, 1, 2, 3]
    assert (batch.epoch, batch.num_rows, batch.bad, batch.meta) == (0, 4, (), ())
    for row, key in enumerate(batch.keys):
        tokens_1T, length_1 = TOKENIZER.encode([f"picture {int(key)}"])
        length = int(length_1)
        assert batch.text_length_B[row] == length
        assert torch.equal(batch.tokens_BT[row, :length], tokens_1T[0])
        assert batch.label_B[row] == label_of(f"c{int(key) % 4}")
    assert batch.tokens_BT.size(1) == batch.text_length_B.max()


@pytest.mark.parametrize("last", ["drop", "mask"])
def test_every_epoch_has_every_sample_once(good, last):
    data = build_data(good, last=last)
    assert data.num_samples == NUM
    assert data.batches_per_epoch == {"drop": 7, "mask": 8}[last]
    orders = []
    for epoch in range(3):
        batches = list(
            data.iterate(epoch * data.batches_per_epoch, (epoch + 1) * data.batches_per_epoch)
        )
        assert {batch.epoch for batch in batches} == {epoch}
        keys = [key for batch in batches for key in batch.keys if key]
        assert len(set(keys)) == len(keys) == NUM - {"drop": 2, "mask": 0}[last]
        orders.append(keys)
    assert orders[0] != orders[1] != orders[2]


def test_batches_can_be_asked_in_any_order(good):
    data = build_data(good)
    in_order = list(data.iterate(0, 15))
    other = build_data(good)
    for number in (14, 3, 0, 8, 7, 3):
        assert_equal(other.batch(number), in_order[number])


def test_resume_and_workers_change_nothing(damaged):
    """0 and 2 workers, from any batch on, with bad samples on the way."""
    options = {"captions": {"txt": 1.0}, "label_key": "concept", "last": "mask"}
    expected = list(build_data(damaged, **options).iterate(0, 17))
    assert sum(len(batch.bad) for batch in expected) >= 4
    for workers, start in ((2, 0), (2, 5), (3, 16)):
        data = build_data(damaged, workers=workers, **options)
        batches = list(data.iterate(start, 17))
        assert len(batches) == 17 - start
        for ours, theirs in zip(batches, expected[start:], strict=True):
            assert_equal(ours, theirs)
    assert list(build_data(damaged, workers=2, **options).iterate(17, 17)) == []


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_divide_the_same_rows(damaged, world_size):
    options = {"batch_size": 6, "last": "mask", "label_key": "concept"}
    alone = build_data(damaged, **options)
    ranks = [
        build_data(damaged, rank=rank, world_size=world_size, workers=rank % 2, **options)
        for rank in range(world_size)
    ]
    for whole, *parts in zip(
        alone.iterate(0, 8), *(rank.iterate(0, 8) for rank in ranks), strict=True
    ):
        assert sum((part.keys for part in parts), ()) == whole.keys
        assert sum((part.bad for part in parts), ()) == whole.bad
        for name in ("images_BCHW", "text_length_B", "label_B", "position_B", "valid_B"):
            joined = torch.cat([getattr(part, name) for part in parts])
            assert torch.equal(joined, getattr(whole, name)), name
        for part in parts:  # each is cut to its own longest text
            assert part.tokens_BT.size(1) == part.text_length_B.max()


def test_fewer_shards_than_ranks_and_workers(tmp_path):
    train = str(write_shard(tmp_path / "only.tar", pairs(0, 9)))
    seen = []
    for rank in range(4):
        data = build_data(train, batch_size=8, rank=rank, world_size=4, workers=3)
        seen += [key for batch in data.iterate(0, 1) for key in batch.keys]
    assert len(set(seen)) == 8


def test_padding_rows_are_blank(good):
    batch = build_data(good, last="mask", label_key="concept").batch(7)
    assert batch.valid_B.tolist() == [True, True, False, False]
    assert batch.position_B.tolist() == [28, 29, -1, -1]
    assert batch.label_B[2:].tolist() == [-1, -1]
    assert batch.keys[2:] == ("", "")
    assert not batch.images_BCHW[2:].any()
    assert (batch.text_length_B >= 1).all()
    assert not build_data(good, rank=1, world_size=2, last="mask").batch(7).valid_B.any()


def test_crops_change_with_the_epoch_and_the_seed(good):
    def images(seed: int) -> dict[tuple[int, str], torch.Tensor]:
        data = build_data(good, last="mask", seed=seed)
        return {
            (batch.epoch, key): image
            for batch in data.iterate(0, 16)
            for key, image in zip(batch.keys, batch.images_BCHW, strict=True)
        }

    one, other = images(5), images(6)
    changed = [not torch.equal(one[0, f"{i:05}"], one[1, f"{i:05}"]) for i in range(NUM)]
    assert sum(changed) > 20
    reseeded = [not torch.equal(one[0, f"{i:05}"], other[0, f"{i:05}"]) for i in range(NUM)]
    assert sum(reseeded) > 20


def test_captions_are_drawn_by_weight(good):
    """Long runs take each place as often as its weight says, and anew in every epoch."""
    data = build_data(good, captions={"txt": 3.0, "names": 1.0}, batch_size=30)
    texts: Counter[str] = Counter()
    for batch in data.iterate(0, 20):
        for key, tokens_T, length in zip(
            batch.keys, batch.tokens_BT, batch.text_length_B, strict=True
        ):
            row = tokens_T[: int(length)].tolist()
            places = {"txt": f"picture {int(key)}", "n": f"n{int(key)}", "m": f"m{int(key)}"}
            found = [
                n for n, text in places.items() if TOKENIZER.encode([text])[0][0].tolist() == row
            ]
            assert len(found) == 1
            texts[found[0]] += 1
    assert 400 < texts["txt"] < 500  # of 600
    assert 45 < texts["n"] < 105
    assert 45 < texts["m"] < 105


def test_bad_samples_are_replaced_by_their_position(damaged):
    data = build_data(damaged, last="mask")
    met: dict[int, list[tuple[str, str]]] = {}
    for batch in data.iterate(0, 3 * data.batches_per_epoch):
        assert batch.valid_B.sum() == min(4, NUM - batch.position_B[0])
        for each in batch.bad:
            assert each.position in batch.position_B
            assert each.shard.endswith(f"{int(each.key) // 10}.tar")
            met.setdefault(batch.epoch, []).append((each.key, each.reason))
        assert not {f"{number:05}" for number in BAD} & set(batch.keys)
    expected = {(f"{number:05}", reason) for number, reason in BAD.items()}
    for epoch in range(3):
        assert set(met[epoch]) == expected
    # Twice the same, whatever was read before; another replacement at another position.
    again = build_data(damaged, last="mask")
    numbers = [n for n in range(3 * data.batches_per_epoch) if data.batch(n).bad]
    for number in reversed(numbers):
        assert_equal(again.batch(number), data.batch(number))
    for epoch in range(3):
        replacements = {
            batch.keys[batch.position_B.tolist().index(each.position)]
            for batch in map(data.batch, numbers)
            for each in batch.bad
            if batch.epoch == epoch
        }
        assert len(replacements) > 1


def test_a_replacement_keeps_to_its_position(damaged):
    """Only the rows of bad samples differ from those of a set in which all are good."""
    data = build_data(damaged, last="mask")
    for number in range(data.batches_per_epoch):
        batch = data.batch(number)
        planned = [data.source.key(int(s)) for s in data.plan.rows(number).sample_B if s >= 0]
        replaced = {each.position for each in batch.bad}
        for row, (key, plan) in enumerate(zip(batch.keys, planned, strict=False)):
            assert (key != plan) == (int(batch.position_B[row]) in replaced)


def test_a_set_without_a_usable_sample(tmp_path):
    train = str(
        write_shard(
            tmp_path / "a.tar", [(f"{i}", {"jpg": b"\xff\xd8x", "txt": "t"}) for i in range(40)]
        )
    )
    for workers in (0, 1):
        with pytest.raises(
            UsageError, match=r"all of \d+ samples tried for position 0 .* bad \(image corrupt: \d+"
        ) as caught:
            next(build_data(train, workers=workers).iterate(0, 1))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_captions_that_are_nowhere(good, workers):
    """Says what the first sample has instead, in one line, out of a worker too."""
    data = build_data(good, captions={"caption": 1.0, "alt": 1.0}, workers=workers)
    message = (
        r"^data.captions = \{ caption, alt \}: none of \d+ samples tried for position 0 of epoch 0 "
        r"has a caption there; sample 000\d\d has .\w+, .txt, .json and in its .json: "
        r"concept, names; name a place that it has$"
    )
    with pytest.raises(UsageError, match=message):
        next(data.iterate(0, 3))


@pytest.mark.parametrize(
    ("captions", "told"),
    [
        ({"txt": 1.0, "nams": 1.0}, "has a caption in nams; "),
        ({"names": 1.0, "alt": 1e-9, "Txt": 1.0}, "has a caption in alt, Txt; "),
        ({"txt": 1.0, "names": 1.0}, ""),
        ({"nams": 1.0}, ""),  # told when all are bad
    ],
)
def test_one_place_of_captions_that_is_nowhere(good, captions, told):
    """All captions came from the others: a mistyped place changed a run without a word."""
    if not told:
        assert build_data(good, captions=captions)
        return
    with pytest.raises(UsageError, match=r"^data\.captions = \{ .*: none of 30 samples") as caught:
        build_data(good, captions=captions)
    assert told in str(caught.value) and "in its .json: concept, names" in str(caught.value)


def test_a_place_that_few_have_is_found(tmp_path):
    rare = pairs(0, 100)
    rare[77][1]["json"]["alt"] = "another"
    assert build_data(str(write_shard(tmp_path / "a.tar", rare)), captions={"txt": 1, "alt": 1})


@pytest.mark.parametrize("form", ["folder", "shard"])
def test_photographs_alone_are_told_what_they_lack(tmp_path, form):
    """There is no place to name."""
    photos = {f"{n}.png": encoded(picture(seed=n), "PNG") for n in range(20)}
    path = tmp_path / "photos.tar" if form == "shard" else tmp_path / "photos"
    if form == "shard":
        write_shard(path, [(name[:-4], {"png": content}) for name, content in photos.items()])
    else:
        path.mkdir()
        for name, content in photos.items():
            (path / name).write_bytes(content)
    with pytest.raises(UsageError, match=r"has \.png; give each image a \.txt of its name$"):
        build_data(str(path)).batch(0)


@pytest.mark.parametrize("place", ["txt", "alt"])
def test_lines_that_may_be_captions_are_asked_for(tmp_path, place):
    """Each sample has several lines: either reading is taken when it is named, none in silence."""

    def write(texts) -> str:
        image = encoded(picture((20, 20)), "PNG")
        samples = [
            (f"{i:03d}", {"png": image} | ({"txt": t} if place == "txt" else {"json": {"alt": t}}))
            for i, t in enumerate(texts)
        ]
        return str(write_shard(tmp_path / "lines.tar", samples))

    def captions(data: str, lines: bool | None) -> set[str]:
        made = build_data(data, captions={place: 1.0}, caption_lines=lines)
        tokens = [made.batch(number).tokens_BT for number in range(2 * made.batches_per_epoch)]
        return {
            TOKENIZER.decode([i for i in row.tolist() if i not in (0, 49406, 49407)]).strip()
            for batch in tokens
            for row in batch
        }

    data = write(["one cat\ntwo cats\n"] * 8)
    with pytest.raises(UsageError, match=rf"data.caption_lines: {place} has several lines in each"):
        captions(data, None)
    assert captions(data, True) == {"one cat", "two cats"}
    assert captions(data, False) == {"one cat two cats"}
    # Now and then a line feed is part of an alt text.
    assert captions(write(["one cat\ntwo cats"] * 7 + ["dog"]), None) == {"one cat two cats", "dog"}
    assert captions(write(['["one cat", "dog"]'] * 8), None) == {"one cat", "dog"}
    assert captions(write(["one cat\n"] * 8), None) == {"one cat"}


def test_a_label_key_that_is_nowhere(good):
    message = "data.label_key = concpt: none of 30 samples has it; .* its .json: concept, names"
    with pytest.raises(UsageError, match=re.compile(message)):
        build_data(good, label_key="concpt")
    assert (build_data(good).batch(0).label_B == -1).all()


def test_a_batch_larger_than_the_data(good):
    with pytest.raises(UsageError, match=r"train.batch_size = 32 is larger than the data \(30 sam"):
        build_data(good, batch_size=32)
    assert build_data(good, batch_size=32, last="mask").batch(0).valid_B.sum() == 30


@pytest.mark.parametrize("workers", [0, 1])
def test_a_disk_that_fails_stops_the_run(good, monkeypatch, workers):
    """It is no bad sample, which would be replaced."""
    data = build_data(good, workers=workers, retry_seconds=0.1)

    def failing(self, offset, count):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(LocalFile, "read", failing)
    with pytest.raises(
        UsageError, match=r"data.train: .*Input/output error; mend that and .*--resume"
    ):
        next(data.iterate(0, 2))


def test_shards_that_vanish_stop_the_run(tmp_path):
    train = write_set(tmp_path / "train", (6,))
    # Unopened: the lines of captions are not looked for.
    data = build_data(train, caption_lines=False, retry_seconds=0.1)
    (tmp_path / "train" / "000.tar").unlink()
    with pytest.raises(UsageError, match=r"data.train: .*000.tar .*No such file or directory"):
        data.batch(0)


def test_another_stage_has_the_images(damaged):
    """The same rows, replaced alike: only a decoded image tells whether it is bad."""
    whole = build_data(damaged, last="mask", label_key="concept")
    without = build_data(damaged, last="mask", label_key="concept", images=False)
    for number in range(whole.batches_per_epoch):
        a, b = whole.batch(number), without.batch(number)
        assert b.images_BCHW.shape == (4, 0)
        assert b.images_BCHW.dtype == torch.uint8
        assert_equal(dataclasses.replace(a, images_BCHW=b.images_BCHW), b)


def test_static_shapes(good):
    data, free = build_data(good, fixed_length=16, last="mask"), build_data(good, last="mask")
    for number in range(data.batches_per_epoch):
        batch, cut = data.batch(number), free.batch(number)
        assert batch.tokens_BT.shape == (4, 16)
        width = cut.tokens_BT.size(1)
        assert torch.equal(batch.tokens_BT[:, :width], cut.tokens_BT)
        assert (batch.tokens_BT[:, width:] == TOKENIZER.pad_id).all()
        assert torch.equal(batch.text_length_B, cut.text_length_B)
    with pytest.raises(UsageError, match=r"fixed_length = 8 must be tokenizer.context_length = 16"):
        build_data(good, fixed_length=8)


def test_texts_too_long_are_cut(good):
    short = build_tokenizer(TokenizerConfig(context_length=3))
    batch = build_data(good, tokenizer=short).batch(0)
    assert batch.tokens_BT.shape == (4, 3)
    assert (batch.tokens_BT[:, -1] == short.eot_id).all()


def test_fast_decode_is_off_unless_asked_for(tmp_path):
    photo = encoded(picture((640, 480), seed=1), "JPEG", quality=90)
    train = str(
        write_shard(tmp_path / "a.tar", [(str(i), {"jpg": photo, "txt": "t"}) for i in range(4)])
    )
    exact, fast = build_data(train).batch(0), build_data(train, fast_decode=True).batch(0)
    difference = (exact.images_BCHW.int() - fast.images_BCHW.int()).abs()
    assert difference.any()
    assert difference.float().mean() < 8


@pytest.mark.parametrize(("keeps", "sides"), [(None, 32), (2.0, 32), (2.1, 64), (1.0, 16)])
def test_what_fast_decode_keeps_is_the_users(tmp_path, monkeypatch, keeps, sides):
    photo = encoded(picture((128, 128), seed=1), "JPEG", quality=90)
    train = str(
        write_shard(tmp_path / "a.tar", [(str(i), {"jpg": photo, "txt": "t"}) for i in range(4)])
    )
    seen = []

    def decode(*args, **options):
        pixels = decode_image(*args, **options)
        seen.append(pixels.shape[0])
        return pixels

    monkeypatch.setattr("mmtrain.data.samples.decode_image", decode)
    build_data(train, fast_decode=True, fast_decode_keeps=keeps).batch(0)
    assert set(seen) == {sides}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fast_decode_keeps": 1.5}, "does nothing without fast_decode = true"),
        ({"fast_decode_keeps": 0.9, "fast_decode": True}, "must be 1 or more"),
        ({"fast_decode_keeps": float("nan"), "fast_decode": True}, "must be 1 or more"),
        ({"fast_decode_keeps": float("inf"), "fast_decode": True}, "must be 1 or more"),
    ],
)
def test_what_fast_decode_cannot_keep(options, message):
    with pytest.raises(ValueError, match=message):
        DataConfig(train="x", **options)


def test_large_images_are_bad_samples(tmp_path):
    samples = pairs(0, 8)
    samples[2][1].clear()
    samples[2][1].update({"png": encoded(picture((60, 60)), "PNG"), "txt": "large"})
    train = str(write_shard(tmp_path / "a.tar", samples))
    batch = build_data(train, batch_size=8, max_image_pixels=1000).batch(0)
    assert [(each.key, each.reason) for each in batch.bad] == [("00002", "image too large")]


def test_the_fingerprint(good, tmp_path):
    first = build_data(good)
    assert build_data(good, seed=9, workers=2, batch_size=3).fingerprint == first.fingerprint
    assert build_data(good, shuffle_group=2).fingerprint != first.fingerprint
    assert build_data(write_set(tmp_path / "copy", SIZES)).fingerprint == first.fingerprint
    assert build_data(write_set(tmp_path / "other", SIZES[1:])).fingerprint != first.fingerprint


def test_verify_and_damage_are_passed_on(tmp_path):
    train = write_set(tmp_path / "train", (6, 6))
    with pytest.raises(UsageError, match=r"data.verify = true needs checksums"):
        build_data(train, verify=True)
    path = tmp_path / "train" / "001.tar"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(UsageError, match="1 of 2 shards are damaged"):
        build_data(train)
    for beside in path.parent.glob("*.index"):
        beside.unlink()
    index_dir = tmp_path / "indexes"
    data = build_data(train, on_damage="use_rest", index_dir=str(index_dir))
    assert 6 <= data.num_samples < 12
    assert len(list(index_dir.iterdir())) == 2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"workers": -1}, "workers = -1 must be at least 0"),
        ({"prefetch": 0}, "prefetch = 0 must be at least 1"),
        ({"shuffle_group": 0}, "shuffle_group = 0 must be at least 1"),
        ({"captions": {}}, "captions = {} names no place; use { txt = 1.0 }"),
        ({"captions": {"txt": 0.0}}, "captions.txt = 0.0 must be above 0"),
        ({"captions": {"txt": 1.0, "alt": -2.0}}, "captions.alt = -2.0 must be above 0"),
        ({"captions": {"txt": float("inf")}}, "captions.txt = inf"),
        ({"label_key": ""}, 'label_key = "" names no field'),
        ({"last": "wrap"}, "last = 'wrap' is unknown; use drop or mask"),
        ({"on_damage": "ignore"}, "on_damage = 'ignore' is unknown; use stop or use_rest"),
        ({"max_image_pixels": 0}, "max_image_pixels = 0 must be within 1 and"),
        ({"max_image_pixels": 1 << 40}, "above which Pillow refuses"),
        ({"max_bad_fraction": 1.5}, "max_bad_fraction = 1.5 must be within 0 and 1"),
    ],
)
def test_values_that_cannot_be(fields, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        DataConfig(train="x.tar", **fields)


def test_a_text_of_no_token_counts_one(tmp_path):
    """Punctuation alone may be cleaned away; pooling still needs a token to look at."""
    write_shard(
        tmp_path / "a.tar", [(str(i), pairs(i, 1)[0][1] | {"txt": "!!!"}) for i in range(4)]
    )

    class Empty:
        context_length, pad_id = 16, 7

        def at_length(self, context_length):
            return self

        def encode(self, texts):
            return torch.zeros(len(texts), 0, dtype=torch.int64), torch.zeros(len(texts), dtype=int)

    batch = build_data(str(tmp_path / "a.tar"), tokenizer=Empty()).batch(0)
    assert batch.tokens_BT.tolist() == [[7]] * 4
    assert batch.text_length_B.tolist() == [1] * 4


def test_with_lanes_a_rank_reads_its_part_of_the_bytes(tmp_path, monkeypatch):
    """Batches are those of one process; each of 4 ranks reads a quarter of the set, and a shard's
    worth; without lanes each opens nearly all shards."""
    train = write_set(tmp_path / "set", [6] * 24)
    reads: Counter[str] = Counter()
    read = LocalFile.read

    def counted(self: LocalFile, offset: int, count: int) -> bytes:
        reads[self.path] += count
        return read(self, offset, count)

    def batches(rank: int = 0, world_size: int = 1, lanes: int = 8) -> list[ImageTextBatch]:
        data = build_data(
            train, batch_size=8, lanes=lanes, shuffle_group=2, rank=rank, world_size=world_size
        )
        monkeypatch.setattr(LocalFile, "read", counted)
        reads.clear()
        made = [data.batch(number) for number in range(data.batches_per_epoch)]
        monkeypatch.undo()
        return made

    whole = batches()
    num_bytes = reads.total()
    for rank in range(4):
        for ours, all_rows in zip(batches(rank, 4), whole, strict=True):
            assert ours.images_BCHW.equal(all_rows.images_BCHW[2 * rank : 2 * rank + 2])
            assert ours.keys == all_rows.keys[2 * rank : 2 * rank + 2]
        assert len(reads) <= 24 / 4 + 2 and reads.total() < 1.3 * num_bytes / 4
        batches(rank, 4, lanes=1)
        assert len(reads) > 16


def test_replacing_opens_no_other_shards(tmp_path, monkeypatch):
    """A bad sample in each of 20 shards of 6: a group of 4 is left with its own files alone."""
    samples = pairs(0, 120)
    for number in range(0, 120, 6):
        del samples[number][1]["txt"]
    (tmp_path / "set").mkdir()
    for shard in range(20):
        write_shard(tmp_path / f"set/{shard:02}.tar", samples[6 * shard : 6 * shard + 6])
    data = build_data(str(tmp_path / "set/*.tar"), shuffle_group=4)
    opened: set[str] = set()
    monkeypatch.setattr(
        LocalFile,
        "read",
        lambda self, *_, old=LocalFile.read: opened.add(self.path) or old(self, *_),
    )
    for group in range(5):
        opened.clear()
        batches = [data.batch(number) for number in range(6 * group, 6 * group + 6)]
        assert sum(len(batch.bad) for batch in batches) >= 4
        assert len(opened) == 4
