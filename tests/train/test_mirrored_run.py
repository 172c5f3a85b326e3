"""Runs with run.mirror, and `mmtrain checkpoint push` and `pull` of them, as a user meets them."""

import json
import re
import shutil
import time
from pathlib import Path

import pytest

from mmtrain.cli import main
from mmtrain.data.storage.place import open_place, read_small
from mmtrain.train.copy_checkpoints import sealed_in
from mmtrain.train.metrics import MetricsLog
from tests.data.storage.conftest import s3, s3_url  # noqa: F401

RECIPE = "configs/debug_clip.toml"
SMALL = (
    *("--train.steps", "8", "--train.checkpoint_every", "2", "--train.log_every", "1"),
    *("--model.text.transformer.num_layers", "1", "--model.vision.transformer.num_layers", "1"),
)


def train(folder: Path, *words: str) -> int:
    return main(["train", RECIPE, "--run-dir", str(folder), *SMALL, *words])


def losses(folder: Path) -> dict[int, str]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return {one["step"]: float(one["loss"]).hex() for one in map(json.loads, lines)}


def own_files(folder: Path) -> set[str]:
    """All but checkpoints, and the lock."""
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    return {name for name in names if not name.startswith("checkpoints/")} - {".lock"}


def steps_at(url: str) -> set[int]:
    return set(sealed_in(open_place(url, key="to").sizes()))


class Crash(Exception):
    """The machine is gone."""


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, action) -> None:
    """Do something when a step is logged."""
    log = MetricsLog.log

    def logged(self: MetricsLog, record) -> None:
        log(self, record)
        if record["step"] == step:
            action()

    monkeypatch.setattr(MetricsLog, "log", logged)


def crash_when_sent(url: str, step: int) -> None:
    end = time.monotonic() + 30
    while step not in steps_at(url):
        assert time.monotonic() < end
        time.sleep(0.05)
    raise Crash


