"""Mistakes at the command line: one line with key, value and remedy, status 2, no traceback."""

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

import mmtrain
from mmtrain.cli import main
from tests.mistakes import mistake

ROOT = Path(__file__).parents[1]
RECIPE = "configs/debug_clip.toml"
DEBUG = "mmtrain/demo/debug"


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    """A tar of files."""
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def png() -> bytes:
    """A real picture."""
    buffer = io.BytesIO()
    Image.radial_gradient("L").convert("RGB").resize((40, 40)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--train.stepz", "3"), "unknown key train.stepz; did you mean train.steps?"),
        (("--optim.lr", "fast"), 'optim.lr = "fast" must be a number'),
        (("--loss.kind", "sigclip"), 'loss.kind = "sigclip" is unknown; did you mean "siglip"?'),
        (("--data.train", "nowhere/*.tar"), "data.train = nowhere/*.tar: the glob matches no file"),
        (("--data.train", "nowhere/x.tar"), "data.train = nowhere/x.tar: the shard does not exist"),
        (("--train.batch_size", "4096"), "train.batch_size = 4096 is larger than the data (64"),
        (("--train.batch_size", "0"), "train.batch_size = 0 must be at least 1"),
        (("--parallel.tp", "2"), "does not make up the 1 rank(s) started"),
        (("--train.device", "cuda:9"), "train.device = cuda:9, but"),
        (("--train.device", "tpu"), "train.device = tpu is unknown"),
        (("--model.vision.patch_size", "7"), "patch_size = 7 must divide image_size = 32"),
        (("--data.captions", "{ caption = 1.0 }"), "caption"),
        (("--data.label_key", "klass"), "data.label_key"),
        (("--train.steps",), "--train.steps has no value"),
        (("--steps", "3"), "does not take --steps"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else None,
)
def test_recipe_mistakes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], told: str
) -> None:
    """A typo, a wrong type, missing shards, sizes that do not fit."""
    line = mistake(capsys, "train", RECIPE, "--run-dir", str(tmp_path / "run"), *words)
    assert told in line


def test_recipe_file_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A recipe that is missing, no TOML, or lacks a section."""
    assert "does not exist; `mmtrain recipes`" in mistake(capsys, "train", str(tmp_path / "x.toml"))
    recipe = tmp_path / "bad.toml"
    recipe.write_text("[run\n")
    assert "is no valid TOML" in mistake(capsys, "train", str(recipe))
    recipe.write_text("[run]\ndir = 'x'\n")
    assert "data is missing" in mistake(capsys, "train", str(recipe))


def test_shard_that_is_a_web_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What a failed download leaves behind."""
    shard = tmp_path / "train-00000.tar"
    shard.write_text("<!DOCTYPE html><html><body>404 Not Found</body></html>\n" * 40)
    options = ("--run-dir", str(tmp_path / "run"), "--data.train", str(shard))
    assert "a web page, no tar" in mistake(capsys, "train", RECIPE, *options)


