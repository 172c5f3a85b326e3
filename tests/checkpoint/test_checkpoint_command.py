"""mmtrain checkpoint ls, verify, prune, convert."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import mmtrain
from mmtrain.checkpoint.checkpoint import find_latest, read_tensors, save_checkpoint
from mmtrain.checkpoint.sealed_folder import remove
from mmtrain.cli import main

RECIPE = "configs/debug_clip.toml"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with averages and three checkpoints."""
    folder = tmp_path_factory.mktemp("checkpoint") / "run"
    words = ("--train.steps", "6", "--train.checkpoint_every", "2", "--train.keep_checkpoints", "9")
    words = (*words, "--optim.ema_decay", "0.9", "--model.text.transformer.num_layers", "1")
    assert main(["train", RECIPE, "--run-dir", str(folder), *words]) == 0
    return folder


def save_three(folder: Path) -> list[Path]:
    """Steps 1, 2, 3 of nothing much."""
    tensors = {"model": {"w": torch.ones(4)}}
    return [
        save_checkpoint(folder, step=step, tensors=tensors, state={"step": step}, keep=9)
        for step in (1, 2, 3)
    ]


def flip(path: Path) -> None:
    """Damage its tensors."""
    file = path / "rank-00000.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def test_ls(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Step, size, date, state, layout and the loss of metrics.jsonl."""
    assert main(["checkpoint", "ls", str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["step", "size", "saved", "state", "layout", "loss"]
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line, step in zip(lines[1:], (2, 4, 6), strict=True):
        words = line.split()
        assert words[0] == str(step) and words[2] == "MiB" and "sealed" in words
        assert line.rstrip().endswith(f"{metrics[step - 1]['loss']:.4f}") and "1 rank" in line
    paths = save_three(tmp_path)
    (paths[1] / "manifest.json").unlink()
    assert main(["checkpoint", "ls", str(tmp_path)]) == 0
    torn = capsys.readouterr().out.splitlines()[2]
    assert "torn: manifest.json is missing" in torn


@pytest.mark.parametrize(
    "state",
    ['"text"', "[1]", "{}", '{"step": "x"}', '{"step": 2, "environment": 1, "loss": "low"}',
     '{"step": 2, "environment": {"layout": {"tp": "two"}}}', '{"environment": {"layout": []}}'],
)  # fmt: skip
def test_ls_of_a_state_of_another_type(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], state: str
) -> None:
    """A list of checkpoints is wanted most where one of them is damaged."""
    paths = save_three(tmp_path)
    (paths[1] / "state.json").write_text(state)
    assert main(["checkpoint", "ls", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["1", "2", "3"] and "torn" in lines[2]


def test_verify(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line each; a flipped bit, which ls cannot see, is status 2."""
    paths = save_three(tmp_path)
    assert main(["checkpoint", "verify", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count(": whole") == 3
    flip(paths[1])
    assert main(["checkpoint", "verify", str(tmp_path)]) == 2
    out, errors = capsys.readouterr()
    assert f"{paths[1]}: rank-00000.safetensors has changed" in out
    assert "1 of 3 checkpoints" in errors
    assert main(["checkpoint", "verify", str(paths[0])]) == 0
    assert main(["checkpoint", "verify", str(tmp_path / "nothing")]) == 2
    assert "no checkpoint is here" in capsys.readouterr().err


def test_prune_never_deletes_the_only_good_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The newest one that verifies counts, not the newest."""
    paths = save_three(tmp_path)
    flip(paths[2])
    assert main(["checkpoint", "prune", str(tmp_path), "--keep", "1"]) == 0
    assert [path.exists() for path in paths] == [False, True, True]
    assert find_latest(tmp_path, warn=lambda line: None) == paths[1]
    flip(paths[1])
    assert main(["checkpoint", "prune", str(tmp_path), "--keep", "1"]) == 2
    assert "nothing was deleted" in capsys.readouterr().err and paths[1].exists()
    assert main(["checkpoint", "prune", str(tmp_path), "--keep", "0"]) == 2


def test_convert_to_safetensors(run: Path, tmp_path: Path) -> None:
    """Every tensor, whole, in files that any reader of safetensors takes."""
    source = run / "checkpoints/step-00000004"
    assert main(["checkpoint", "convert", str(source), "--out", str(tmp_path / "st")]) == 0
    groups = {
        file.stem: load_file(file) for file in sorted((tmp_path / "st").glob("*.safetensors"))
    }
    assert sorted(groups) == ["ema", "model", "optimizer"]
    got = {f"{group}.{name}": t for group, tensors in groups.items() for name, t in tensors.items()}
    want = read_tensors(source)
    assert got.keys() == want.keys() and all(torch.equal(got[n], want[n]) for n in want)


def test_convert_to_models(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run's newest, in the forms of export: the same tensors as the run's own export/."""
    exported = mmtrain.load(run)[0].state_dict()
    for form in ("mmtrain", "open-clip"):
        out = tmp_path / form
        assert main(["checkpoint", "convert", str(run), "--out", str(out), "--format", form]) == 0
        model, _, tokenizer = mmtrain.load(out)
        assert tokenizer.context_length == 24
        got = model.state_dict()
        assert got.keys() == exported.keys()
        assert all(torch.equal(got[name], exported[name]) for name in exported)
    assert main(["checkpoint", "convert", str(run), "--out", str(out)]) == 2
    assert "exists already; name a new folder" in capsys.readouterr().err
    words = ["checkpoint", "convert", str(run), "--out", str(tmp_path / "w"), "--weights", "int8"]
    for form in ("safetensors", "open-clip"):
        assert main([*words, "--format", form]) == 2
        told = f"--weights = int8 is not for --format = {form}; use --format onnx"
        assert told in capsys.readouterr().err and not (tmp_path / "w").exists()


@pytest.mark.slow
def test_convert_to_graphs_of_fewer_bytes(run: Path, tmp_path: Path) -> None:
    """--weights reaches the form that has a choice, as of export."""
    sizes = {}
    for weights in ("fp16", "int8"):
        out = tmp_path / weights
        words = ["checkpoint", "convert", str(run), "--out", str(out), "--format", "onnx"]
        assert main([*words, "--weights", weights]) == 0
        sizes[weights] = sum(path.stat().st_size for path in out.glob("*.onnx*"))
    assert sizes["int8"] < 0.75 * sizes["fp16"]


@pytest.fixture
def dropping(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, Path], None]:
    """-> of a checkpoint that its run drops as it is looked at; another one is sealed then."""
    read = Path.read_bytes

    def drop_at_sight(path: Path, newer: Path) -> None:
        def meanwhile(file: Path) -> bytes:
            content = read(file)
            if file == path / "manifest.json" and path.exists():
                (newer.parent / "hidden").rename(newer)
                remove(path)
            return content

        newer.rename(newer.parent / "hidden")
        monkeypatch.setattr(Path, "read_bytes", meanwhile)

    return drop_at_sight


def test_what_a_run_drops_meanwhile_is_not_damaged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], dropping: Callable[[Path, Path], None]
) -> None:
    """It is not listed, no fault of `verify`, and a newer one is converted in its place."""
    for number, command in enumerate(("ls", "verify", "convert")):
        folder = tmp_path / str(number)
        _, older, newer = save_three(folder)
        dropping(older, newer)
        words = ["--out", str(tmp_path / "out")] if command == "convert" else []
        assert main(["checkpoint", command, str(folder), *words]) == 0
        shown = capsys.readouterr()
        assert "torn" not in shown.out and not shown.err
        if command == "verify":
            assert f"{older}: dropped by its run meanwhile" in shown.out
        if command == "convert":
            assert f"from {newer}" in shown.out


def test_what_a_run_drops_meanwhile_is_not_skipped_aloud(
    tmp_path: Path, dropping: Callable[[Path, Path], None]
) -> None:
    """As by a command that takes steps of a run again that goes on."""
    first, older, newer = save_three(tmp_path)
    dropping(older, newer)
    warned: list[str] = []
    assert find_latest(tmp_path, warn=warned.append) == first and not warned
