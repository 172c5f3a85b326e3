"""Where the paths of a suite count from: one folder for all of them."""

import os
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from mmtrain.cli import main
from mmtrain.errors import UsageError
from mmtrain.eval.config import EVALUATORS
from mmtrain.settings.decode import encode
from mmtrain.settings.paths import change_paths
from mmtrain.suite.config import DATA_KEYS, WORDS, data_of, file_keys, load_suite
from mmtrain.suite.running import _open
from tests.suite.folders import suite_words, write_everything, write_wds

LABELLED = {"classes": "lists/birds.json", "subset": "some.txt", "templates": "prompts.txt"}
WRITTEN: dict[str, dict[str, Any]] = {
    "zero_shot": {"data": ["a/0.tar", "a/1.tar"], **LABELLED},
    "linear_probe": {"train": "a", "test": "b", "validation": "c", "classes": "c.txt"},
    "knn": {"train": "a", "test": "b", "classes": "birds.json", "subset": "some.json"},
    "retrieval": {"data": "coco/{0..3}.tar"},
    "pairs": {"data": "pairs.jsonl"},
    "associations": {"data": "images", "cues": "cues.csv"},
    "vqa": {"data": "i", "questions": "q.json", "annotations": "a.json", "choices": "c.json"},
}
"""Every key of every evaluation that may be a path, as one."""


def suite_file(folder: Path, kind: str, keys: dict[str, Any]) -> Path:
    lines = [f"{key} = {value if isinstance(value, list) else repr(value)}"
             for key, value in keys.items()]  # fmt: skip
    path = folder / "suite.toml"
    path.write_text("\n".join([f"[[{kind}]]", 'name = "one"', *lines]))
    return path


@pytest.mark.parametrize("kind", EVALUATORS)
def test_every_path_counts_from_root(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of every kind of evaluation, wherever the command runs and the file lies."""
    monkeypatch.chdir(tmp_path)
    path = suite_file(tmp_path, kind, WRITTEN[kind])
    for root, folder in ((Path("/data"), "/data"), (Path("sets"), f"{tmp_path}/sets")):
        (one,) = load_suite(path, root=root).all
        seen: set[str] = set()

        def look(text: str, key: str, folder: str = folder, seen: set[str] = seen) -> str:
            assert text.startswith(f"{folder}/"), key
            seen.add(key.partition("[")[0])
            return text

        change_paths(type(one), encode(one), look)
        assert seen == WRITTEN[kind].keys() - {"name"} == file_keys(one)
        assert seen <= {*DATA_KEYS, *WORDS}  # a set's own paths, or lists that say which words


@pytest.mark.parametrize("kind", EVALUATORS)
def test_every_key_that_is_a_path_stands_above(kind: str) -> None:
    """A new one has to be told apart from words, and put into the test."""
    hints = get_type_hints(EVALUATORS[kind], include_extras=True)
    paths = {name for name, hint in hints.items() if "'path'" in str(hint)}
    assert paths <= {*DATA_KEYS, *WORDS}
    assert paths - set(WORDS) <= WRITTEN[kind].keys()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("classes", "imagenet-a"),
        ("subset", "all"),
        ("templates", "simple"),
        ("classes", "/elsewhere/birds.json"),
        ("data", "torchvision:CIFAR10/test:/root"),
        ("data", "classes:/elsewhere"),
        ("data", "synthetic:8"),
        ("data", "s3://bucket/0.tar"),
    ],
)
def test_words_and_whole_paths_stay(key: str, value: str, tmp_path: Path) -> None:
    path = suite_file(tmp_path, "zero_shot", {"data": "d", key: value})
    (one,) = load_suite(path, root=Path("/data")).all
    assert getattr(one, key) == value
    assert (key in file_keys(one)) == (os.path.isabs(value) or ":" in value)


@pytest.mark.parametrize("before", ["classes:", "captions:", "torchvision:CIFAR10/test:"])
def test_the_path_in_a_name_counts_from_root_too(before: str, tmp_path: Path) -> None:
    """And is missed where it is missing."""
    path = suite_file(tmp_path, "zero_shot", {"data": f"{before}sets/one"})
    (one,) = load_suite(path, root=tmp_path).all
    assert data_of(one) == [f"{before}{tmp_path}/sets/one"]
    assert _open(one).missing == data_of(one)[0]


@pytest.mark.parametrize(
    ("key", "value", "hint"),
    [
        ("classes", "birds.json", ""),
        ("classes", "imagnet-a", "did you mean imagenet-a?"),
        ("subset", "imagnet-r", "did you mean imagenet-r?"),
        ("templates", "simpel", "did you mean simple?"),
    ],
)
def test_a_missing_list_is_told_with_its_place(
    key: str, value: str, hint: str, tmp_path: Path
) -> None:
    """Not with what was written alone, which says nothing of where it counts from."""
    write_wds(tmp_path / "data/wds_birds", seed=0, count=3)
    path = suite_file(tmp_path, "zero_shot", {"data": "wds_birds", key: value})
    (one,) = load_suite(path, root=tmp_path / "data").all
    with pytest.raises(UsageError) as told:
        one.open()
    assert f"{key} = {tmp_path}/data/{value}" in str(told.value) and hint in str(told.value)


@pytest.mark.slow
def test_a_file_of_classes_lies_with_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder moves as a whole, and what was done before is done still."""
    write_everything(tmp_path, num_models=1, count=3)
    (tmp_path / "data/mine.json").write_text('["fox", "owl", "hare"]')
    suite_file(tmp_path, "zero_shot", {"data": "wds_birds", "classes": "mine.json"})
    monkeypatch.chdir("/")
    assert main(suite_words(tmp_path, models="a")) == 0
    results = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/results").rglob("*.json")}
    (tmp_path / "data").rename(tmp_path / "moved")
    words = suite_words(tmp_path, models="a")
    words[words.index("--root") + 1] = str(tmp_path / "moved")
    assert main(words) == 0
    assert results == {path: path.stat().st_mtime_ns for path in results}


def test_a_root_in_a_store_is_refused(tmp_path: Path) -> None:
    path = suite_file(tmp_path, "zero_shot", {"data": "d"})
    with pytest.raises(UsageError, match="root = s3:/bucket is an address"):
        load_suite(path, root=Path("s3://bucket"))
