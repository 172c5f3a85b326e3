"""Files put, listed and removed: alike in a folder and in a store."""

import shutil
import threading

import pytest

from mmtrain.data.storage.open import open_file
from mmtrain.data.storage.patience import waiting
from mmtrain.data.storage.place import Place, open_place, read_small
from mmtrain.errors import UsageError


@pytest.fixture(params=["folder", "file", "store", "bucket"])
def place(request, tmp_path, s3) -> Place:
    paths = {
        "folder": str(tmp_path / "copies/run"),
        "file": f"file://{tmp_path}/copies%20of/run",
        "store": f"{s3.url}/copies/run/",
        "bucket": s3.url,
    }
    return open_place(paths[request.param], key="to")


NAMES = ("a.json", "checkpoints/step-00000001/x.safetensors", "eval/odd name #1 100% é.json")


def test_what_is_put_is_there(place, tmp_path) -> None:
    assert place.sizes() == {}
    for number, name in enumerate(NAMES):
        place.put(name, b"x" * number)
    assert place.sizes() == {name: number for number, name in enumerate(NAMES)}
    source = tmp_path / "source"
    source.write_bytes(b"another")
    place.put(NAMES[0], source)
    place.put(NAMES[2], b"more")
    assert [read_small(place, name) for name in NAMES] == [b"another", b"x", b"more"]
    place.delete([NAMES[0], NAMES[1], "never there"])
    place.delete([])
    assert place.sizes() == {NAMES[2]: 4}


def test_a_folder_is_listed_while_a_run_drops_checkpoints_in_it(tmp_path) -> None:
    place, is_over = open_place(str(tmp_path / "run"), key="to"), threading.Event()
    place.put("recipe.toml", b"stays")

    def churn() -> None:
        step = tmp_path / "run/checkpoints/step-00000001"
        while not is_over.is_set():
            step.mkdir(parents=True, exist_ok=True)
            for number in range(20):
                (step / f"{number}.json").write_text("x")
            shutil.rmtree(step)

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(500):
            assert place.sizes()["recipe.toml"] == 5
    finally:
        is_over.set()
        thread.join()


def test_a_neighbour_is_not_in_it(s3, tmp_path) -> None:
    for here in (s3.url, str(tmp_path)):
        open_place(f"{here}/runs/ab", key="to").put("x", b"")
        assert open_place(f"{here}/runs/a", key="to").sizes() == {}


def test_a_large_file_goes_in_parts(s3, tmp_path, monkeypatch) -> None:
    source = tmp_path / "large"
    source.write_bytes(bytes(range(256)) * (23 << 12))  # 23 MiB: parts of 8
    place = open_place(f"{s3.url}/runs", key="to")
    place.put("large", source)
    with open_file(place.address("large")) as file:
        assert file.read(0, file.size) == source.read_bytes()
        assert file.version is not None and file.version.strip('"').endswith("-3")


@pytest.mark.parametrize("path", ["http://host/x", "https://host/x", "pipe:cat", "ftp://host/x"])
def test_what_cannot_be_written_to_is_refused(path) -> None:
    with pytest.raises(UsageError, match=r"DST = .*name a folder of"):
        open_place(path, key="DST")


def test_a_place_that_is_not_there_says_so(s3, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with waiting(0.0):
        with pytest.raises(OSError, match="there is no bucket s3://no-such-bucket"):
            open_place("s3://no-such-bucket/x", key="to").put("a", b"")
        with pytest.raises(OSError, match="Not a directory"):
            open_place(str(tmp_path / "file/below"), key="to").put("a", b"")
