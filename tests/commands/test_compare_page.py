"""`mmtrain compare --out`: what the page says and shows, by results that `mmtrain eval` wrote."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from mmtrain.cli import main
from mmtrain.errors import UsageError
from mmtrain.eval.outcomes import Outcome, outcomes_path, read_outcomes
from mmtrain.eval.result import EvalResult, write_result
from tests.data.questions.vqa_files import write_set
from tests.data.shard_files import encoded, picture, write_shard


def judged(folder: Path, name: str, knows: float, seed: int) -> Path:
    """Answers to 60 questions about 20 images, of which a share is right."""
    files = write_set(folder / "set", num=20) if not (folder / "set").exists() else None
    set_ = {key: str(folder / "set" / f"{key}.json") for key in ("questions", "annotations")}
    assert files is None or files["questions"] == set_["questions"]
    draw = np.random.default_rng(seed)
    said = [
        {
            "question_id": row["question_id"],
            "answer": row["answers"][0]["answer"] if draw.random() < knows else "<b>none</b>",
        }
        for row in json.loads(Path(set_["annotations"]).read_text())["annotations"]
    ]
    (folder / f"said-{name}.json").write_text(json.dumps(said))
    out = folder / f"{name}.json"
    words = [word for key, file in set_.items() for word in (f"--{key}", file)]
    words += ["--predictions", str(folder / f"said-{name}.json"), "--out", str(out)]
    assert main(["eval", "answers", *words]) == 0
    return out


def plain(html: str) -> str:
    """A page's text without tags, runs of space being one."""
    html = re.sub(r"<style>.*?</style>", " ", html, flags=re.S)
    return " ".join(re.sub(r"<[^>]+>", " ", html).split())