def test_truncated_shard(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A shard cut short is named with the byte; on request the rest of it is used."""
    shard = tmp_path / "train-00000.tar"
    content = (ROOT / DEBUG / "train.tar").read_bytes()
    shard.write_bytes(content[: len(content) * 3 // 4])
    options = ("--data.train", str(shard), "--train.steps", "2")
    line = mistake(capsys, "train", RECIPE, "--run-dir", str(tmp_path / "run"), *options)
    assert "1 of 1 shards are damaged" in line and 'data.on_damage = "use_rest"' in line
    rest = ("--data.on_damage", "use_rest", "--run-dir", str(tmp_path / "rest"))
    assert main(["train", RECIPE, *options, *rest]) == 0


def test_samples_without_captions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """None has a caption: the error says what they do have. A few: replaced, counted and named."""
    bare = {f"{n:03d}.png": png() for n in range(16)}
    shard = write_tar(tmp_path / "bare.tar", bare)
    options = ("--data.train", str(shard), "--train.steps", "2", "--train.batch_size", "8")
    line = mistake(capsys, "train", RECIPE, "--run-dir", str(tmp_path / "run"), *options)
    assert "caption" in line and ".png" in line
    some = {**bare, **{f"{n:03d}.txt": b"a gradient" for n in range(12)}}
    shard = write_tar(tmp_path / "some.tar", dict(sorted(some.items())))
    options = ("--data.train", str(shard), "--train.steps", "2", "--train.batch_size", "8")
    assert main(["train", RECIPE, "--run-dir", str(tmp_path / "some"), *options]) == 0
    bad = (tmp_path / "some/bad_samples.jsonl").read_text().splitlines()
    assert {json.loads(row)["key"] for row in bad} == {"012", "013", "014", "015"}


def test_fewer_shards_than_workers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One shard for two workers simply works; what runs is told before its first step."""
    options = ("--run-dir", str(tmp_path / "run"), "--train.steps", "3", "--data.workers", "2")
    assert main(["train", RECIPE, *options]) == 0
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    told = capsys.readouterr().err.splitlines()
    assert "mmtrain: 64 samples; 3 steps of 16 (0.75 epochs)" in told
    trainable = facts["parameters"]["trainable"]
    assert f"mmtrain: training {trainable:,} parameters in fp32 on cpu" in told


def test_evaluation_that_cannot_work_is_found_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A typo in an evaluation must not cost the training."""
    one = f'{{ name = "x", data = "{DEBUG}/train.tar", classes = "no.json" }}'
    options = ("--run-dir", str(tmp_path / "run"), "--eval.zero_shot", f"[{one}]")
    assert "classes = no.json" in mistake(capsys, "train", RECIPE, *options)
    assert not (tmp_path / "run/metrics.jsonl").exists()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was evaluated while it trained."""
    run = tmp_path_factory.mktemp("trained") / "run"
    zero_shot = f'{{ name = "seen", data = "{DEBUG}/train.tar", classes = "{DEBUG}/classes.json" }}'
    retrieval = f'{{ name = "pairs", data = "{DEBUG}/train.tar" }}'
    sets = f'train = "{DEBUG}/train.tar", test = "{DEBUG}/train.tar"'
    sets += f', classes = "{DEBUG}/classes.json"'
    probe = f'{{ name = "probe", {sets}, strengths = [10.0] }}'
    knn = f'{{ name = "knn", {sets}, neighbours = 2 }}'
    options = (
        *("--train.steps", "6", "--eval.every", "4"),
        *("--eval.zero_shot", f"[{zero_shot}]", "--eval.retrieval", f"[{retrieval}]"),
        *("--eval.linear_probe", f"[{probe}]", "--eval.knn", f"[{knn}]"),
    )
    assert main(["train", RECIPE, "--run-dir", str(run), *options]) == 0
    return run


def test_eval_commands_repeat_the_evaluation_of_training(trained: Path, tmp_path: Path) -> None:
    """`mmtrain eval` on the run's export gives the figures that training wrote."""
    model, data = ("--model", str(trained)), ("--data", f"{DEBUG}/train.tar")
    out = tmp_path / "seen.json"
    classes = ("--classes", f"{DEBUG}/classes.json")
    assert main(["eval", "zero-shot", *model, *data, *classes, "--out", str(out)]) == 0
    seen, during = json.loads(out.read_text()), json.loads((trained / "eval/seen.json").read_text())
    assert {k: seen[k] for k in ("top1", "top5", "num_samples", "num_classes")} == {
        k: during[k] for k in ("top1", "top5", "num_samples", "num_classes")
    }
    assert seen["num_samples"] == 64 and seen["num_classes"] == 16
    out = tmp_path / "pairs.json"
    assert main(["eval", "retrieval", *model, *data, "--out", str(out)]) == 0
    pairs = json.loads(out.read_text())
    during = json.loads((trained / "eval/pairs.json").read_text())
    keys = [f"{way}_recall@{k}" for way in ("i2t", "t2i") for k in (1, 5, 10)]
    assert [pairs[key] for key in keys] == [during[key] for key in keys]
    for name, method in (("probe", "linear probe"), ("knn", "kNN")):
        figures = json.loads((trained / f"eval/{name}.json").read_text())
        assert (figures["method"], figures["num_train"], figures["step"]) == (method, 64, 6)
    history = (trained / "eval/seen.history.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in history] == [4, 6]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"--model": "nowhere"}, "model = nowhere does not exist"),
        ({"--data": "nowhere.tar"}, "data = nowhere.tar"),
        ({"--classes": "nowhere.json"}, "classes = nowhere.json cannot be read"),
        ({"--templates": "foto"}, "templates = foto: neither one of"),
        ({"--label-key": "klass"}, "klass"),
        ({"--out": "result.txt"}, "must end in .json"),
        ({"--device": "cuda:7"}, "device = cuda:7, but"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_eval_mistakes(
    trained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, str],
    told: str,
) -> None:
    """Missing files, unknown labels."""
    options = {
        "--model": str(trained),
        "--data": f"{DEBUG}/train.tar",
        "--classes": f"{DEBUG}/classes.json",
        "--out": str(tmp_path / "out.json"),
    } | change
    words = [word for pair in options.items() for word in pair]
    assert told in mistake(capsys, "eval", "zero-shot", *words)


def test_damaged_export_is_refused(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A truncated weights file, and weights of another architecture."""
    import shutil

    model = tmp_path / "model"
    shutil.copytree(trained / "export", model)
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    words = ("--data", f"{DEBUG}/train.tar", "--out", str(tmp_path / "out.json"))
    assert "SHA-256" in mistake(capsys, "eval", "retrieval", "--model", str(model), *words)


def test_export_round_trip(trained: Path, tmp_path: Path) -> None:
    """`mmtrain export` writes a folder that loads to the same weights; never over another."""
    out = tmp_path / "mine"
    assert main(["export", str(trained), "--out", str(out)]) == 0
    one, two = (mmtrain.load(path)[0].state_dict() for path in (trained, out))
    assert all((one[name] == two[name]).all() for name in one) and one.keys() == two.keys()
    assert main(["export", str(trained), "--out", str(out)]) == 2


def test_models_and_summary(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], trained: Path
) -> None:
    """The list of names, the parts of a name, a recipe and a run, and the picture."""
    assert main(["models"]) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if "ViT-L-14 " in line)
    assert row.split() == ["ViT-L-14", "224", "77", "427.62", "M", "162.03", "13.30"]
    graph = tmp_path / "towers.svg"
    assert main(["summary", "ViT-B-32", "--graph", str(graph)]) == 0
    shown = capsys.readouterr().out
    assert "151,277,313 parameters" in shown and "12 x pre-layer, 12 heads of 64" in shown
    assert ElementTree.fromstring(graph.read_text()).tag.endswith("svg")
    counts = []
    for model in (RECIPE, str(trained)):
        assert main(["summary", model]) == 0
        counts.append(capsys.readouterr().out.split(" parameters;")[0].split()[-1])
    assert counts[0] == counts[1]
    assert "neither a recipe" in mistake(capsys, "summary", "ViT-B-23")


def test_data_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """index writes checksums; check sees a flipped pixel byte that still decodes."""
    shard = tmp_path / "a.tar"
    shard.write_bytes((ROOT / DEBUG / "train.tar").read_bytes())
    assert main(["data", "index", str(shard)]) == 0
    assert "64 samples in 1 shard;" in capsys.readouterr().out
    assert main(["data", "check", str(shard)]) == 0
    assert "64 samples, verified" in capsys.readouterr().out
    content = bytearray(shard.read_bytes())
    content[content.index(b"RIFF") + 300] ^= 1  # inside the first picture
    shard.write_bytes(content)
    assert main(["data", "check", str(shard)]) == 2
    assert "another content" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        *((), ("train",), ("eval",), ("eval", "zero-shot"), ("eval", "retrieval"), ("data",)),
        *(("eval", "linear-probe"), ("eval", "knn"), ("embed",)),
        *(("data", "index"), ("data", "check"), ("export",), ("convert",), ("models",)),
        *(("summary",), ("report",), ("demo",)),
    ],
    ids=" ".join,
)
def test_help(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    """Every command explains itself and ends well."""
    assert main([*words, "--help"]) == 0
    assert "usage: mmtrain" in capsys.readouterr().out


def test_unknown_command_and_typo(capsys: pytest.CaptureFixture[str]) -> None:
    """The nearest command is named."""
    assert "did you mean train?" in mistake(capsys, "trian", RECIPE)
    assert "--run-dir" in mistake(capsys, "train", RECIPE, "--run-dri", "x")


def torchrun(run_dir: Path, num_ranks: int, *words: str) -> subprocess.CompletedProcess[str]:
    """`torchrun -m mmtrain train` as a user types it."""
    return subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", str(num_ranks), "-m", "mmtrain", "train", RECIPE),
            *("--run-dir", str(run_dir), *words),
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_torchrun_gives_the_single_process_run(tmp_path: Path) -> None:
    """Two FSDP ranks, in fp64: the losses, the evaluation to the last sample, and the export."""
    zero_shot = f'{{ name = "seen", data = "{DEBUG}/train.tar", classes = "{DEBUG}/classes.json" }}'
    options = ("--train.steps", "4", "--train.precision", "fp64",
               "--eval.zero_shot", f"[{zero_shot}]")  # fmt: skip
    alone, together = tmp_path / "alone", tmp_path / "together"
    assert main(["train", RECIPE, "--run-dir", str(alone), *options]) == 0
    done = torchrun(together, 2, *options)
    assert done.returncode == 0, done.stderr
    one, two = (
        [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        for run in (alone, together)
    )
    for key in ("loss", "grad_norm", "logit_scale"):
        assert [x[key] for x in two] == pytest.approx([x[key] for x in one], rel=1e-9), key
    seen = [json.loads((run / "eval/seen.json").read_text()) for run in (alone, together)]
    for figures in seen:
        figures.pop("model_fingerprint")  # of every bit: sums over ranks round otherwise
    assert seen[0] == seen[1]
    weights = [mmtrain.load(run)[0].state_dict() for run in (alone, together)]
    for name, value in weights[0].items():
        assert (value - weights[1][name]).abs().max() <= 1e-6, name


@pytest.mark.slow
def test_torchrun_mistake_is_one_line(tmp_path: Path) -> None:
    """Sizes that do not make up the ranks: said once, not by every rank, without a traceback."""
    done = torchrun(tmp_path / "run", 2, "--parallel.tp", "3")
    assert done.returncode != 0
    assert done.stderr.count("mmtrain: error: ") == 1 and "parallel.tp = 3" not in done.stdout
    assert "does not make up the 2 rank(s) started" in done.stderr
    assert (
        "most recent call last"
        not in done.stderr.partition("ChildFailedError")[0].partition("mmtrain: error: ")[0]
    )
