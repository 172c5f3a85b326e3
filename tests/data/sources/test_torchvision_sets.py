"""torchvision's data sets on disk, against torchvision itself; what is not there is one line."""

import hashlib
import inspect
import json
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torchvision import datasets

from mmtrain.data.sample_error import SampleError
from mmtrain.data.sources.open import open_source
from mmtrain.data.sources.torchvision_sets import KNOWN, TorchvisionSource
from mmtrain.errors import UsageError
from mmtrain.eval.samples import decode_sample
from tests.data.shard_files import encoded, picture


def write_mnist(root: Path, *, num: tuple[int, int] = (1, 12)) -> None:
    """The four files of MNIST, with `num` training and test digits."""
    raw = root / "MNIST/raw"
    raw.mkdir(parents=True)
    for part, count in zip(("train", "t10k"), num, strict=True):
        pixels = np.random.default_rng(count).integers(0, 256, (count, 28, 28), dtype=np.uint8)
        images = struct.pack(">IIII", 2051, count, 28, 28) + pixels.tobytes()
        labels = struct.pack(">II", 2049, count) + bytes(n % 10 for n in range(count))
        (raw / f"{part}-images-idx3-ubyte").write_bytes(images)
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(labels)


def write_food(root: Path) -> None:
    """Food-101 with two dishes of three photographs, one of each in the test split."""
    base = root / "food-101"
    (base / "meta").mkdir(parents=True)
    split: dict[str, dict[str, list[str]]] = {"train": {}, "test": {}}
    for row, dish in enumerate(("apple_pie", "beet_salad")):
        (base / "images" / dish).mkdir(parents=True)
        for number in range(3):
            image = picture((40 + 5 * number, 30 + row), seed=3 * row + number)
            (base / "images" / dish / f"{number}.jpg").write_bytes(encoded(image, "JPEG"))
            split["test" if number == 2 else "train"].setdefault(dish, []).append(
                f"{dish}/{number}"
            )
    for name, files in split.items():
        (base / "meta" / f"{name}.json").write_text(json.dumps(files))