def forget(folder: Path) -> None:
    """Remove a run's folder, in which what sends may still be putting files away."""
    end = time.monotonic() + 30
    while folder.exists():
        assert time.monotonic() < end
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> Path:
    """A run that nothing happened to."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    assert train(folder) == 0
    return folder


@pytest.mark.slow
def test_a_machine_that_is_gone_costs_nothing(straight, tmp_path, s3, monkeypatch, capsys) -> None:  # noqa: F811
    run, url = tmp_path / "run", f"{s3.url}/runs/first"
    words = ("--run.mirror", url, "--train.keep_checkpoints", "2")
    with monkeypatch.context() as patch:
        at_step(patch, 5, lambda: crash_when_sent(url, 4))
        with pytest.raises(Crash):
            train(run, *words)
    forget(run)
    capsys.readouterr()
    assert train(run, *words, "--resume") == 0
    told = capsys.readouterr().err
    assert f"step 4 came from run.mirror = {url}" in told and "has everything" in told
    assert losses(run) == losses(straight)
    weights = [(one / "export/model.safetensors").read_bytes() for one in (straight, run)]
    assert weights[0] == weights[1]
    assert 8 in steps_at(url) and len(steps_at(url)) == 2, "as many as train.keep_checkpoints"
    record = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert {"mirror_step", "mirror_bytes", "mirror_failures"} <= record.keys()
    back = tmp_path / "back"
    assert main(["checkpoint", "pull", url, str(back), "--all"]) == 0
    assert main(["checkpoint", "verify", str(back)]) == 0
    assert own_files(back) == own_files(run) >= {"export/model.safetensors", "report.html"}
    assert main(["report", str(back), "--out", str(tmp_path / "report.html")]) == 0
    shutil.rmtree(back)
    assert train(back, *words, "--resume") == 0 and losses(back) == losses(straight)
    _resumed_without_a_recipe(url, straight, tmp_path, capsys)
    _local_wins_and_others_are_refused(run, url, words, capsys)


def _resumed_without_a_recipe(url: str, straight: Path, tmp_path: Path, capsys) -> None:
    """By the mirror alone, into a folder that is new, or empty but for what is hidden."""
    for name in ("new", "empty"):
        folder = tmp_path / name
        if name == "empty":
            folder.mkdir()
            (folder / ".lock").touch()
        where = [str(folder)] if name == "empty" else ["--run-dir", str(folder)]
        assert main(["train", *where, "--resume", f"--run.mirror={url}"]) == 0
        assert "step 8 came from" in capsys.readouterr().err
        assert losses(folder) == losses(straight)
    other = tmp_path / "other"
    for mirror, told in (
        (f"{url}/nothing", f"--run.mirror = {url}/nothing holds no run to go on with"),
        ("none", "holds no recipe.toml"),
        (str(other), "lie in each other"),
        ("http://x/y", "a web server takes no files"),
    ):
        assert main(["train", "--run-dir", str(other), "--resume", "--run.mirror", mirror]) == 2
        assert told in capsys.readouterr().err and not other.exists()
    place = open_place(url, key="to")
    recipe = read_small(place, "recipe.toml")
    place.put("recipe.toml", recipe.replace(b"8", b"9"))
    assert main(["train", "--run-dir", str(other), "--resume", "--run.mirror", url]) == 2
    assert f"{url}/recipe.toml is damaged" in capsys.readouterr().err and not other.exists()
    place.put("recipe.toml", recipe)


def _local_wins_and_others_are_refused(run: Path, url: str, words, capsys) -> None:
    place = open_place(url, key="to")
    place.delete([name for name in place.sizes() if "step-00000008" in name])
    capsys.readouterr()
    assert train(run, *words, "--resume") == 0
    told = capsys.readouterr().err
    assert "came from" not in told and "step-00000008" in told and 8 in steps_at(url)
    for more, why in (
        (("--run.seed", "1", "--resume"), "run.seed is 0 there and 1 here"),
        (("--optim.ema_decay", "0.9", "--resume"), "optim.ema_decay is none there and 0.9 here"),
        ((), "already holds a run of 8 steps; add --resume"),
    ):
        before = place.sizes()
        assert train(run.with_name("other"), *words, *more) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"run.mirror = {url}" in line and why in line
        assert place.sizes() == before and not run.with_name("other").exists()


def test_a_place_that_fails_does_not_end_the_run(straight, tmp_path, monkeypatch, capsys) -> None:
    run, copy = tmp_path / "run", tmp_path / "copy"

    def lose() -> None:
        shutil.rmtree(copy)
        copy.write_text("a file where the folder was")

    words = ("--run.mirror", str(copy), "--run.mirror_minutes", "0.02")
    at_step(monkeypatch, 3, lose)
    assert train(run, *words) == 2
    told = capsys.readouterr().err
    assert losses(run) == losses(straight) and (run / "export/model.safetensors").exists()
    assert "run.mirror: not sent yet, tried again: " in told and str(copy) in told
    last = told.splitlines()[-1]
    assert last.endswith(f"mmtrain checkpoint push {run} {copy} sends it")
    copy.unlink()
    assert main(["checkpoint", "push", str(run), str(copy)]) == 0
    assert steps_at(str(copy)) == {6, 8}


def test_a_damaged_newest_one_is_passed_over_aloud(straight, tmp_path, capsys) -> None:
    copy, new = tmp_path / "copy", tmp_path / "new"
    assert main(["checkpoint", "push", str(straight), str(copy)]) == 0
    file = copy / "checkpoints/step-00000008/rank-00000.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert main(["checkpoint", "pull", str(copy), str(new)]) == 2
    assert f"{file} is damaged" in capsys.readouterr().err.splitlines()[-1]
    assert train(new, "--run.mirror", str(copy), "--resume") == 0
    told = capsys.readouterr().err
    assert f"passed over: {file} is damaged" in told and "step 6 came from" in told
    assert losses(new) == losses(straight)
    assert main(["checkpoint", "pull", str(copy), str(tmp_path / "mended")]) == 0


def test_push_and_pull_refuse_what_would_lose_something(straight, tmp_path, capsys) -> None:
    copy, other, new = tmp_path / "copy", tmp_path / "other", tmp_path / "new"
    assert main(["checkpoint", "push", str(straight), str(copy)]) == 0
    shutil.copytree(straight, other)
    for state in other.glob("checkpoints/*/state.json"):
        state.write_text(state.read_text().replace('"batch_size": 16', '"batch_size": 18'))
    new.mkdir()
    (new / "metrics.jsonl").write_text("another run's")
    inside = str(straight / "checkpoints")
    for words, why in (
        (("push", str(other), str(copy)), "DST = .* holds another run: train.batch_size is 16"),
        (("pull", str(copy), str(other)), "SRC = .* holds another run: train.batch_size is 16"),
        (("pull", str(copy), str(new)), r"RUN = .* its metrics\.jsonl is another than in"),
        (("pull", str(copy), str(tmp_path / "x"), "--step", "3"), "--step = 3 .* holds 6, 8"),
        (("pull", str(tmp_path / "none"), str(tmp_path / "x")), "holds no sealed checkpoint"),
        (("push", str(straight), inside), "lie in each other"),
        (("push", str(straight), "https://host/x"), "DST = .*a web server takes no files"),
        (("push", str(tmp_path / "none"), str(copy)), "no checkpoint is here"),
        (("pull", str(copy), str(tmp_path / "x"), "--all", "--step", "1"), "not allowed with"),
    ):
        capsys.readouterr()
        assert main(["checkpoint", *words]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert re.search(why, line), line
    assert (new / "metrics.jsonl").read_text() == "another run's"


def test_older_files_do_not_take_the_place_of_newer_ones(straight, tmp_path, capsys) -> None:
    """Whichever side has gone on keeps its metrics."""
    copy, old = tmp_path / "copy", tmp_path / "old"
    assert main(["checkpoint", "push", str(straight), str(copy)]) == 0
    assert main(["checkpoint", "pull", str(copy), str(old), "--step", "6"]) == 0
    (old / "metrics.jsonl").write_text("")
    assert main(["checkpoint", "push", str(old), str(copy)]) == 0
    assert "is of step 8 already; its files stay" in capsys.readouterr().out
    shutil.rmtree(copy / "checkpoints/step-00000008")
    assert main(["checkpoint", "pull", str(copy), str(straight)]) == 0
    assert "has gone on to step 8; its files stay" in capsys.readouterr().out
    assert losses(straight).keys() == set(range(1, 9))
