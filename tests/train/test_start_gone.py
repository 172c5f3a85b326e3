"""A run that has a checkpoint of its own goes on without the folder of what it started from."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from timm.models import save_for_hf

import mmtrain
from mmtrain.cli import main
from tests.tasks.decoder_starts import CHATML, started_recipe, write_decoder
from tests.tasks.test_vqa_run import write_recipe
from tests.train.test_mirrored_run import Crash, at_step, crash_when_sent, forget
from tests.train.test_vision_init import RECIPE as TIMM

RECIPE = "configs/debug_clip.toml"
SHORT = ("--train.steps", "4", "--train.checkpoint_every", "2", "--data.workers", "0")
LORA = ("--peft.kind", "lora", "--peft.rank", "3")


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run, whose texts have a tokenizer of their own."""
    run = tmp_path_factory.mktemp("gone") / "pretrained"
    assert main(["train", RECIPE, "--run-dir", str(run), "--train.steps", "1"]) == 0
    return run


def bare_recipe(folder: Path) -> Path:
    """A recipe that leaves towers, tokenizer and loss to its start."""
    path = folder / "recipe.toml"
    path.write_text(
        '[run]\ndir = "none"\n[data]\ntrain = "mmtrain/demo/debug/train.tar"\n[model]\n'
        "[train]\nsteps = 4\nbatch_size = 16\n"
    )
    return path


def start_clip(folder: Path, pretrained: Path) -> list[str]:
    shutil.copytree(pretrained / "export", folder / "start")
    return [str(bare_recipe(folder)), "--model.init", str(folder / "start")]


def start_lora(folder: Path, pretrained: Path) -> list[str]:
    words = start_clip(folder, pretrained)
    first = [*words, *LORA, "--run-dir", str(folder / "adapted"), "--train.steps", "1"]
    assert main(["train", *first]) == 0
    (folder / "adapted").rename(folder / "start/adapted")
    return [*words, *LORA, "--peft.init", str(folder / "start/adapted/adapter")]


def start_timm(folder: Path, _: Path) -> list[str]:
    torch.manual_seed(0)
    tower = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=0, depth=1)
    args = {"img_size": 32, "depth": 1}
    save_for_hf(tower, folder / "start", model_args=args, safe_serialization=True)
    path = folder / "start/config.json"
    content = json.loads(path.read_text())
    content["pretrained_cfg"]["input_size"] = [3, 32, 32]
    path.write_text(json.dumps(content))
    recipe = folder / "recipe.toml"
    recipe.write_text(TIMM.format(folder=folder).replace("/tower", "/start"))
    return [str(recipe)]


def start_vqa(folder: Path, _: Path) -> list[str]:
    path = write_recipe(folder)
    first = ["--run-dir", str(folder / "start"), "--train.steps", "1", "--data.workers", "0"]
    assert main(["train", str(path), *first]) == 0
    return [str(path), "--vqa.init", str(folder / "start")]


def start_vqa_from_clip(folder: Path, pretrained: Path) -> list[str]:
    path = write_recipe(folder)
    shutil.copytree(pretrained / "export", folder / "start")
    text = path.read_text()
    keep = [part for part in text.split("\n[") if not part.startswith(("model", "tokenizer"))]
    path.write_text("\n[".join(keep))
    return [str(path), "--model.init", str(folder / "start")]


def start_decoder(folder: Path, _: Path) -> list[str]:
    return [str(started_recipe(folder, write_decoder(folder / "start", chat=CHATML)))]


STARTS: dict[str, Callable[[Path, Path], list[str]]] = {
    "clip": start_clip,
    "lora": start_lora,
    "timm": start_timm,
    "vqa": start_vqa,
    "vqa from clip": start_vqa_from_clip,
    "decoder": start_decoder,
}


LONG = ("lora", "vqa", "vqa from clip", "decoder")


def exported(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "export/model.safetensors")


