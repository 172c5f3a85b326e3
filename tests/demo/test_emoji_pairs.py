"""The data set in the package: whole, splits kept apart, unpacked safely."""

import hashlib
import io
import json
from collections import defaultdict
from pathlib import Path

import pytest
from PIL import Image

from mmtrain.demo import debug_pairs, emoji_pairs, unpack_emoji_pairs
from mmtrain.demo.emoji_pairs import licenses, read_pairs, split_emoji_pairs, tar_bytes
from mmtrain.errors import UsageError

PACKAGE = Path(emoji_pairs.__file__).parent
STATS = json.loads((PACKAGE / "emoji" / "stats.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked data set; not to be changed."""
    folder = tmp_path_factory.mktemp("emoji")
    unpack_emoji_pairs(folder)
    return folder


@pytest.fixture(scope="module")
def samples(folder: Path) -> dict[str, list[tuple[str, dict[str, bytes], dict]]]:
    """(key, members, parsed .json) of every pair by split."""
    splits = defaultdict(list)
    for shard in sorted(folder.glob("*.tar")):
        for key, members in read_pairs(shard):
            about = json.loads(members["json"])
            splits[shard.stem.split("-")[0]].append((key, members, about))
    return splits


def test_the_package_stays_small():
    files = [file for file in PACKAGE.rglob("*") if file.suffix != ".index" and file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 20e6


def test_every_pair_is_there_and_counted(samples):
    for split, counts in STATS["splits"].items():
        assert len(samples[split]) == counts["pairs"]
        assert len({about["concept"] for _, _, about in samples[split]}) == counts["concepts"]
    keys = [key for pairs in samples.values() for key, _, _ in pairs]
    assert len(set(keys)) == len(keys) == 12455


def test_every_pair_carries_its_caption_and_licence(samples):
    for pairs in samples.values():
        for key, members, about in pairs:
            assert set(members) == {"webp", "txt", "json"}
            assert members["txt"].decode() == ", ".join([about["name"], *about["keywords"]])
            assert key == f"{about['vendor']}_{about['concept'].lower()}"
            assert about["license"] == licenses()[about["vendor"]]


def test_pixels_are_those_that_the_json_names(samples):
    for pairs in samples.values():
        for _, members, about in pairs[::25]:
            image = Image.open(io.BytesIO(members["webp"]))
            assert (image.size, image.mode) == ((64, 64), "RGB")
            assert hashlib.sha256(image.tobytes()).hexdigest() == about["sha256"]


def test_no_drawing_is_there_twice(samples):
    pixels = [about["sha256"] for pairs in samples.values() for _, _, about in pairs]
    assert len(set(pixels)) == len(pixels)


def test_held_out_designs_and_concepts_are_in_no_training_pair(samples):
    train = [about for _, _, about in samples["train"]]
    assert not {about["vendor"] for about in train} & {"twemoji", "openmoji"}
    unseen = [about for _, _, about in samples["unseen"]]
    for field in ("concept", "family", "name"):
        assert not {about[field] for about in train} & {about[field] for about in unseen}
    trained = {about["concept"] for about in train}
    for split in ("val_twemoji", "val_openmoji"):
        vendors = {about["vendor"] for _, _, about in samples[split]}
        assert vendors == {split.removeprefix("val_")}
        # Four concepts lost their only training drawing as a duplicate; they stay classes.
        assert len({about["concept"] for _, _, about in samples[split]} - trained) <= 4


def test_classes_name_every_concept_of_their_split(folder: Path, samples):
    for name, splits, count in (
        ("seen", ("train", "val_twemoji", "val_openmoji"), 1519),
        ("unseen", ("unseen",), 125),
    ):
        classes = json.loads((folder / f"classes_{name}.json").read_text(encoding="utf-8"))
        names = {one["id"]: one["name"] for one in classes}
        assert len(names) == len(classes) == count
        for split in splits:
            for _, _, about in samples[split]:
                assert names[about["concept"]] == about["name"]


def test_what_is_whole_stays_and_what_is_damaged_is_written_again(tmp_path: Path, folder: Path):
    manifest = json.loads((PACKAGE / "emoji" / "manifest.json").read_text())["tars"]
    for name in manifest:
        (tmp_path / name).hardlink_to(folder / name)
    victim, good = tmp_path / "train-00004.tar", tmp_path / "unseen.tar"
    content = victim.read_bytes()
    victim.unlink()
    victim.write_bytes(content[:1000] + b"x" + content[1001:])
    before = good.stat().st_ino
    unpack_emoji_pairs(tmp_path)
    assert victim.read_bytes() == content
    assert good.stat().st_ino == before
    assert not list(tmp_path.glob(".partial*"))


def test_a_damaged_package_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    packed = tmp_path / "packed"
    packed.mkdir()
    monkeypatch.setattr(emoji_pairs, "_PACKED", packed)
    (packed / "manifest.json").write_text('{"tars": {"a.tar": "0"}}')
    with pytest.raises(UsageError, match="install mmtrain again"):
        unpack_emoji_pairs(tmp_path / "out")
    content = (PACKAGE / "emoji" / "train-00004.tar.xz").read_bytes()
    for damaged in (content[:-100], content):
        (packed / "a.tar.xz").write_bytes(damaged)
        with pytest.raises(UsageError, match=r"a\.tar\.xz.*install mmtrain again"):
            unpack_emoji_pairs(tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.tar"))


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="name a folder that can be made"):
        unpack_emoji_pairs(tmp_path / "file" / "data")


def test_a_design_can_be_held_out_to_choose_on(folder: Path):
    split = split_emoji_pairs(folder, hold_out="fxemoji")
    train = [
        json.loads(members["json"])
        for shard in sorted(Path(split.train).parent.glob("train-*.tar"))
        for _, members in read_pairs(shard)
    ]
    val = [json.loads(members["json"]) for _, members in read_pairs(split.val)]
    unseen = [json.loads(members["json"]) for _, members in read_pairs(split.unseen)]
    new_fx = sum(about["vendor"] == "fxemoji" for about in unseen)
    without_fx = STATS["splits"]["train"]["pairs"] - STATS["vendors"]["fxemoji"]["train"]
    assert len(train) == without_fx - len(unseen) + new_fx
    assert len(unseen) > 500
    for field in ("concept", "family", "name"):
        assert not {about[field] for about in train + val} & {about[field] for about in unseen}
    new = json.loads(split.classes_unseen.read_text(encoding="utf-8"))
    assert {one["id"]: one["name"] for one in new} == {
        about["concept"]: about["name"] for about in unseen
    }
    assert {about["vendor"] for about in val} == {"fxemoji"}
    assert "fxemoji" not in {about["vendor"] for about in train}
    trained = {about["concept"] for about in train}
    assert {about["concept"] for about in val} <= trained
    classes = json.loads(split.classes.read_text(encoding="utf-8"))
    assert trained <= {one["id"] for one in classes}
    with pytest.raises(UsageError, match="no training design; use emojione"):
        split_emoji_pairs(folder, hold_out="twemoji")


def test_the_debug_shard_has_sixteen_concepts_in_four_designs():
    pairs = [json.loads(members["json"]) for _, members in read_pairs(debug_pairs().train)]
    classes = json.loads(debug_pairs().classes.read_text(encoding="utf-8"))
    assert len(pairs) == 64 and len(classes) == 16
    for one in classes:
        drawn = [about for about in pairs if about["concept"] == one["id"]]
        assert [about["name"] for about in drawn] == [one["name"]] * 4
        assert len({about["vendor"] for about in drawn}) == 4


def test_equal_members_make_equal_tars():
    members = [("a.txt", b"x" * 513), ("b.txt", b"")]
    assert tar_bytes(members) == tar_bytes(iter(members))
    # Header, two blocks of content, header, two blocks of zeros at the end.
    assert len(tar_bytes(members)) == 6 * 512