def write_cifar(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CIFAR-10 with five images a batch, these batches' MD5 in the place of the published ones."""
    base = root / "cifar-10-batches-py"
    base.mkdir(parents=True)

    def write(name: str, content: Any) -> str:
        data = pickle.dumps(content)
        (base / name).write_bytes(data)
        return hashlib.md5(data, usedforsecurity=False).hexdigest()

    def batch(seed: int) -> dict[str, Any]:
        pixels = np.random.default_rng(seed).integers(0, 256, (5, 3072), dtype=np.uint8)
        return {"data": pixels, "labels": [seed, 9, 8, 7, 6]}

    lists = {
        "train_list": [
            [f"data_batch_{n}", write(f"data_batch_{n}", batch(n))] for n in range(1, 6)
        ],
        "test_list": [["test_batch", write("test_batch", batch(0))]],
    }
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship"]
    meta = write("batches.meta", {"label_names": [*names, "truck"]})
    for name, value in lists.items():
        monkeypatch.setattr(datasets.CIFAR10, name, value)
    monkeypatch.setattr(
        datasets.CIFAR10, "meta", {"filename": "batches.meta", "key": "label_names", "md5": meta}
    )


def check_equal(source: TorchvisionSource, theirs: Any) -> None:
    """Every image bit for bit, every class."""
    assert source.num_samples == len(theirs) == sum(source.shard_sizes)
    for number in range(len(theirs)):
        image, label = theirs[number]
        members = source.read(number)
        assert np.array_equal(np.asarray(decode_sample(members)), np.asarray(image.convert("RGB")))
        assert members["cls"].decode() == str(label)
        assert members["txt"].decode() == source.classes[label]


def test_images_and_classes_are_torchvisions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_mnist(tmp_path)
    write_food(tmp_path)
    write_cifar(tmp_path, monkeypatch)
    folder = tmp_path / "eurosat/2750"
    for name in ("Forest", "River"):
        (folder / name).mkdir(parents=True)
        (folder / name / "1.jpg").write_bytes(encoded(picture((64, 64), seed=1), "JPEG"))
    for spec, theirs, names in (
        ("mnist/test", datasets.MNIST(tmp_path, train=False), list("0123456789")),
        ("food101/test", datasets.Food101(tmp_path, split="test"), ["apple pie", "beet salad"]),
        ("cifar10/train", datasets.CIFAR10(tmp_path, train=True), None),
        ("eurosat/all", datasets.EuroSAT(tmp_path), ["Forest", "River"]),
    ):
        source = open_source(f"torchvision:{spec}:{tmp_path}", image_key="filepath")
        assert isinstance(source, TorchvisionSource)
        assert list(source.classes) == (names or theirs.classes)
        check_equal(source, theirs)
        assert source.key(1) == f"{spec}/1"
        again = pickle.loads(pickle.dumps(source))
        assert again.read(0) == source.read(0) and again.fingerprint == source.fingerprint
    splits = [f"torchvision:food101/{name}:{tmp_path}" for name in ("train", "test")]
    one, two = (TorchvisionSource(spec).fingerprint for spec in splits)
    assert one != two


def test_every_known_set_is_torchvisions() -> None:
    """Each name is a class of the installed version, and takes the arguments that we give it."""
    for known in KNOWN.values():
        takes = inspect.signature(getattr(datasets, known.name)).parameters
        assert all(
            argument in takes for arguments in known.splits.values() for argument in arguments
        )


class Payload:
    """Unpickled, it leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_other_pickles_than_the_published_are_not_read(tmp_path: Path) -> None:
    base = tmp_path / "cifar-10-batches-py"
    base.mkdir()
    for name in ("test_batch", "batches.meta", *(f"data_batch_{n}" for n in range(1, 6))):
        (base / name).write_bytes(pickle.dumps(Payload(tmp_path / "was here")))
    with pytest.raises(
        UsageError, match=r"finds no whole data set in .*\(Dataset not found or cor"
    ):
        TorchvisionSource(f"torchvision:cifar10/test:{tmp_path}")
    assert not (tmp_path / "was here").exists()


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        (
            "torchvision:cifar10/test:{}",
            r"torchvision finds no whole data set in .*nothing is fetch",
        ),
        (
            "torchvision:food101/test:{}/none",
            r"finds no whole data set in .*none \(Dataset not found",
        ),
        ("torchvision:cifar1O/test:{}", r"'cifar1O' is unknown; write torchvision:NAME/SPLIT:ROOT"),
        ("torchvision:cifar10:{}", r"cifar10 has no split ''; write cifar10/train or cifar10/test"),
        (
            "torchvision:dtd/all:{}",
            r"dtd has no split 'all'; write dtd/train or dtd/val or dtd/test",
        ),
        ("torchvision:mnist/test", r"names no folder; write torchvision:mnist/test:ROOT"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, spec: str, told: str) -> None:
    with pytest.raises(UsageError, match=f"data = torchvision:.*{told}") as caught:
        TorchvisionSource(spec.format(tmp_path), key="data")
    assert len(str(caught.value).splitlines()) == 1
    assert not any(tmp_path.iterdir()), "nothing is made, nothing is fetched"


def test_without_torchvision_the_extra_is_named(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'mmtrain\[torchvision\]'"):
        TorchvisionSource(f"torchvision:mnist/test:{tmp_path}")


def test_a_photograph_that_is_gone_or_broken_is_a_bad_sample(tmp_path: Path) -> None:
    write_food(tmp_path)
    source = TorchvisionSource(f"torchvision:food101/train:{tmp_path}")
    whole = source.fingerprint
    images = tmp_path / "food-101/images/apple_pie"
    (images / "0.jpg").unlink()
    (images / "1.jpg").write_bytes(b"no image")
    for number, reason in enumerate(("image missing", "image corrupt")):
        with pytest.raises(SampleError, match=reason):
            source.read(number)
    assert source.fingerprint != whole