@pytest.mark.parametrize(
    "start",
    [pytest.param(name, marks=pytest.mark.slow) if name in LONG else name for name in STARTS],
)
def test_the_start_is_not_needed(
    start: str, pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*STARTS[start](tmp_path, pretrained), *SHORT]
    run = tmp_path / "run"
    assert main(["train", *words, "--run-dir", str(run)]) == 0
    wanted = exported(run)
    # As a run that was stopped at its second step, and its start deleted since.
    shutil.rmtree(run / "checkpoints/step-00000004")
    for name in ("export", "adapter"):
        shutil.rmtree(run / name, ignore_errors=True)
    shutil.rmtree(tmp_path / "start")
    stopped = shutil.copytree(run, tmp_path / "stopped")
    # By its own record, and by the recipe that it was begun with.
    for recipe in ([str(run)], [*words, "--run-dir", str(run)]):
        shutil.rmtree(run)
        shutil.copytree(stopped, run)
        capsys.readouterr()
        status = main(["train", *recipe, "--resume"])
        told = capsys.readouterr().err
        assert status == 0 and "step-00000002" in told, told
        assert "weights compute something else" not in told
        found = exported(run)
        assert all(torch.equal(value, found[name]) for name, value in wanted.items())
    kept = ["checkpoint", "convert", str(run), "--out", str(tmp_path / "converted")]
    if start == "decoder":
        words = ["export", str(run), "--format", "hf-decoder", "--out", str(tmp_path / "decoder")]
        assert main(words) == 0
        assert "chat_template" in (tmp_path / "decoder/tokenizer_config.json").read_text()
    elif "vqa" not in start:
        assert main([*kept, "--format", "mmtrain"]) == 0
        ours, theirs = (mmtrain.load(path)[2] for path in (run, tmp_path / "converted"))
        assert ours.definition == theirs.definition
    run.rename(tmp_path / "elsewhere")
    assert main(["data", "show", str(tmp_path / "elsewhere"), "--step", "1"]) == 0


def test_what_still_needs_it_names_its_key(
    pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run without a checkpoint begins anew; another start is another folder, to be read."""
    words = [*start_clip(tmp_path, pretrained), *SHORT, "--run-dir", str(tmp_path / "run")]
    assert main(["train", *words]) == 0
    other = ["--model.init", str(tmp_path / "moved"), "--resume-with-changes"]
    shutil.rmtree(tmp_path / "start")
    for more in (other, ["--run-dir", str(tmp_path / "new")]):
        capsys.readouterr()
        assert main(["train", *words, *more]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "model.init = " in line and "does not exist" in line
    shutil.rmtree(tmp_path / "run/checkpoints")
    assert main(["train", *words, "--resume"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "model.init = " in line and "does not exist" in line
    assert main(["data", "show", str(tmp_path / "run"), "--step", "1"]) == 2


@pytest.mark.parametrize(
    "start",
    # A CLIP alone and under a model of answers are read as under an adapter.
    [pytest.param(name, marks=pytest.mark.slow) for name in ("lora", "timm", "vqa", "decoder")],
)
def test_the_start_is_not_needed_on_another_machine(
    start: str,
    pretrained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Nothing but the recipe and what was copied is there."""
    url = str(tmp_path / "copy")
    words = [*STARTS[start](tmp_path, pretrained), *SHORT, "--train.log_every", "1"]
    assert main(["train", *words, "--run-dir", str(tmp_path / "straight")]) == 0
    words += ["--run.mirror", url]
    with monkeypatch.context() as patch:
        at_step(patch, 3, lambda: crash_when_sent(url, 2))
        with pytest.raises(Crash):
            main(["train", *words, "--run-dir", str(tmp_path / "run")])
    forget(tmp_path / "run")
    shutil.rmtree(tmp_path / "start")
    capsys.readouterr()
    other = [*words, "--run-dir", str(tmp_path / "other"), "--run.seed", "5", "--resume"]
    assert main(["train", *other]) == 2
    assert "seed" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "other").exists()  # which brought the checkpoint, to be built from
    shutil.copytree(url, f"{url}2")
    wanted = exported(tmp_path / "straight")
    # By the recipe that it was begun with, and by the copied one.
    for new, recipe in (("new", words), ("newer", ["--run.mirror", f"{url}2"])):
        capsys.readouterr()
        assert main(["train", *recipe, "--run-dir", str(tmp_path / new), "--resume"]) == 0
        assert "step-00000002" in capsys.readouterr().err
        found = exported(tmp_path / new)
        assert all(torch.equal(value, found[name]) for name, value in wanted.items())
