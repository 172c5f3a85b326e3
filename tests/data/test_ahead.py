"""What is fetched ahead: the same batches, each byte once, and none for another rank."""

import json
import random
import re
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from mmtrain.data.config import DataConfig
from mmtrain.data.dialogues.batches import DialogueData
from mmtrain.data.dialogues.config import DialogueDataConfig
from mmtrain.data.image_text import ImageTextData
from mmtrain.data.images.transforms import PreprocessConfig
from mmtrain.data.mixture import MixtureSource
from mmtrain.data.numbered import NumberedData
from mmtrain.data.questions.batches import VqaData, VqaDataConfig
from mmtrain.data.storage.cache import Cache
from mmtrain.errors import UsageError
from tests.data.dialogues.dialogue_files import picture
from tests.data.shard_files import TOKENIZER, build_data, pairs, write_set, write_shard
from tests.data.storage.fault_server import Ranges, serving
from tests.data.storage.test_remote import assert_same

SETS = {"a": (9, 8, 7, 9, 8), "b": (6, 5, 7), "c": (11, 4)}
BATCHES, BATCH_SIZE = 7, 8


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three sets of shards; tables with a row for each sample of a, and for two in three."""
    folder = tmp_path_factory.mktemp("sets")
    for name, sizes in SETS.items():
        write_set(folder / name, sizes)
    rows = [{"key": f"{n:05}", "title": f"thing {n}"} for n in range(sum(SETS["a"]))]
    for name, kept in {"all": rows, "holes": [r for n, r in enumerate(rows) if n % 3]}.items():
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, kept)))
    return folder


def drawn(seed: int) -> dict[str, Any]:
    """Settings of [data] and of the ranks, without where the sets are."""
    rng = random.Random(seed)
    lanes = rng.choice((1, 2, 4, 8))
    options: dict[str, Any] = {"lanes": lanes, "shuffle_group": rng.choice((1, 2, 5))}
    if seed % 2:
        names = rng.sample(sorted(SETS), rng.choice((2, 3)))
        options["mixture"] = [(name, rng.choice((0.2, 0.5, 1.0, 3.0))) for name in names]
        options["mixture_batches"] = rng.choice(("mixed", "single"))
        options["mixture_end"] = "repeat"
    else:
        options |= {"join": rng.choice(("all", "holes")), "captions": {"title": 1.0}}
        options["join_missing"] = rng.choice(("bad", "keep"))
    return options


def opened(folder: Path, place: str, options: dict[str, Any], **own: Any) -> ImageTextData:
    """One rank's data of sets at a place."""
    rank = {name: own.pop(name) for name in ("rank", "world_size")}
    options = {**options, **own, "caption_lines": False, "last": "mask"}
    glob = {n: f"{place}/{n}/{{000..{len(SETS[n]) - 1:03}}}.tar" for n in SETS}
    if "mixture" in options:
        options["mixture"] = tuple(
            MixtureSource(name=n, train=glob[n], weight=w) for n, w in options["mixture"]
        )
    else:
        options |= {"train": glob["a"], "join": (str(folder / f"{options['join']}.jsonl"),)}
    return ImageTextData(
        DataConfig(**options),
        preprocess=PreprocessConfig(image_size=16),
        tokenizer=TOKENIZER,
        seed=5,
        batch_size=BATCH_SIZE,
        **rank,
    )


def used(data: NumberedData[Any]) -> list[Any]:
    """A rank's batches, each used for some time, in which what comes is fetched."""
    made = []
    for batch in data.iterate(0, BATCHES):
        made.append(batch)
        time.sleep(0.02)
    return made


def asked(web: Ranges) -> list[tuple[str, int, int]]:
    """The ranges of the shards, first and last byte, in order."""
    found = [(name, *map(int, re.findall(r"\d+", told))) for name, told, _ in web.log]
    web.log.clear()
    return sorted(found)


def refuse_twice(ranges: list[tuple[str, int, int]]) -> None:
    """No byte stands in two of them."""
    for (name, _, last), (other, first, _) in pairwise(ranges):
        assert name != other or last < first


@pytest.mark.parametrize(  # of the fast ones: batches of a source and of several; joins
    "seed", [1, 2, 5, 8, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (6, 9, 10, 11))]
)
def test_mixtures_and_joins_fetch_what_their_ranks_read_and_that_once(folder, tmp_path, seed):
    options, world = drawn(seed), 8
    with serving(folder) as web:
        for rank in random.Random(seed).sample(range(world), 2):
            own = {"rank": rank, "world_size": world}
            local = list(opened(folder, str(folder), options, **own).iterate(0, BATCHES))
            remote = opened(folder, web.url, options, **own)
            web.log.clear()
            assert_equal(local, list(remote.iterate(0, BATCHES)))
            read = {*asked(web)}
            for is_ahead in (False, True):
                cache = tmp_path / f"{rank} {is_ahead}"
                data = opened(folder, web.url, options, cache_dir=str(cache), **own)
                assert data._cache is not None
                if not is_ahead:
                    data._ahead = None
                web.log.clear()
                assert_equal(local, used(data))
                refuse_twice(fetched := asked(web))
                if data._cache.whole:
                    assert {name for name, *_ in fetched} == {name for name, *_ in read}
                else:
                    assert {*fetched} == read


def assert_equal(first, second):
    """Their tensors and keys, and which were bad."""
    assert [told(one) for one in first] == [told(one) for one in second]
    assert_same([replace(one, bad=()) for one in first], [replace(one, bad=()) for one in second])


def told(batch):
    return [(one.key, one.reason, one.position, one.source) for one in batch.bad]


