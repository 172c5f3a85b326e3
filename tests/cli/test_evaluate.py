"""`mmtrain eval` and `mmtrain embed` over every layout, as a user types them; their mistakes."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow import parquet

import mmtrain
from mmtrain.cli import main
from mmtrain.data.images.transforms import PreprocessConfig
from mmtrain.eval import Encoder, evaluate_knn, evaluate_linear_probe, evaluate_zero_shot
from mmtrain.eval.classify.classes import ClassList
from mmtrain.loading import save_model
from tests.data.sources.test_torchvision_sets import write_mnist
from tests.eval.classify.test_layouts import NAMES, write_clip_benchmark, write_folders
from tests.eval.features.test_embed import files_of
from tests.serve.tiny import COUNT, SIDE, TOKENIZER, tiny_clip, write_pictures

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of random weights."""
    folder = tmp_path_factory.mktemp("model")
    preprocess = PreprocessConfig(image_size=SIDE)
    save_model(folder, model=tiny_clip(), tokenizer=TOKENIZER, preprocess=preprocess)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data of every layout."""
    folder = tmp_path_factory.mktemp("data")
    write_folders(folder / "imagenet")
    write_clip_benchmark(folder / "wds_mine")
    write_mnist(folder / "tv", num=(30, 12))
    write_pictures(folder / "pictures.tar")
    return folder


def encoder_of(model: Path) -> Encoder:
    clip, preprocess, tokenizer = mmtrain.load(model)
    return Encoder(model=clip, tokenizer=tokenizer, preprocess=preprocess.config)


def run_eval(kind: str, model: Path, out: Path, **options: Any) -> dict[str, Any]:
    """The figures that `mmtrain eval KIND` wrote."""
    words = ["eval", kind, "--model", str(model), "--out", str(out)]
    for name, value in options.items():
        words += [f"--{name.replace('_', '-')}", *map(str, value if value != () else ())]
    assert main(words) == 0
    return json.loads(out.read_text())


def without_examples(figures: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in figures.items() if name != "examples"}


def test_an_image_folder(model: Path, data: Path, tmp_path: Path, capsys) -> None:
    """Classes by the folders' names, or by WordNet's ids; the published prompts by name."""
    folder, out = data / "imagenet", tmp_path / "out.json"
    figures = run_eval("zero-shot", model, out, data=[folder])
    assert (figures["num_samples"], figures["num_classes"], figures["templates"]) == (20, 4, "name")
    named = run_eval(
        "zero-shot", model, out, data=[folder], classes=["imagenet"], templates=["imagenet"],
        per_class=(),
    )  # fmt: skip
    assert named["num_templates"] == 80 and len(named["class_top1"]) == 4
    assert {one["text"] for one in named["examples"]["best"]} <= set(NAMES)
    encoder = encoder_of(model)
    names = tmp_path / "names.txt"
    names.write_text("\n".join(NAMES))
    again = run_eval("zero-shot", model, out, data=[folder], classes=[names])
    wanted = evaluate_zero_shot(
        encoder,
        data=str(folder),
        classes=published_classes(folder),
        label_key="class",
    ).figures
    assert without_examples(again) == wanted
    assert "num_classes     4" in capsys.readouterr().out


def published_classes(folder: Path) -> Any:
    """The folders' ids with the published names, spelled out."""
    ids = sorted(child.name for child in folder.iterdir() if child.is_dir())
    return ClassList(ids=tuple(ids), names=NAMES)


def test_clip_benchmarks_layout(model: Path, data: Path, tmp_path: Path, capsys) -> None:
    """Its classes and prompts; its captions, a line each; prompts of one's own over them."""
    root, out = data / "wds_mine", tmp_path / "out.json"
    figures = run_eval("zero-shot", model, out, data=[root])
    assert figures["templates"] == ["a photo of a {name}.", "the {name}"]
    assert (figures["num_samples"], figures["num_classes"]) == (9, 2)
    figures = run_eval("zero-shot", model, out, data=[root / "test"], templates=["simple"])
    assert (figures["num_samples"], figures["num_templates"]) == (9, 7)
    figures = run_eval("retrieval", model, out, data=[root / "test"], caption_lines=())
    assert (figures["num_images"], figures["num_texts"]) == (9, 18)
    assert "\n2 captions an image\n" in capsys.readouterr().out
    figures = run_eval("retrieval", model, out, data=[root / "test"], one_caption=())
    assert (figures["num_images"], figures["num_texts"]) == (9, 9)
    words = ["eval", "retrieval", "--model", str(model), "--data", str(root / "test")]
    assert main([*words, "--out", str(out)]) == 2
    assert "has 2 lines, each a caption (--caption-lines" in capsys.readouterr().err


