"""A run's own files in another place: by size and checksum, whenever the copying was cut."""

import json
import os
import shutil
import traceback
from pathlib import Path

import pytest

from mmtrain.errors import UsageError
from mmtrain.train.copy_files import RECORD_FILE, differing, pull_files, push_files
from tests.train.copies import Failing, Killed, killed_at

LEFT_OUT = ("checkpoints/step-00000001/x", ".lock", "heartbeats/0", "a.tmp", ".a.partial")


def write(run: Path, **contents: str) -> dict[str, str]:
    """Files of a run, a dot for each `__` of a name."""
    found = {name.replace("__", "."): text for name, text in contents.items()}
    for name, text in found.items():
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(text)
    return found


def files(folder: Path) -> dict[str, str]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_text() for path in paths}


def test_all_but_checkpoints_and_hidden_ones(tmp_path) -> None:
    run, place = tmp_path / "run", Failing(tmp_path / "copy")
    want = write(run, recipe__toml="a", **{"eval/zero shot__json": "b", "export/model__x": "c"})
    write(run, **dict.fromkeys(LEFT_OUT, ""))
    assert push_files(run, place) == 3 and push_files(run, place) == 0
    pull_files(place, tmp_path / "back")
    assert files(tmp_path / "back") == want
    write(run, recipe__toml="longer")
    place.put_names.clear()
    assert push_files(run, place) == 6
    assert place.put_names == [RECORD_FILE, "recipe.toml", RECORD_FILE]
    assert differing(place, tmp_path / "back") == ["recipe.toml"]
    assert pull_files(place, tmp_path / "back") == 6


def test_a_push_that_is_killed_anywhere_leaves_each_file_old_or_new(tmp_path) -> None:
    run = tmp_path / "run"
    for number in range(9):
        place = Failing(tmp_path / f"copy{number}")
        old = write(run, a="1", b="2", **{"eval/x__failed__json": "3"})
        push_files(run, place)
        new = write(run, a="one", b="two", c="three")
        (run / "eval/x.failed.json").unlink()
        place.before, place.calls = killed_at(number), 0
        try:
            push_files(run, place)
        except Killed:
            pull_files(place, tmp_path / f"back{number}")
            for name, text in files(tmp_path / f"back{number}").items():
                assert text in (old.get(name), new.get(name))
        else:
            break
        push_files(run, Failing(tmp_path / f"copy{number}"))
        pull_files(place, tmp_path / f"again{number}")
        assert files(tmp_path / f"again{number}") == new
        (run / "c").unlink()
    assert number == 6


def test_what_a_run_takes_back_goes_and_nothing_else(tmp_path) -> None:
    run, place = tmp_path / "run", Failing(tmp_path / "copy")
    gone = ("history.jsonl", "bad_samples.jsonl", "bad_batches.jsonl", "eval/a.failed.json")
    write(run, **dict.fromkeys((*gone, "export/model", "eval/a.json"), "x"))
    push_files(run, place)
    for path in [path for path in run.rglob("*") if path.is_file()]:
        path.unlink()
    push_files(run, place)
    assert sorted(files(place.folder)) == ["eval/a.json", "export/model", RECORD_FILE]


def test_what_a_run_removes_meanwhile_is_for_the_next_push(tmp_path, monkeypatch) -> None:
    """A checkpoint that it prunes, an evaluation's picture, as the folder is walked."""
    run, place, scan, read = tmp_path / "run", Failing(tmp_path / "copy"), os.scandir, Path.stat
    write(run, **{"a": "1", "eval/x__json": "2", "checkpoints/step-00000001/x": "3"})
    write(run, **{"look/one": "4"})
    push_files(run, place)
    (run / "eval/x.json").write_text("two")

    def meanwhile(folder):
        if not isinstance(folder, int) and Path(folder).name in ("step-00000001", "look"):
            shutil.rmtree(folder, ignore_errors=True)
        return scan(folder)

    def gone(path, **how):
        if path == run / "eval/x.json" and "_read" in {f.name for f in traceback.extract_stack()}:
            path.unlink()
        return read(path, **how)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", meanwhile)
        patch.setattr(Path, "stat", gone)
        assert push_files(run, place) == 0
    assert push_files(run, place) == 0 and not (run / "eval/x.json").exists()


@pytest.mark.parametrize("damage", ["x", "longer than it was", None])
def test_a_damaged_or_missing_file_is_named(tmp_path, damage) -> None:
    run, place = tmp_path / "run", Failing(tmp_path / "copy")
    write(run, a="1", metrics__jsonl="2")
    push_files(run, place)
    file = place.folder / "metrics.jsonl"
    file.unlink() if damage is None else file.write_text(damage)
    with pytest.raises((UsageError, OSError), match=r"metrics\.jsonl"):
        pull_files(place, tmp_path / "back")
    assert not (tmp_path / "back/metrics.jsonl").exists()
    if damage != "x":  # by the size the next push sees it
        push_files(run, place)
        pull_files(place, tmp_path / "back")


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x"])
def test_a_record_that_points_outside_is_refused(tmp_path, name) -> None:
    run, place = tmp_path / "run", Failing(tmp_path / "copy")
    write(run, a="1")
    push_files(run, place)
    record = json.loads((place.folder / RECORD_FILE).read_text())
    record["files"][name] = record["files"].pop("a")
    for content in (json.dumps(record), "[]", "no JSON"):
        (place.folder / RECORD_FILE).write_text(content)
        with pytest.raises(UsageError, match=f"{RECORD_FILE} is no record"):
            pull_files(place, tmp_path / "back")