def write_dialogues(folder: Path, sizes: tuple[int, ...]) -> None:
    """Shards of dialogues about one image or two, numbered on."""
    folder.mkdir()
    for shard, size in enumerate(sizes):
        samples = []
        for number in range(10 * shard, 10 * shard + size):
            files: dict[str, Any] = {
                "json": {
                    "conversations": [
                        {"from": "human", "value": "<image>" * (1 + number % 2) + "which?"},
                        {"from": "gpt", "value": f"number {number}"},
                    ],
                    "image": [f"{n}.png" for n in range(1 + number % 2)],
                },
                "0.png": picture(number),
            }
            samples.append((f"{number:03}", files | {"1.png": picture(9)} if number % 2 else files))
        write_shard(folder / f"{shard:03}.tar", samples)


def open_dialogues(place: str, **options: Any) -> DialogueData:
    """Of one of four machines."""
    return DialogueData(
        DataConfig(train=f"{place}/{{000..002}}.tar", shuffle_group=2, **options),
        dialogues=DialogueDataConfig(max_length=64),
        tiles=None,
        tokens_per_piece=4,
        **OF_ONE_MACHINE,
    )


def write_questions(folder: Path, sizes: tuple[int, ...]) -> None:
    """Shards of images with questions, numbered on."""
    folder.mkdir()
    for shard, size in enumerate(sizes):
        samples = []
        for n in range(10 * shard, 10 * shard + size):
            asked = {"question_id": str(n), "question": "which?", "answers": [f"a{n}"]}
            samples.append((f"{n:03}", {"png": picture(n), "json": {"questions": [asked]}}))
        write_shard(folder / f"{shard:03}.tar", samples)


def open_questions(place: str, **options: Any) -> VqaData:
    """Of one of four machines."""
    return VqaData(
        DataConfig(train=f"{place}/{{000..002}}.tar", shuffle_group=2, **options),
        vqa=VqaDataConfig(),
        vocabulary=None,
        with_answers=True,
        **OF_ONE_MACHINE,
    )


OF_ONE_MACHINE: Any = {
    "preprocess": PreprocessConfig(image_size=16),
    "tokenizer": TOKENIZER,
    "seed": 3,
    "batch_size": BATCH_SIZE,
    "rank": 1,
    "world_size": 4,
}


@pytest.mark.parametrize(
    ("write", "build"),
    [(write_dialogues, open_dialogues), (write_questions, open_questions)],
)
def test_dialogues_and_questions_fetch_what_their_ranks_read_and_that_once(tmp_path, write, build):
    write(tmp_path / "set", (9, 8, 10))
    local = list(build(str(tmp_path / "set")).iterate(0, BATCHES))
    with serving(tmp_path / "set") as web:
        remote = build(web.url)
        web.log.clear()
        assert_equal(local, list(remote.iterate(0, BATCHES)))
        read = {*asked(web)}
        data = build(web.url, cache_dir=str(tmp_path / "c"))
        assert data.source._cache is data._cache and not data._cache.whole
        web.log.clear()
        assert_equal(local, used(data))
        refuse_twice(fetched := asked(web))
        assert {*fetched} == read


def test_a_folder_has_one_cache_in_a_process(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").symlink_to(tmp_path / "c", target_is_directory=True)
    names = ("c", str(tmp_path / "c"), "other")
    caches = {id(cache): cache for cache in map(one_cache, names)}
    assert len(caches) == 1
    with pytest.raises(UsageError, match="name the same, or another folder"):
        one_cache("c", cache_gb=0.5)


def one_cache(folder: str, **options: Any) -> Cache:
    cache = DataConfig(train="x.tar", cache_dir=folder, **options).open_cache()
    assert cache is not None
    return cache


@pytest.mark.parametrize(
    ("ranks", "per_machine", "sharing", "lanes", "is_whole"),
    [
        (1, 1, None, 1, True),
        (8, 8, 8, 1, True),
        (16, 8, 16, 1, True),
        (32, 8, 32, 1, False),
        (32, 8, None, 1, False),
        (32, 8, 32, 4, True),
        (32, 8, 32, 6, False),
        (32, 8, 8, 1, False),  # four share each sample, on four machines
        (32, 8, 2, 1, True),  # sixteen do: two machines read the same
        (32, 8, 1, 1, True),
        (32, 4, 4, 4, True),
        (32, 4, 4, 3, False),
    ],
)
def test_machines_that_share_a_shard_are_counted_by_all_ranks(
    tmp_path, monkeypatch, ranks, per_machine, sharing, lanes, is_whole
):
    """By those of the job, not of the axis along which samples are shared."""
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(per_machine))
    monkeypatch.setattr("mmtrain.data.config.is_alone", lambda: False)
    monkeypatch.setattr("mmtrain.data.config.num_ranks", lambda: ranks)
    config = DataConfig(train="x.tar", cache_dir=str(tmp_path / "c"), lanes=lanes)
    cache = config.open_cache(world_size=sharing)
    assert cache is not None and cache.whole == is_whole


def test_shards_that_are_joined_come_through_the_cache_too(folder, tmp_path):
    titles = [(key, {"json": {"title": f"new {key}"}}) for key, _ in pairs(0, sum(SETS["a"]))]
    (tmp_path / "titles").mkdir()
    write_shard(tmp_path / "titles" / "000.tar", titles)
    with serving(tmp_path / "titles") as web:

        def data(**options: Any) -> ImageTextData:
            options |= {"join": f"{web.url}/000.tar", "captions": {"title": 1.0}}
            return build_data(str(folder / "a" / "*.tar"), batch_size=BATCH_SIZE, **options)

        assert_equal(used(data()), used(data(cache_dir=str(tmp_path / "c"))))
        web.log.clear()
        used(data(cache_dir=str(tmp_path / "c")))
        # What is compared of a shard with its index.
        assert {last - first for _, first, last in asked(web)} <= {4095}
