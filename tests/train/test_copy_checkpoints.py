"""Copies of checkpoints: whole or not taken for one, wherever the copying was interrupted."""

import shutil
from pathlib import Path

import pytest

from mmtrain.checkpoint.sealed_folder import verify
from mmtrain.data.storage import fetch
from mmtrain.data.storage.place import open_place, read_small
from mmtrain.errors import UsageError
from mmtrain.train.copy_checkpoints import (
    prune_copies,
    pull_checkpoint,
    push_checkpoint,
    sealed_in,
)
from mmtrain.train.copy_files import push_files
from tests.data.storage.conftest import s3, s3_url  # noqa: F401
from tests.train.copies import Failing, Killed, killed_at, save


def whole(place, tmp_path: Path) -> dict[int, bytes]:
    """What a stranger gets of every checkpoint that counts as one: its tensors."""
    found = {}
    for step, folder in sealed_in(place.sizes()).items():
        shutil.rmtree(tmp_path / "stranger", ignore_errors=True)
        assert pull_checkpoint(place, folder, tmp_path / "stranger")
        assert verify(tmp_path / "stranger" / folder) == []
        found[step] = (tmp_path / "stranger" / folder / "rank-00000.safetensors").read_bytes()
    return found


@pytest.mark.parametrize("where", ["store", "disk"])
def test_there_and_back(where, tmp_path, s3) -> None:  # noqa: F811
    path = save(tmp_path / "run", 3)
    place = open_place(f"{s3.url}/r" if where == "store" else str(tmp_path / "copy"), key="to")
    assert push_checkpoint(path, place, replaces=False) > 4000
    assert push_checkpoint(path, place, replaces=False) == 0
    assert whole(place, tmp_path) == {3: (path / "rank-00000.safetensors").read_bytes()}


def test_a_push_that_is_killed_anywhere_goes_on(tmp_path) -> None:
    """Nothing counts before its end, and what arrived is not sent again."""
    path = save(tmp_path / "run", 3)
    for number in range(20):
        place = Failing(tmp_path / f"copy{number}", killed_at(number))
        try:
            push_checkpoint(path, place, replaces=False)
        except Killed:
            is_sealed = "checkpoints/step-00000003/manifest.json" in place.put_names
            assert sealed_in(place.sizes()).keys() == ({3} if is_sealed else set())
        else:
            break
        before = place.put_names
        again = Failing(tmp_path / f"copy{number}")
        push_checkpoint(path, again, replaces=False)
        data = [name for name in before + again.put_names if "manifest" not in name]
        assert len(data) == len(set(data)) == 3
        assert whole(again, tmp_path).keys() == {3}
    assert number == 6, "every call of a push was the one that failed"


def test_what_another_save_left_half_sent_does_not_count(tmp_path) -> None:
    """Of the same step and sizes: a run that was resumed saves it again."""
    first, other = save(tmp_path / "a", 3, value=1.0), save(tmp_path / "b", 3, value=2.0)
    for number in range(12):
        place = Failing(tmp_path / f"copy{number}", killed_at(number))
        plain = Failing(tmp_path / f"copy{number}")
        try:
            push_checkpoint(first, place, replaces=True)
        except Killed:
            push_checkpoint(other, plain, replaces=True)
        content = (other if number < 6 else first) / "rank-00000.safetensors"
        assert whole(plain, tmp_path) == {3: content.read_bytes()}
    for number in range(12):
        place = Failing(tmp_path / "copy11", killed_at(number))
        plain = Failing(tmp_path / "copy11")
        push_checkpoint(first, plain, replaces=True)
        try:
            push_checkpoint(other, place, replaces=True)
        except Killed:
            counted = whole(plain, tmp_path)
            wanted = [(one / "rank-00000.safetensors").read_bytes() for one in (first, other)]
            assert counted == {} or counted[3] in wanted
            push_checkpoint(other, plain, replaces=True)
        assert whole(plain, tmp_path)[3] == (other / "rank-00000.safetensors").read_bytes()
    with pytest.raises(UsageError, match="another checkpoint of the same step"):
        push_checkpoint(first, Failing(tmp_path / "copy11"), replaces=False)


def test_a_copy_that_lost_a_file_is_mended_by_a_push(tmp_path) -> None:
    path, place = save(tmp_path / "run", 3), Failing(tmp_path / "copy")
    push_checkpoint(path, place, replaces=False)
    for name, damage in (("state.json", None), ("rank-00000.safetensors", b"short")):
        file = place.folder / "checkpoints/step-00000003" / name
        file.unlink() if damage is None else file.write_bytes(damage)
        with pytest.raises((UsageError, OSError), match=name):
            pull_checkpoint(place, "checkpoints/step-00000003", tmp_path / f"to {name}")
        assert push_checkpoint(path, place, replaces=False) > 0
    assert whole(place, tmp_path).keys() == {3}


def test_changed_bytes_are_named_and_nothing_is_taken_for_whole(tmp_path) -> None:
    path, place = save(tmp_path / "run", 3), Failing(tmp_path / "copy")
    push_checkpoint(path, place, replaces=False)
    file = place.folder / "checkpoints/step-00000003/rank-00000.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(UsageError, match=r"rank-00000.safetensors is damaged"):
        pull_checkpoint(place, "checkpoints/step-00000003", tmp_path / "new")
    assert not (tmp_path / "new/checkpoints/step-00000003").exists()
    (path / "state.json").write_text("{}")
    with pytest.raises(UsageError, match=r"state.json has 2 bytes.*not sent"):
        push_checkpoint(path, Failing(tmp_path / "other"), replaces=False)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("where", ["store", "disk"])
