"""`mmtrain eval suite`, as a user types it: the table, what is done once, missing, or fails."""

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmtrain.cli import main
from mmtrain.eval import samples
from mmtrain.settings.shipped import shipped_recipes
from mmtrain.suite.config import load_suite
from mmtrain.suite.folder import SuiteFolder
from tests.data.shard_files import encoded, write_shard
from tests.suite.folders import (
    SUITE,
    suite_words,
    table_files,
    write_everything,
    write_model,
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, models and the finished folder out/."""
    folder = write_everything(tmp_path_factory.mktemp("suite"))
    assert main(suite_words(folder)) == 0
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy, whose out/ may be spoilt."""
    shutil.copytree(made, tmp_path / "copy")
    return tmp_path / "copy"


def table_of(folder: Path, out: str = "out") -> dict[str, Any]:
    return json.loads((folder / out / "table.json").read_text())


def by_name(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in rows}


def test_every_cell_is_what_the_command_of_its_own_gives(made: Path, tmp_path: Path) -> None:
    """Features that are kept change no bit of a result."""
    data = made / "data"
    alone = {
        "pets": ("mean_class_top1", ["zero-shot", "--data", f"{data}/wds_pets"]),
        "birds": ("top1", ["zero-shot", "--data", f"{data}/wds_birds"]),
        "coco": ("t2i_recall@5", ["retrieval", "--data", f"{data}/wds_coco/test",
                                  "--caption-lines"]),
        "pets-knn": ("top1", ["knn", "--train", f"{data}/wds_pets/train", "--test",
                              f"{data}/wds_pets", "--neighbours", "3"]),
        "pets-probe": ("top1", ["linear-probe", "--train", f"{data}/wds_pets/train", "--test",
                                f"{data}/wds_pets", "--strengths", "1"]),
    }  # fmt: skip
    rows = by_name(table_of(made)["evaluations"])
    assert list(rows) == ["pets", "birds", "coco", "pets-probe", "pets-knn"]
    for name, (metric, words) in alone.items():
        out = tmp_path / f"{name}.json"
        assert main(["eval", *words, "--model", str(made / "b"), "--out", str(out)]) == 0
        found = json.loads(out.read_text())
        assert rows[name]["cells"]["b"]["value"] == found[metric], name
        assert rows[name]["metric"] == metric
        (kept,) = (made / "out/results").glob(f"b-*/{name}.json")
        assert json.loads(kept.read_text()) == found, name


def test_intervals_hold_their_values_and_averages_are_means(made: Path) -> None:
    table = table_of(made)
    rows = by_name(table["evaluations"])
    for row in rows.values():
        for cell in row["cells"].values():
            assert cell["low"] <= cell["value"] <= cell["high"], row["name"]
    averages = by_name(table["averages"])
    assert averages["All"]["over"] == list(rows) and averages["animals"]["over"] == [
        "pets",
        "birds",
    ]
    for one in averages.values():
        for model in "abc":
            values = [rows[name]["cells"][model]["value"] for name in one["over"]]
            mean = one["means"][model]
            assert mean["value"] == pytest.approx(sum(values) / len(values))
            assert mean["low"] < mean["value"] < mean["high"]
    assert all(model["parameters"] > 1000 and model["gflops"] > 0 for model in table["models"])


def test_csv_and_page_say_the_same(made: Path) -> None:
    table = table_of(made)
    rows = list(csv.DictReader((made / "out/table.csv").read_text("utf-8").splitlines()))
    for row in table["evaluations"]:
        for model, cell in row["cells"].items():
            (line,) = [r for r in rows if (r["evaluation"], r["model"]) == (row["name"], model)]
            assert float(line["value"]) == cell["value"] and line["status"] == "judged"
    page = (made / "out/table.html").read_text()
    assert "<script" not in page and "http" not in page.replace("http://www.w3.org", "")
    best = max(table["averages"][0]["means"].items(), key=lambda item: item[1]["value"])
    assert f">{best[0]}<" in page and "Average against Parameters" in page
    assert "kNN" in page and "Knn" not in page


def test_again_computes_nothing(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And gives the same to the byte, also after the table's files were lost."""
    before = table_files(made / "out")
    for name in before:
        (made / f"out/table.{name}").unlink()
    monkeypatch.setattr(samples, "encode_image_batch", _never)
    monkeypatch.setattr("mmtrain.eval.features.embed.encode_image_batch", _never)
    monkeypatch.setattr("mmtrain.eval.classify.prompts.encode_texts", _never)
    assert main(suite_words(made)) == 0
    assert table_files(made / "out") == before


def _never(*_: Any, **__: Any) -> Any:
    raise AssertionError("this was done before")


def test_a_set_is_looked_at_once(made: Path, tmp_path: Path, monkeypatch) -> None:
    """Zero-shot, kNN and probe of one set share a pass over its images."""
    seen: list[int] = []
    whole = samples.EvalBatches._square

    def count(self: Any, members: Any) -> Any:
        seen.append(1)
        return whole(self, members)

    monkeypatch.setattr(samples.EvalBatches, "_square", count)
    monkeypatch.setattr("mmtrain.eval.classify.classification.pick_examples", _no_examples)
    monkeypatch.setattr("mmtrain.eval.retrieval.pick_examples", _no_examples)
    words = suite_words(made, models="a")
    words[words.index("--out") + 1] = str(tmp_path / "once")
    assert main(words) == 0
    assert len(seen) == 9 + 13 + 11 + 9  # pets' test and train, birds, coco


def _no_examples(*_: Any, **__: Any) -> Any:
    return [], []


def test_what_is_missing_is_named_and_counted_out(folder: Path, capsys) -> None:
    """Also where only one of an evaluation's sets is."""
    shutil.rmtree(folder / "data/wds_birds")
    shutil.rmtree(folder / "data/wds_pets/train")
    assert main(suite_words(folder, models="ab")) == 0
    table = table_of(folder)
    rows, averages = by_name(table["evaluations"]), by_name(table["averages"])
    missing = [name for name, row in rows.items() if row["status"] == "missing"]
    assert missing == ["birds", "pets-probe", "pets-knn"]
    assert "wds_birds does not exist" in rows["birds"]["reason"]
    assert averages["All"]["over"] == ["pets", "coco"]
    assert averages["animals"]["left_out"] == ["birds"]
    told = capsys.readouterr().out
    assert "3 of 5 evaluations not on this disk: birds, pets-probe, pets-knn" in told
    assert "All, average over 2 of 5 evaluations" in told
    assert "birds" in (folder / "out/table.html").read_text()


def test_no_data_at_all_is_one_line(folder: Path, capsys) -> None:
    shutil.rmtree(folder / "data")
    assert main(suite_words(folder)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "has none of the suite's 5 data sets" in line and "--root" in line


@pytest.mark.parametrize("what", ["a model", "a set", "a cell"])
def test_what_fails_is_named_and_the_others_go_on(folder: Path, what: str, capsys) -> None:
    """A model that cannot be read takes no part in what averages are over; what fails of one model
    is left out for all."""
    if what == "a model":
        (folder / "b/model.safetensors").write_bytes(b"cut")
    elif what == "a set":
        (folder / "data/wds_birds/test/0.tar").write_bytes(b"no tar" * 200)
    else:
        _no_texts(folder / "b")
    assert main(suite_words(folder, "--quiet")) == 1  # a slow machine tells how far it is
    (line,) = capsys.readouterr().err.splitlines()
    table = table_of(folder)
    rows, averages = by_name(table["evaluations"]), by_name(table["averages"])
    if what == "a model":
        assert "SHA-256" in table["models"][1]["failed"] and "b: " in line
        assert all("failed" in row["cells"]["b"] for row in rows.values())
        assert averages["All"]["over"] == list(rows)
        assert averages["All"]["means"]["b"] is None
    elif what == "a set":
        assert rows["birds"]["status"] == "failed" and "birds: " in line
        assert "birds" not in averages["All"]["over"] and len(averages["All"]["over"]) == 4
    else:
        assert [name for name, row in rows.items() if "failed" in row["cells"]["b"]] == [
            "pets",
            "birds",
            "coco",
        ]
        assert averages["All"]["over"] == ["pets-probe", "pets-knn"]
        assert averages["All"]["means"]["b"] is not None
    assert all("value" in row["cells"]["a"] for row in rows.values() if row["status"] == "judged")
    assert "failed" in (folder / "out/table.html").read_text()


def _no_texts(model: Path) -> None:
    """Weights whose text tower overflows: the images are judged, the texts are not."""
    from mmtrain.data.images.transforms import PreprocessConfig
    from mmtrain.loading import save_model
    from tests.serve.tiny import SIDE, TOKENIZER, tiny_clip

    clip = tiny_clip().eval()
    for name, parameter in clip.named_parameters():
        if name.startswith("text."):
            parameter.data.fill_(float("inf"))
    shutil.rmtree(model)
    save_model(model, model=clip, tokenizer=TOKENIZER, preprocess=PreprocessConfig(image_size=SIDE))


@pytest.mark.parametrize(
    "what",
    [
        "weights",
        "classes",
        pytest.param("templates", marks=pytest.mark.slow),
        pytest.param("data", marks=pytest.mark.slow),
        pytest.param("options", marks=pytest.mark.slow),
    ],
)
def test_what_has_changed_is_done_again(folder: Path, what: str, capsys) -> None:
    """And nothing else."""
    wds = folder / "data/wds_birds"
    if what == "weights":
        shutil.rmtree(folder / "a")
        write_model(folder / "a", 77)
    elif what == "classes":
        (wds / "classnames.txt").write_text("red fox\nowl\nrabbit\n")
    elif what == "templates":
        (wds / "zeroshot_classification_templates.txt").write_text("some {c}\n")
    elif what == "data":
        shutil.copy(folder / "data/wds_pets/train/0.tar", wds / "test/0.tar")
    else:
        text = SUITE.replace('data = "wds_birds"', 'data = "wds_birds"\ntemplates = "simple"')
        (folder / "suite.toml").write_text(text)
    capsys.readouterr()
    assert main(suite_words(folder)) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if ": " in line]
    again = {tuple(line.split(":")[0].split("  ")) for line in lines
             if "  " in line and "(done before)" not in line and "%" in line}  # fmt: skip
    if what == "weights":
        assert {model for model, _ in again} == {"a"} and len(again) == 5
    else:
        assert again == {(model, "birds") for model in "abc"}


def test_a_second_writer_gets_one_line(folder: Path, capsys) -> None:
    """While the first one writes, and not after."""
    assert main(suite_words(folder, models="a")) == 0
    capsys.readouterr()
    code = (
        "import sys; from pathlib import Path; import fcntl, os; "
        f"held = os.open({str(folder / 'out/suite.lock')!r}, os.O_RDWR); "
        "fcntl.lockf(held, fcntl.LOCK_EX); print('held', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        assert main(suite_words(folder)) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "is being written by another process" in line
    finally:
        other.communicate("")
    assert main(suite_words(folder)) == 0


def test_a_folder_that_another_suite_begins_meanwhile_holds_no_other_things(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = Path.iterdir

    def late(path: Path) -> Iterator[Path]:
        (path / "suite.lock").touch()
        return listed(path)

    monkeypatch.setattr(Path, "iterdir", late)
    os.close(SuiteFolder(path=tmp_path).lock())


MISTAKES = {
    "a mistyped key": ('rot = "data"\n', "unknown key rot; did you mean root?"),
    "a mistyped key of an evaluation": (
        '[[zero_shot]]\nname = "x"\ndat = "y"\n',
        "unknown key zero_shot[0].dat; did you mean zero_shot[0].data?",
    ),
    "a mistyped metric": ('[metric]\npets = "topp1"\n', "did you mean top1?"),
    "a metric of another kind": ('[metric]\ncoco = "top1"\n', "is none that retrieval has"),
    "a metric that we have not": ('[metric]\npets = "roc_auc"\n', "name the set in [lacking]"),
    "a worst group of no groups": (
        '[metric]\npets = "worst_group_top1"\n',
        "needs group_key in the table of pets",
    ),
    "a metric of nothing": ('[metric]\npet = "top1"\n', "did you mean pets?"),
    "an average over nothing": ('[average]\nx = ["pet"]\n', "did you mean pets?"),
    "a name twice": ('[lacking]\npets = "x"\n', "the name 'pets' is there twice"),
    "a name that is a path": ('[lacking]\n"a/b" = "x"\n', "becomes a file's"),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_mistakes_in_a_suite_are_one_line(made: Path, tmp_path: Path, what: str, capsys) -> None:
    text, told = MISTAKES[what]
    evaluations = SUITE[SUITE.index("[[zero_shot]]") :]
    (tmp_path / "suite.toml").write_text(
        text if "[[" in text else text + "\n" + evaluations, encoding="utf-8"
    )
    words = suite_words(made)
    words[2] = str(tmp_path / "suite.toml")
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line, line


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"suite": "clip_benchmrk"}, "did you mean clip_benchmark?"),
        ({"suite": "none.toml"}, "none.toml does not exist"),
        ({"models": ["{made}/a", "{made}/../{name}/a"]}, "is named twice"),
        ({"out": "{made}/data"}, "holds other things already"),
        ({"out": "{made}/suite.toml"}, "suite.toml"),
    ],
)
def test_mistakes_in_the_words_are_one_line(made: Path, changed, told: str, capsys) -> None:
    given = {"suite": f"{made}/suite.toml", "models": ["{made}/a"], "out": "{made}/new"} | changed
    given = {
        key: [each.format(made=made, name=made.name) for each in value]
        if isinstance(value, list)
        else value.format(made=made)
        for key, value in given.items()
    }
    words = ["eval", "suite", given["suite"], "--root", f"{made}/data", "--models"]
    assert main([*words, *given["models"], "--out", given["out"]]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line, line


def test_shipped_suites_are_read_and_say_what_they_are() -> None:
    """By the published numbers of folders; every one is evaluated or says what it lacks."""
    sizes = {"clip_benchmark": (40, 0), "datacomp": (38, 0), "imagenet_shifts": (8, 0)}
    for name, (num, lacking) in sizes.items():
        suite = load_suite(Path(name))
        assert (len(suite.all), len(suite.lacking)) == (num, lacking)
        text = shipped_recipes()[name].read_text(encoding="utf-8")
        assert f"mmtrain eval suite {name} " in text
    assert load_suite(Path("datacomp"), root=Path("/x")).zero_shot[0].data == (
        "/x/wds_vtab-caltech101_test"
    )


def test_one_may_begin_from_a_shipped_one(made: Path, tmp_path: Path, capsys) -> None:
    """What is lacking has its line in the table, and fails nobody."""
    shutil.copytree(made / "data/wds_pets", tmp_path / "data/wds_vtab-pets")
    (tmp_path / "mine.toml").write_text(
        'base = "datacomp"\nroot = "$HERE/data"\n[lacking]\n"iwild" = "an F1"\n'.replace(
            "$HERE", str(tmp_path)
        )
    )
    (tmp_path / "data/wds_vtab-pets").rename(tmp_path / "data/wds_vtab-pets_test")
    words = ["eval", "suite", str(tmp_path / "mine.toml"), "--models", str(made / "a")]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    table = table_of(tmp_path)
    rows = by_name(table["evaluations"])
    assert [name for name, row in rows.items() if row["status"] == "judged"] == ["pets"]
    assert [name for name, row in rows.items() if row["status"] == "lacking"] == ["iwild"]
    assert rows["iwild"]["reason"].startswith("it is published with an F1, which mmtrain does not")
    assert by_name(table["averages"])["VTAB"]["over"] == ["pets"]
    assert "Best on average" not in (tmp_path / "out/table.html").read_text()


def test_sets_of_the_same_names_and_sizes_are_two(made: Path, tmp_path: Path) -> None:
    """A fingerprint is of these alone; features of one are not taken for the other's."""
    for number, value in enumerate((10, 200)):
        root = tmp_path / f"data/wds_{number}"
        (root / "test").mkdir(parents=True)
        pictures = [np.full((16, 16, 3), value + row, np.uint8) for row in range(9)]
        for row, pixels in enumerate(pictures):
            pixels[row:, : number * 8] = 255 - 20 * row
        rows = [
            (f"{row}", {"cls": f"{row % 3}", "bmp": encoded(Image.fromarray(pixels), "BMP")})
            for row, pixels in enumerate(pictures)
        ]
        write_shard(root / "test/0.tar", rows)
        (root / "classnames.txt").write_text("red fox\nowl\nhare\n")
    text = "".join(
        f'[[zero_shot]]\nname = "{number}"\ndata = "wds_{number}"\n' for number in (0, 1)
    )
    (tmp_path / "suite.toml").write_text(text)
    words = ["eval", "suite", str(tmp_path / "suite.toml"), "--root", str(tmp_path / "data")]
    assert main([*words, "--models", str(made / "a"), "--out", str(tmp_path / "out")]) == 0
    files = sorted((tmp_path / "out/features").glob("*/features-00000.npy"))
    assert len(files) == 2 and not np.array_equal(*map(np.load, files))