def test_probe_and_neighbours(model: Path, data: Path, tmp_path: Path, capsys) -> None:
    """The commands give the functions' figures, over torchvision's layout and a folder."""
    train, test = (f"torchvision:mnist/{split}:{data / 'tv'}" for split in ("train", "test"))
    sets: dict[str, Any] = {"train": train, "test": test, "label_key": "cls"}
    encoder, classes, out = encoder_of(model), list("0123456789"), tmp_path / "out.json"
    figures = run_eval("knn", model, out, train=[train], test=[test], neighbours=[3])
    wanted = evaluate_knn(encoder, **sets, classes=classes, neighbours=3).figures
    assert without_examples(figures) == wanted
    equal = run_eval("knn", model, out, train=[train], test=[test], neighbours=[3], equal_votes=())
    assert equal["temperature"] is None
    probed = run_eval(
        "linear-probe", model, out, train=[train], test=[test], validation=[train],
        strengths=[1, 100],
    )  # fmt: skip
    wanted = evaluate_linear_probe(
        encoder, **sets, classes=classes, validation=train, strengths=(1, 100)
    ).figures
    assert without_examples(probed) == wanted
    assert f"strength        {probed['strength']:g}" in capsys.readouterr().out
    folder = [data / "imagenet"]
    figures = run_eval("knn", model, out, train=folder, test=folder, neighbours=[1])
    assert (figures["num_train"], figures["num_classes"]) == (20, 4)


@pytest.mark.parametrize(
    "words",
    [
        ("eval", "zero-shot", "--data", "{data}/imagenet", "--out", "{out}.json"),
        ("embed", "--data", "{data}/pictures.tar", "--piece", "4", "--out", "{out}"),
    ],
)
def test_what_is_told_of_a_job_that_goes_well(
    model: Path,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
) -> None:
    """How far it is, in images; with --quiet nothing, and the same file."""
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(
        "mmtrain.progress.Progress.__call__", lambda _, done, of: told.append((done, of))
    )
    for name in ("loud", "quiet"):
        line = [word.format(data=data, out=tmp_path / name) for word in words]
        assert main([*line, "--model", str(model), *(["--quiet"] if name == "quiet" else [])]) == 0
        shown = capsys.readouterr()
        assert "".join(shown) == "" or (name == "loud" and f"wrote {tmp_path}" in shown.out)
        assert told[-1][0] == told[-1][1] and told == sorted(told)
        told.clear()
    loud, quiet = (
        {
            str(path.relative_to(tmp_path)).removeprefix(name): path.read_bytes().replace(
                name.encode(), b""
            )
            for path in tmp_path.rglob("*")
            if path.is_file() and path.relative_to(tmp_path).parts[0].startswith(name)
        }
        for name in ("loud", "quiet")
    )
    assert loud == quiet and loud


@pytest.mark.parametrize("form", ["npy", "parquet"])
def test_embed(model: Path, data: Path, tmp_path: Path, capsys, form: str) -> None:
    """Pieces with keys; a second call has nothing to do, one with other data is refused."""
    out = tmp_path / "out"
    words = ["embed", "--model", str(model), "--out", str(out), "--piece", "4", "--format", form]
    pictures = ["--data", str(data / "pictures.tar")]
    assert main([*words, *pictures]) == 0
    assert f"{COUNT} rows; 2 of 2 pieces made now" in capsys.readouterr().out
    if form == "npy":
        rows = np.load(out / "features-00001.npy")
    else:
        table = parquet.read_table(out / "features-00001.parquet")
        assert table["key"].to_pylist() == ["00004", "00005", "00006"]
        rows = np.array(table["features"].to_pylist())
    assert rows.shape == (3, 12)
    (out / f"features-00000.{form}").unlink()
    assert main([*words, *pictures]) == 0
    shown = capsys.readouterr().out
    assert "1 of 2 pieces made now" in shown
    assert main([*words, "--data", str(data / "imagenet")]) == 2
    assert "holds embeddings made with another num_samples" in capsys.readouterr().err


