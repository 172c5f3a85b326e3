"""The demo: what it does to folders, what it shows, and a short one from end to end."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from mmtrain.demo import demo
from mmtrain.demo.demo import RIVALS, recipe_path, results_table, run_demo
from mmtrain.errors import UsageError
from mmtrain.recipe import load_recipe
from mmtrain.settings.shipped import shipped_recipes


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[dict]:
    """In an empty working directory, with training and unpacking noted instead of done."""
    calls: list[dict] = []

    def train(**arguments) -> Path:
        calls.append(arguments)
        run = Path(arguments["recipe"].run.dir)
        (run / "eval").mkdir(parents=True, exist_ok=True)
        recipe = arguments["recipe"]
        captions = ", ".join(f"{name} = {share}" for name, share in recipe.data.captions.items())
        (run / "recipe.toml").write_text(
            f'base = "clip_emoji"\n[data]\ncaptions = {{ {captions} }}\n'
            f"[model.vision]\npatch_size = {recipe.model.vision.patch_size}\n"
            f'[train]\nprecision = "{recipe.train.precision}"\n'
        )
        (run / "metrics.jsonl").write_text('{"step": 1, "samples_seen": 1234}\n')
        result = {"top1": 0.25, "top5": 0.5, "num_classes": 1519, "num_samples": 1493}
        for name in RIVALS:
            (run / "eval" / f"{name}.json").write_text(json.dumps(result))
        return run

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "train_command", train)
    monkeypatch.setattr(demo, "unpack_emoji_pairs", lambda folder: folder.mkdir(parents=True))
    monkeypatch.setattr(demo, "DATA_DIR", tmp_path / "data")
    return calls


def test_an_unfinished_demo_goes_on_and_a_fresh_one_starts_over(trained: list[dict], tmp_path):
    out = tmp_path / "run"
    for fresh, resumes in ((False, False), (False, True), (True, False), (False, True)):
        (tmp_path / "data").exists() and (tmp_path / "data").rmdir()
        (out / "mark").exists() and (out / "mark").unlink()
        if out.exists():
            (out / "mark").write_text("")
        run_demo(out=out, overrides=["--run.seed", "1"], fresh=fresh)
        assert trained[-1]["resume"] == ("with changes" if resumes else None)
        expected = load_recipe(recipe_path(), ["--run.seed", "1", "--run.dir", str(out)])
        assert trained[-1]["recipe"] == expected
        assert (out / "mark").exists() is resumes


def test_a_demo_goes_on_by_the_recipe_that_it_began_with(
    trained: list[dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    """Another version's, or another machine's, has other patches."""
    recipes = shipped_recipes()
    for begun, now in ((8, "clip_emoji"), (16, "clip_emoji_fine")):
        out = tmp_path / f"run-{begun}"
        run_demo(out=out, overrides=["--model.vision.patch_size", str(begun)])
        (tmp_path / "data").rmdir()
        monkeypatch.setattr(demo, "recipe_path", lambda now=now: recipes[now])
        run_demo(out=out, overrides=[])
        (tmp_path / "data").rmdir()
        assert trained[-1]["recipe"].model.vision.patch_size == begun
        assert f"training by the recipe {out / 'recipe.toml'}" in capsys.readouterr().out


def test_fresh_removes_nothing_but_runs(trained: list[dict], tmp_path: Path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years")
    with pytest.raises(UsageError, match="holds no run, so --fresh does not remove it"):
        run_demo(out=tmp_path / "thesis", overrides=[], fresh=True)
    assert (tmp_path / "thesis" / "chapter.tex").exists()
    assert not trained and not (tmp_path / "data").exists()
    run_demo(out=tmp_path / "new", overrides=[], fresh=True)
    assert len(trained) == 1


@pytest.mark.parametrize("fresh", [False, True])
def test_a_run_of_another_recipe_is_neither_gone_on_with_nor_removed(
    trained: list[dict], tmp_path: Path, fresh: bool
):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.toml").write_text('base = "debug_clip"\n')
    with pytest.raises(UsageError, match=r"holds a run that is no demo; .*mmtrain train .* --resu"):
        run_demo(out=tmp_path / "run", overrides=[], fresh=fresh)
    assert not trained and (tmp_path / "run" / "recipe.toml").exists()


def test_data_only_trains_nothing(trained: list[dict], tmp_path: Path):
    run_demo(out=tmp_path / "run", overrides=[], data_only=True)
    assert (tmp_path / "data").is_dir() and not trained and not (tmp_path / "run").exists()


def test_an_interrupted_demo_says_how_it_goes_on(
    trained: list[dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    def stop(**_):
        raise SystemExit(130)

    monkeypatch.setattr(demo, "train_command", stop)
    with pytest.raises(SystemExit) as caught:
        run_demo(out=tmp_path / "run", overrides=[])
    assert caught.value.code == 130
    assert "goes on when it is started again" in capsys.readouterr().err


def test_the_table_stands_beside_chance_and_open_clip(trained: list[dict], tmp_path, capsys):
    run_demo(out=tmp_path / "run", overrides=[])
    shown = capsys.readouterr().out
    row = next(line for line in shown.splitlines() if "Twemoji" in line and "1,519" in line)
    for figures in ("0.07 / 0.33", "7.5 / 20.7", "18.1 / 36.8", "25.0 / 50.0"):
        assert figures in row
    assert "84,480" in shown and "1,234" in shown and "report.html" in shown
    last = shown.splitlines()[-1]
    shards = tmp_path / "data" / "val_twemoji.tar"
    assert f"mmtrain serve --model {tmp_path / 'run'} --index {shards}" in last
    # An evaluation that an override took out has no row; two digits everywhere fit a terminal.
    console = Console(width=80)
    with console.capture() as capture:
        console.print(results_table({"unseen": {"top1": 0.1, "top5": 0.2, "num_classes": 125}}))
    assert (
        "10.0 / 20.0" in capture.get()
        and "new concepts" in capture.get()
        and "OpenMoji" not in capture.get()
    )


@pytest.mark.parametrize(
    ("has", "name"),
    [
        (None, "clip_emoji"),
        ("torch.cuda.is_available", "clip_emoji_fine"),
        ("torch.cpu._is_amx_tile_supported", "clip_emoji_fine"),
        ("torch.cpu._is_avx512_bf16_supported", "clip_emoji_fine"),
    ],
)
def test_the_recipe_is_the_one_that_the_machine_is_fast_at(
    has: str | None, name: str, monkeypatch: pytest.MonkeyPatch
):
    for each in (
        "torch.cuda.is_available",
        "torch.cpu._is_amx_tile_supported",
        "torch.cpu._is_avx512_bf16_supported",
    ):
        monkeypatch.setattr(each, lambda each=each: each == has)
    assert recipe_path().stem == name
    recipe = load_recipe(recipe_path())
    assert RIVALS.keys() <= {one.name for one in recipe.eval.zero_shot}
    assert recipe.model.vision.patch_size == (8 if name == "clip_emoji_fine" else 16)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_short_demo_from_end_to_end(tmp_path: Path):
    def run(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "mmtrain", "demo", "--out", "run", *words],
            cwd=tmp_path,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    # Towers of a layer each: the time is that of thousands of drawings in four evaluations, twice.
    small = [f"--model.{tower}.transformer.num_layers=1" for tower in ("vision", "text")]
    small += ["--train.batch_size", "32"]
    shown = run("--train.steps", "2", *small)
    assert "Emoji told by their names" in shown and "Twemoji" in shown
    for name in (*RIVALS, "retrieval_twemoji"):
        result = json.loads((tmp_path / "run" / "eval" / f"{name}.json").read_text())
        assert 0 <= result.get("top1", result.get("i2t_recall@1")) <= 1
    assert (tmp_path / "run" / "report.html").is_file()
    assert (tmp_path / "run" / "export" / "config.json").is_file()
    run("--train.steps", "3", *small)
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(rows[-1])["step"] == 3
