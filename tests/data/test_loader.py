"""`mmtrain.data.open_loader`: other people's trainers get every sample once, and go on exactly."""

import json
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from mmtrain.data import Loader, SampleError, open_loader
from mmtrain.data.images.transforms import AugmentConfig
from mmtrain.data.mixture import MixtureSource
from mmtrain.data.shards.source import ShardSource
from mmtrain.data.text.tokenizer import TokenizerConfig
from mmtrain.errors import UsageError
from tests.data.shard_files import build_data, encoded, picture, write_set, write_shard


@pytest.fixture
def shards(tmp_path: Path) -> str:
    return write_set(tmp_path / "set", [9, 12, 7])


def number(files: dict[str, Any]) -> torch.Tensor:
    return torch.tensor([int(files["__key__"]), files["__seed__"]])


def numbers(batches: Sequence[torch.Tensor]) -> list[int]:
    return [int(row[0]) for batch in batches for row in batch]


def test_files_are_as_webdataset_gives_them(shards: str) -> None:
    source = ShardSource(shards)
    expected = {source.key(n): source.read(n) for n in range(28)}
    loader = open_loader(shards, batch_size=None)
    found = list(loader)
    assert len(found) == len(loader) == 28
    for files in found:
        own = {name: files[name] for name in files if not name.startswith("__")}
        assert own == expected.pop(files["__key__"]) and files["__url__"].endswith(".tar")
    batches = list(open_loader(shards, batch_size=5))
    assert [len(batch) for batch in batches] == [5] * 5 and "txt" in batches[0][0]


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("workers", [0, 2])
def test_the_order_is_one_for_any_ranks_and_workers(
    shards: str, world_size: int, workers: int
) -> None:
    data = build_data(shards, batch_size=4, seed=3)
    loaders = [
        open_loader(
            shards,
            batch_size=4,
            map=number,
            seed=3,
            rank=rank,
            world_size=world_size,
            workers=workers,
        )
        for rank in range(world_size)
    ]
    for epoch in range(2):
        assert [loader.epoch for loader in loaders] == [epoch] * world_size
        parts = list(zip(*loaders, strict=True))
        assert len(parts) == len(loaders[0]) == 7
        for count, part in enumerate(parts):
            keys = [int(key) for key in data.batch(7 * epoch + count).keys]
            assert numbers(part) == keys


@pytest.mark.parametrize("batch_size", [4, None])
@pytest.mark.parametrize("taken", [0, 1, 3, 6])
def test_a_state_goes_on_behind_what_was_taken(
    shards: str, batch_size: int | None, taken: int
) -> None:
    def opened() -> Loader:
        return open_loader(shards, batch_size=batch_size, map=number, seed=1)

    whole = opened()
    expected = [each.tolist() for _ in range(2) for each in whole]
    first = opened()
    rows = iter(first)
    found = [next(rows).tolist() for _ in range(taken)]
    state = json.loads(json.dumps(first.state_dict()))
    rows.close()
    second = opened()
    second.load_state_dict(state)
    while second.epoch < 2:
        found += [each.tolist() for each in second]
    assert found == expected


def test_a_state_goes_on_with_other_ranks(shards: str) -> None:
    options: dict[str, Any] = {"batch_size": 4, "map": number, "seed": 1}
    whole = numbers(list(open_loader(shards, **options)))
    first = open_loader(shards, **options)
    rows = iter(first)
    found = numbers([next(rows), next(rows)])
    parts = [open_loader(shards, **options, rank=rank, world_size=2) for rank in range(2)]
    for part in parts:
        part.load_state_dict(first.state_dict())
    found += [each for pair in zip(*parts, strict=True) for each in numbers(pair)]
    assert found == whole


def test_what_a_function_refuses_is_replaced_again_and_again(shards: str) -> None:
    def odd(files: dict[str, Any]) -> torch.Tensor:
        if int(files["__key__"]) % 7 == 0:
            raise SampleError("a seventh")
        return number(files)

    loader = open_loader(shards, batch_size=4, map=odd, max_bad_fraction=1.0)
    batches = [batch.tolist() for batch in loader]
    assert all(row[0] % 7 for batch in batches for row in batch)
    assert loader.bad["a seventh"] >= 4
    again = open_loader(shards, batch_size=4, map=odd, max_bad_fraction=1.0, workers=1)
    assert [batch.tolist() for batch in again] == batches
    few = open_loader(shards, batch_size=4, map=odd, max_bad_fraction=0.001)
    with pytest.raises(UsageError, match=r"max_bad_fraction = 0.001: .* read are bad \(a seventh"):
        list(few)