@pytest.mark.parametrize(("knows", "seed"), [((0.3, 0.9), 1), ((0.9, 0.4), 2), ((0.6, 0.6), 3)])
def test_the_page_says_what_the_command_says(
    knows: tuple[float, float], seed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = (
        judged(tmp_path, name, share, seed + place)
        for place, (name, share) in enumerate(zip(("one", "other"), knows, strict=True))
    )
    capsys.readouterr()
    page = tmp_path / "page.html"
    assert main(["compare", str(a), str(b), "--out", str(page)]) == 0
    shown, html = capsys.readouterr().out, page.read_text()
    text = plain(html)
    for outside in ("<script", "http", "<link", "src="):
        assert outside not in html
    found = re.search(r"accuracy: (.*?) \(", shown)
    assert found is not None
    said = found.group(1).replace("B - A", "other - one").replace("B is", "other is")
    assert said.replace("A is", "one is").removeprefix("no difference") in text
    # A row of the forest for the whole and for every type, each with the command's figures.
    rows = re.findall(r"^  (\S.*?) {2,}([+-][\d.]+) points, (\S+) to (\S+)", shown, flags=re.M)
    assert len(rows) == 2 + 2 and html.count('class="dot"') == 5 == html.count('class="bar"')
    for name, *numbers in rows:
        points, low, high = (re.escape(n.replace("-", "−")) for n in numbers)
        label = name.split(" ", 1)[1]
        assert re.search(rf"{label} [^→]* → .*? {points} {low} to {high}", text), (name, numbers)
    counts = re.search(r"right in both (\d+), only in A (\d+), only in B (\d+)", shown)
    assert counts is not None
    both, only_a, only_b = counts.groups()
    assert f"Right in A {both} {only_a} Wrong in A {only_b}" in text
    assert f"{int(only_b)} that B does better" in text and f"{only_a} that A does better" in text
    # Every sample that is shown is one that changed, with what each said; escaped.
    assert html.count("flip") > 0 and "<b>none</b>" not in html and "&lt;b&gt;none" in html
    assert html.count('<figure class="card picture flip">') == min(10, int(only_a)) + min(
        10, int(only_b)
    )


def test_pictures_come_from_the_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = judged(tmp_path, "one", 0.2, 1), judged(tmp_path, "other", 0.9, 2)
    page, words = tmp_path / "page.html", ["--data", str(tmp_path / "set/images")]
    words += ["--questions", str(tmp_path / "set/questions.json")]
    assert main(["compare", str(a), str(b), "--out", str(page), *words]) == 0
    html = page.read_text()
    assert html.count("<img src=") == html.count('<figure class="card picture flip">') > 4
    # And of shards, where keys repeat.
    for number in range(2):
        samples = [
            (f"{key}", {"png": encoded(picture((9, 9), seed=key), "PNG"), "cls": str(key % 3)})
            for key in range(8)
        ]
        write_shard(tmp_path / f"{number}.tar", samples)
    shards = [str(tmp_path / f"{number}.tar") for number in range(2)]
    results = []
    for name, right in (("c", 0.0), ("d", 1.0)):
        ids = [f"{number}.tar/{key}" for number in range(2) for key in range(8)]
        outcomes = tuple(
            Outcome(metric="top1", id=id, image=id, score=right, wanted="x", said="y") for id in ids
        )
        results.append(tmp_path / f"{name}.json")
        figures = {"top1": right}
        write_result(results[-1], EvalResult(figures=figures, best=[], worst=[], outcomes=outcomes))
    both = [*map(str, results), "--out", str(page), "--data"]
    assert main(["compare", *both, *shards]) == 0
    assert page.read_text().count("<img src=") == 10
    capsys.readouterr()
    assert main(["compare", *both, shards[0]]) == 2
    line = capsys.readouterr().err
    assert "has no sample" in line and "name what it was evaluated on" in line


def test_an_answer_that_was_cut_is_shown_as_such(tmp_path: Path) -> None:
    """From the outcomes' lines, of which only a cut one says it, to the page."""
    files = []
    for name, right in (("a", 0.0), ("b", 1.0)):
        outcomes = tuple(
            Outcome(metric="top1", id=id, image=id, score=right, said=f"{name} {id}", is_cut=cut)
            for id, cut in (("one", True), ("two", False))
        )
        files.append(tmp_path / f"{name}.json")
        result = EvalResult(figures={"top1": right}, best=[], worst=[], outcomes=outcomes)
        write_result(files[-1], result)
        assert tuple(read_outcomes(files[-1])["top1"].values()) == outcomes
        lines = outcomes_path(files[-1]).read_text().splitlines()
        assert ['"is_cut": true' in line for line in lines] == [True, False]
        assert not any("false" in line for line in lines)
    assert main(["compare", *map(str, files), "--out", str(tmp_path / "p.html")]) == 0
    text = plain((tmp_path / "p.html").read_text())
    assert all(f"{name} one … (cut off)" in text for name in "ab") and text.count("(cut off)") == 2
    outcomes_path(files[0]).write_text(lines[0].replace("true", '"yes"') + "\n")
    with pytest.raises(UsageError, match="damaged"):
        read_outcomes(files[0])


def test_several_results_are_laid_against_the_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [judged(tmp_path, f"r{n}", 0.3 + 0.2 * n, n) for n in range(4)]
    page = tmp_path / "page.html"
    capsys.readouterr()
    assert main(["compare", *map(str, files), "--out", str(page)]) == 0
    shown, text = capsys.readouterr().out, plain(page.read_text())
    assert shown.count("accuracy: ") == 3 and "3 results against r0" in text
    assert "Accuracy: every result against r0" in text
    assert all(f"Accuracy: r{n} against r0" in text for n in (1, 2, 3))


def test_many_types_are_cut_to_those_that_differ_most(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw = np.random.default_rng(0)
    files = []
    for name in "ab":
        scores = draw.integers(0, 2, 600).tolist()
        outcomes = tuple(
            Outcome(
                metric="top1", id=str(n), image=str(n), score=score, kinds={"class": f"c{n % 60}"}
            )
            for n, score in enumerate(scores)
        )
        files.append(tmp_path / f"{name}.json")
        figures = {"top1": sum(scores) / 600}
        write_result(files[-1], EvalResult(figures=figures, best=[], worst=[], outcomes=outcomes))
    page = tmp_path / "p.html"
    assert main(["compare", *map(str, files), "--out", str(page)]) == 0
    shown = capsys.readouterr().out
    assert "of 60 types of class the 24 that differ most; some would by chance" in shown
    assert page.read_text().count('class="dot"') == 25
    gains: dict[str, int] = {}
    ours, theirs = (read_outcomes(file)["top1"] for file in files)
    for id, one in ours.items():
        kind = one.kinds["class"]
        gains[kind] = gains.get(kind, 0) + int(theirs[id].score - one.score)
    told = set(re.findall(r"class (c\d+) ", shown))
    least = min(abs(gains[kind]) for kind in told)
    assert all(abs(gain) <= least + 2 for kind, gain in gains.items() if kind not in told)
    assert max(gains, key=lambda kind: gains[kind]) in told


def test_what_the_page_cannot_be_made_of_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = str(judged(tmp_path, "one", 0.2, 1)), str(judged(tmp_path, "other", 0.9, 2))
    page = str(tmp_path / "p.html")
    for words, told in (
        ([a, b, "--out", str(tmp_path / "p.json")], "must end in .html"),
        ([a, b, "--out", str(tmp_path / "no" / "p.html")], "cannot be written"),
        ([a, b, "--data", "x"], "--data has no effect without --out"),
        ([a, b, "--out", page, "--questions", "x"], "--questions has no effect without --data"),
        ([a, b, "--out", page, "--image-key", "x"], "--image-key has no effect without --data"),
        ([a, b, b], "is named twice"),
        ([a, b, "--out", page, "--data", str(tmp_path / "none")], "none"),
    ):
        capsys.readouterr()
        assert main(["compare", *words]) == 2
        line = capsys.readouterr().err
        assert told in line and len(line.splitlines()) == 1
    assert not Path(page).exists()