def test_bytes_that_changed_there_are_sent_again(where, tmp_path, s3) -> None:  # noqa: F811
    """Of the same size, in a checkpoint and in a run's own files; what has not changed stays."""
    path = save(tmp_path / "run", 3)
    (tmp_path / "run" / "notes.txt").write_text("a note")
    (tmp_path / "run" / "recipe.toml").write_text("steps = 3")
    place = open_place(f"{s3.url}/a" if where == "store" else str(tmp_path / "copy"), key="to")

    def push() -> tuple[int, int]:
        files = push_files(tmp_path / "run", place)
        return push_checkpoint(path, place, replaces=False), files

    assert min(push()) > 0
    assert push() == (0, 0)
    folder = "checkpoints/step-00000003"
    names = ["state.json", "rank-00000.safetensors"]
    for changed in ([names[0]], [names[1]], names):
        for name in changed:
            content = bytearray(read_small(place, f"{folder}/{name}"))
            content[len(content) // 2] ^= 1
            place.put(f"{folder}/{name}", bytes(content))
        assert push() == (sum((path / name).stat().st_size for name in changed), 0)
        assert whole(place, tmp_path)[3] == (path / names[1]).read_bytes()
    place.put("notes.txt", b"A note")
    assert push_files(tmp_path / "run", place, only=("recipe.toml",)) == 0
    assert push() == (0, 6)
    assert read_small(place, "notes.txt") == b"a note"
    (tmp_path / "run" / "recipe.toml").write_text("steps = 4")
    place.put("notes.txt", b"B note")
    assert push_files(tmp_path / "run", place, only=("recipe.toml",)) == 9
    assert push() == (0, 6) and push() == (0, 0)


@pytest.mark.parametrize("damage", [b"", b"[1]", b"{", b"\xff"])
def test_etags_that_cannot_be_read_send_all_again(damage, tmp_path, s3) -> None:  # noqa: F811
    path, place = save(tmp_path / "run", 3), open_place(f"{s3.url}/b{len(damage)}", key="to")
    sent = push_checkpoint(path, place, replaces=False)
    place.put("checkpoints/step-00000003/etags.json", damage)
    assert push_checkpoint(path, place, replaces=False) == sent
    assert push_checkpoint(path, place, replaces=False) == 0


def test_a_copy_without_etags_counts_by_sizes(tmp_path, s3) -> None:  # noqa: F811
    path, place = save(tmp_path / "run", 3), open_place(f"{s3.url}/c", key="to")
    push_checkpoint(path, place, replaces=False)
    place.delete(["checkpoints/step-00000003/etags.json"])
    assert push_checkpoint(path, place, replaces=False) == 0
    assert whole(place, tmp_path).keys() == {3}


def test_a_pull_that_is_killed_goes_on_inside_a_file(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(fetch, "_PART", 256)
    path, place = save(tmp_path / "run", 3), Failing(tmp_path / "copy")
    push_checkpoint(path, place, replaces=False)
    read, sizes = fetch.open_file, []

    class Counting:
        def __init__(self, path: str) -> None:
            self.file = read(path)
            self.size = self.file.size

        def read(self, offset: int, size: int) -> bytes:
            sizes.append(size)
            if len(sizes) in (2, 9, 15):
                raise Killed
            return self.file.read(offset, size)

        def __enter__(self):
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

    monkeypatch.setattr(fetch, "open_file", Counting)
    new, folder = tmp_path / "new", "checkpoints/step-00000003"
    for _ in range(3):
        with pytest.raises(Killed):
            pull_checkpoint(place, folder, new)
        assert not (new / folder).exists()
    pull_checkpoint(place, folder, new)
    assert verify(new / folder) == [] and [each.name for each in (new / folder).parent.iterdir()]
    total = sum(each.stat().st_size for each in path.iterdir())
    assert len(sizes) < total / 256 + 3 * 4 + 4, "what had come was not fetched again"
    assert pull_checkpoint(place, folder, new) is None


def test_a_damaged_one_here_is_replaced(tmp_path) -> None:
    path, place = save(tmp_path / "run", 3), Failing(tmp_path / "copy")
    push_checkpoint(path, place, replaces=False)
    (path / "tensors.json").write_text("")
    assert pull_checkpoint(place, "checkpoints/step-00000003", tmp_path / "run")
    assert verify(path) == []


def test_prune_keeps_the_newest_sealed(tmp_path) -> None:
    place = Failing(tmp_path / "copy")
    for step in (1, 2, 3, 4):
        push_checkpoint(save(tmp_path / "run", step), place, replaces=False)
    (place.folder / "checkpoints/step-00000004/manifest.json").unlink()
    prune_copies(place, keep=2)
    assert sealed_in(place.sizes()).keys() == {2, 3}
    assert any("step-00000004" in name for name in place.sizes())
    prune_copies(place, keep=1)
    assert sealed_in(place.sizes()).keys() == {3}