def test_tensors_are_those_that_mmtrain_trains_on(shards: str) -> None:
    loader = open_loader(
        shards,
        batch_size=4,
        image_size=16,
        tokenizer=TokenizerConfig(context_length=16),
        seed=5,
        captions={"names": 1.0},
    )
    data = build_data(shards, batch_size=4, captions={"names": 1.0})
    for number, batch in enumerate(loader):
        expected = data.batch(number)
        assert batch.keys == expected.keys
        assert torch.equal(batch.images_BCHW, expected.images_BCHW)
        assert torch.equal(batch.tokens_BT, expected.tokens_BT)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"image_size": 16, "map": number}, "image_size and map are two ways"),
        ({"batch_size": None, "image_size": 16}, "batch_size = None hands on what map makes"),
        ({"tokenizer": TokenizerConfig()}, "tokenizer has no effect without image_size"),
        ({"rank": 2, "world_size": 2}, "rank = 2 must be within 0 and world_size - 1 = 1"),
        ({"workers": -1}, "data.workers = -1"),
        ({"wrokers": 1}, "unknown key data.wrokers; did you mean data.workers"),
        ({"workers": "2"}, 'data.workers = "2" must be an int'),
        ({"last": "msak"}, 'data.last = "msak" is unknown; did you mean "mask"'),
        ({"image_size": 16, "captions": "txt"}, 'data.captions = "txt" must be'),
        ({"cache_dir": "c"}, "cache_dir = c has no effect: none of the data are in a store"),
        ({"prefetch": 4}, "prefetch = 4 has no effect without workers"),
        ({"collate": len}, "collate has no effect without map"),
        ({"image_size": 16, "collate": len}, "collate has no effect without map"),
        ({"batch_size": None, "map": number, "collate": len}, "collate has no effect with batch"),
        ({"pin_memory": True}, "pin_memory = True has no effect without image_size or map"),
        (
            {"map": number, "captions": {"alt": 1.0}},
            "captions = .*'alt'.* has no effect without im",
        ),
        ({"fast_decode": True}, "fast_decode = True has no effect without image_size"),
        ({"map": number, "label_key": "id"}, "label_key = id has no effect without image_size"),
        ({"batch_size": 5, "world_size": 2}, "multiple of the 2 data-parallel ranks"),
        ({"batch_size": 99}, "larger than the data"),
    ],
)
def test_mistakes_are_named(shards: str, options: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        open_loader(shards, **{"batch_size": 4} | options)


def test_settings_are_taken_in_any_form_that_says_the_same(shards: str, tmp_path: Path) -> None:
    """Paths, tuples, sections as objects or tables, and None; and nothing is made for a refusal."""
    augment = AugmentConfig(crop_scale=(0.5, 1.0))
    forms: list[dict[str, Any]] = [
        {"train": shards, "augment": augment},
        {"train": [Path(shards)], "augment": {"crop_scale": [0.5, 1]}, "index_dir": None},
    ]
    loaders = [open_loader(**form, batch_size=4, image_size=16, join=()) for form in forms]
    first, second = (loader.data.config for loader in loaders)
    assert first.augment == second.augment == augment and second.train == (shards,)
    sources = tuple(
        MixtureSource(name=name, train=train, weight=1.0, label_key="")
        for name, train in (("a", shards), ("b", "synthetic:8"))
    )
    with pytest.raises(UsageError, match=r"mixture\[a\].label_key =  has no effect"):
        open_loader(None, mixture=sources, batch_size=4)
    cached = {"image_size": 16, "cache_dir": str(tmp_path / "c")}
    with pytest.raises(UsageError, match=r"cache_dir = .* has no effect"):
        open_loader(None, mixture=sources, batch_size=4, **cached)
    assert not (tmp_path / "c").exists()
    assert open_loader(None, mixture=sources, batch_size=4, image_size=16).num_samples == 36


@pytest.mark.parametrize("change", [{"seed": 2}, {"batch_size": 2}, {"shuffle_group": 1}])
def test_another_order_is_refused(shards: str, change: dict[str, Any]) -> None:
    state = open_loader(shards, batch_size=4, seed=1).state_dict()
    other = open_loader(shards, **{"batch_size": 4, "seed": 1} | change)
    with pytest.raises(UsageError, match="is not this loader's"):
        other.load_state_dict(state)


def test_amid_a_batch_the_ranks_must_stay(shards: str) -> None:
    loader = open_loader(shards, batch_size=None)
    rows = iter(loader)
    next(rows)
    other = open_loader(shards, batch_size=None, rank=0, world_size=2, last="mask")
    other_state = loader.state_dict() | {"batch_size": 64}
    with pytest.raises(UsageError, match="amid a batch of 1 ranks, not 2"):
        other.load_state_dict(other_state)
    rows.close()


@pytest.mark.slow
def test_the_example_of_the_data_page_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """open_clip's model, transforms, tokenizer and loss, on our batches."""
    text = Path("docs/data.md").read_text()
    (program,) = re.findall(r"^```python\n(.*?open_loader.*?)^```$", text, re.M | re.S)
    samples = [
        (f"{n:03}", {"jpg": encoded(picture((40, 40), seed=n), "JPEG"), "txt": f"picture {n}"})
        for n in range(24)
    ]
    (tmp_path / "data" / "my_shards").mkdir(parents=True)
    write_shard(tmp_path / "data" / "my_shards" / "00000.tar", samples)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # open_clip's own
        exec(compile(program, "docs/data.md", "exec"), names)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["loader"]
    assert state["batch"] == 6 and torch.isfinite(names["loss"])