SHARD = "{data}/pictures.tar"
MISTAKES = {
    "no classes": (
        ("zero-shot", "--data", SHARD),
        "classes are not named, and .*pictures.tar says",
    ),
    "no such class file": (
        ("zero-shot", "--data", SHARD, "--classes", "imagnet"),
        "classes = imagnet cannot be read",
    ),
    "a label key where the layout has one": (
        ("zero-shot", "--data", "{data}/imagenet", "--label-key", "cls"),
        "--label-key = cls: the layout of data says",
    ),
    "a wrong label key": (
        ("zero-shot", "--data", SHARD, "--classes", "imagenet", "--label-key", "klass"),
        r"it has neither a \.klass nor a \.json",
    ),
    "other names than folders": (
        ("zero-shot", "--data", "{data}/imagenet", "--classes", "{data}/wds_mine/classnames.txt"),
        "2 names for the 4 folders",
    ),
    "an id twice": (
        ("zero-shot", "--data", SHARD, "--classes", "{data}/twice.json"),
        r"twice\.json: classes: the id 'a' is there more than once",
    ),
    "an empty folder": (("knn", "--train", "{data}/empty", "--test", SHARD), "train = .*empty"),
    "no such folder": (("knn", "--train", SHARD, "--test", "{data}/none"), "test = .*none"),
    "two layouts": (
        ("knn", "--train", "{data}/imagenet", "--test", "{data}/wds_mine"),
        "test has its classes under 'cls' and train",
    ),
    "no such set": (
        ("knn", "--train", "torchvision:cifar10/train:{data}", "--test", SHARD),
        r"torchvision:cifar10/train:.* finds no whole data set",
    ),
    "too many voters": (
        ("knn", "--train", "{data}/imagenet", "--test", "{data}/imagenet", "--neighbours", "21"),
        "neighbours = 21 must be 1 to 20",
    ),
    "a temperature of 0": (
        ("knn", "--train", SHARD, "--test", SHARD, "--temperature", "0"),
        "0 must be a number above 0",
    ),
    "two ways to vote": (
        ("knn", "--train", SHARD, "--test", SHARD, "--temperature", "1", "--equal-votes"),
        "not allowed with",
    ),
    "a strength that is none": (
        ("linear-probe", "--train", SHARD, "--test", SHARD, "--strengths", "1", "x"),
        "x must be a number above 0",
    ),
    "too little to hold out": (
        ("linear-probe", "--train", "{data}/few", "--test", "{data}/few"),
        "train has 4 samples, too few to hold some out",
    ),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_mistakes_are_one_line(model: Path, data: Path, tmp_path: Path, capsys, what: str) -> None:
    (data / "empty").mkdir(exist_ok=True)
    (data / "twice.json").write_text('[{"id": "a", "name": "x"}, {"id": "a", "name": "y"}]')
    if not (data / "few").exists():
        write_folders(data / "few", each=1)
    words, told = MISTAKES[what]
    words = [word.format(data=data) for word in words]
    out = tmp_path / "out.json"
    assert main(["eval", *words, "--model", str(model), "--out", str(out)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and re.search(told, lines[0]), lines
    assert not out.exists()


@pytest.mark.slow
def test_ranks_write_the_same_embeddings(model: Path, data: Path, tmp_path: Path) -> None:
    """Under torchrun the ranks share out the pieces; the files are those of one process."""
    words = ["embed", "--model", str(model), "--data", str(data / "pictures.tar"), "--piece", "2"]
    assert main([*words, "--out", str(tmp_path / "one")]) == 0
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", "2", "-m", "mmtrain", *words, "--out", str(tmp_path / "two")),
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert "7 rows; 4 of 4 pieces made now" in done.stdout
    assert files_of(tmp_path / "two") == files_of(tmp_path / "one")
