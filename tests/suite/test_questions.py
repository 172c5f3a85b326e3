"""Questions as a line of a suite: models that answer beside one that does not."""

import json
from pathlib import Path
from typing import Any

import pytest

from mmtrain.cli import main
from mmtrain.loading.vqa import VqaModel, save_vqa
from tests.data.questions.vqa_files import write_set
from tests.eval.questions.answerers import ANSWER_LENGTH, TOKENIZER, make_answerer
from tests.suite.folders import table_files, write_model, write_wds

SUITE = """\
[[knn]]
name = "pets"
train = "wds_pets"
test = "wds_pets"
neighbours = 1

[[vqa]]
name = "asked"
data = "vqa/images"
questions = "vqa/questions.json"
annotations = "vqa/annotations.json"
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images with classes, one with questions; a model that chooses answers, one that
    writes them, one that matches captions."""
    folder = tmp_path_factory.mktemp("asked")
    write_wds(folder / "data/wds_pets", seed=0)
    write_set(folder / "data/vqa")
    (folder / "suite.toml").write_text(SUITE)
    for name, head in (("chooses", "classify"), ("writes", "generate")):
        answerer = make_answerer(head=head)
        save_vqa(
            folder / name,
            VqaModel(
                model=answerer.model,
                tokenizer=TOKENIZER,
                preprocess=answerer.preprocess,
                vocabulary=answerer.vocabulary,
                answer_length=ANSWER_LENGTH,
            ),
        )
    write_model(folder / "matches", 0)
    return folder


def suite(folder: Path, *models: str, out: str, more: tuple[str, ...] = ()) -> int:
    words = ["eval", "suite", str(folder / "suite.toml"), "--root", str(folder / "data")]
    paths = [str(folder / model) for model in models]
    return main([*words, "--models", *paths, "--out", str(folder / out), *more])


def rows_of(folder: Path, out: str) -> dict[str, dict[str, Any]]:
    table = json.loads((folder / out / "table.json").read_text())
    return {row["name"]: row for row in table["evaluations"]}


@pytest.mark.slow
def test_questions_are_a_line_and_are_resumed(made: Path, tmp_path: Path, capsys) -> None:
    """Each cell is what `eval vqa` gives; files of questions lie below the root; the second model
    comes later, and the table is that of both at once."""
    assert suite(made, "chooses", "writes", out="both") == 0
    files = [str(made / "data/vqa" / name) for name in ("questions.json", "annotations.json")]
    asked = ["--data", str(made / "data/vqa/images"), "--questions", files[0]]
    row = rows_of(made, "both")["asked"]
    for model in ("chooses", "writes"):
        out = tmp_path / f"{model}.json"
        words = ["eval", "vqa", "--model", str(made / model), *asked, "--annotations", files[1]]
        assert main([*words, "--out", str(out)]) == 0
        found = json.loads(out.read_text())
        assert row["cells"][model]["value"] == found["accuracy"]
        assert row["num_samples"] == found["num_questions"]
    assert suite(made, "writes", out="later") == 0
    before = {path: path.stat().st_mtime_ns for path in (made / "later").glob("cells/*/*.json")}
    capsys.readouterr()
    assert suite(made, "chooses", "writes", out="later") == 0
    assert capsys.readouterr().out.count("(done before)") == len(before) == 2
    assert all(path.stat().st_mtime_ns == at for path, at in before.items())
    assert table_files(made / "later") == table_files(made / "both")


@pytest.mark.slow
def test_other_answers_are_judged_again(made: Path) -> None:
    """The file of answers is no image, and what the figures are of all the same."""
    assert suite(made, "chooses", out="again") == 0
    path = made / "data/vqa/annotations.json"
    text = path.read_text()
    try:
        told = json.loads(text)
        for one in told["annotations"]:
            for answer in one["answers"]:
                answer["answer"] = "a blue one"
        path.write_text(json.dumps(told))
        before = rows_of(made, "again")["asked"]["cells"]["chooses"]
        assert suite(made, "chooses", out="again") == 0
        assert rows_of(made, "again")["asked"]["cells"]["chooses"] != before
    finally:
        path.write_text(text)


@pytest.mark.slow
def test_a_model_without_a_head_says_so_in_its_cell(made: Path, capsys) -> None:
    """And is judged by what else there is, as are the others."""
    assert suite(made, "matches", "chooses", out="mixed", more=("--quiet",)) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "asked of matches: model = " in line and "answers no questions" in line
    rows = rows_of(made, "mixed")
    assert "answers no questions" in rows["asked"]["cells"]["matches"]["failed"]
    assert "value" in rows["asked"]["cells"]["chooses"]
    assert {"matches", "chooses"} == rows["pets"]["cells"].keys()
    assert all("value" in cell for cell in rows["pets"]["cells"].values())
    page = (made / "mixed/table.html").read_text()
    assert "answers no questions" in page
